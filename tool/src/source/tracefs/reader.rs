// SPDX-License-Identifier: MIT
//! The ring buffers of all CPUs as one stream by time.

use super::events::{Events, Said};
use super::file;
use super::instance::Instance;
use super::threads::Threads;
use crate::analysis::pairing::{Occurrence, Pairing};
use crate::source::page::{Page, PageFormat};
use anyhow::{Context, Result, anyhow};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

/// Pages of one CPU that are read at once: the others must have their turn before their buffers are full.
const PAGES_AT_ONCE: usize = 1024;

/// One CPU's ring buffer.
#[derive(Debug)]
struct Cpu {
    name: String,
    /// `trace_pipe_raw`; read(2) copies no more than splice(2) into a pipe and read(2) out of it would, and gives
    /// the page that is being filled as well.
    file: File,
    /// Time of the last event.
    last: u64,
}

/// Reads an instance.
#[derive(Debug)]
pub struct Reader {
    cpus: Vec<Cpu>,
    events: Events,
    format: PageFormat,
    page: Vec<u8>,
    pending: Vec<Occurrence>,
    threads: Threads,
    /// When the last round began, CLOCK_MONOTONIC, which is the instance's clock.
    round: u64,
    /// Events that pages said were overwritten before them.
    overwritten: u64,
}

impl Reader {
    /// Opens every CPU's ring buffer; while they are open, the instance cannot be removed.
    ///
    /// # Errors
    /// The kernel does not let this process read them.
    pub fn open(instance: &Instance, events: Events) -> Result<Self> {
        let format = file::read(&instance.file("events/header_page"))?;
        let format = PageFormat::parse(&format).context("cannot understand header_page")?;
        let folder = instance.file("per_cpu");
        let mut cpus = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path().join("trace_pipe_raw");
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            cpus.push(Cpu { name: path.display().to_string(), file, last: 0 });
        }
        Ok(Self {
            page: vec![0; format.size()],
            cpus,
            events,
            format,
            pending: Vec::new(),
            threads: Threads::default(),
            round: 0,
            overwritten: 0,
        })
    }

    /// Reads what there is, and gives `pairing` what is older than the last call: an event that was being written when
    /// its CPU's buffer was read is found by the next call, and events of other CPUs must not overtake it.
    ///
    /// # Errors
    /// A buffer cannot be read or makes no sense.
    pub fn read(&mut self, pairing: &mut Pairing) -> Result<()> {
        let round = monotonic();
        let complete = self.fill(pairing)?;
        let until = std::mem::replace(&mut self.round, round).min(complete);
        self.give(until, pairing);
        Ok(())
    }

    /// Reads all that is left, after tracing has stopped.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn drain(&mut self, pairing: &mut Pairing) -> Result<()> {
        while self.fill(pairing)? != u64::MAX {}
        self.give(u64::MAX, pairing);
        Ok(())
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The processes that were seen, and their commands' names.
    pub fn commands(&self) -> Vec<(u32, String)> {
        self.threads.commands()
    }

    /// Events that the kernel lost: those that were overwritten before they were read, and those that found no place.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn lost(&self) -> Result<u64> {
        let mut lost = 0;
        for cpu in &self.cpus {
            let path = cpu.name.replace("trace_pipe_raw", "stats");
            lost += overrun(&file::read(path.as_ref())?);
        }
        Ok(lost.max(self.overwritten))
    }

    /// Reads every CPU's pages. Returns the time up to which all events are here, if more are to come at once.
    fn fill(&mut self, pairing: &mut Pairing) -> Result<u64> {
        let mut complete = u64::MAX;
        let now = Instant::now();
        for cpu in &mut self.cpus {
            let mut pages = 0;
            loop {
                let length = match cpu.file.read(&mut self.page) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error).with_context(|| format!("cannot read {}", cpu.name)),
                };
                let nonsense =
                    |why: &dyn std::fmt::Display| anyhow!("a page of {} makes no sense: {why}", cpu.name);
                let page = Page::parse(&self.page[..length], &self.format).map_err(|why| nonsense(&why))?;
                if let Some(lost) = page.lost {
                    self.overwritten += lost.max(1);
                    pairing.gap(cpu.last, page.time);
                }
                for event in page.events() {
                    let (time, record) = event.map_err(|why| nonsense(&why))?;
                    let decoded = self.events.decode(record);
                    let decoded = decoded.ok_or_else(|| nonsense(&"a record is too short"))?;
                    cpu.last = time;
                    match decoded {
                        Some((thread, Said::Vcpu(what))) => {
                            // Asked now, before the thread ends; answered when all CPUs' events are here.
                            self.threads.process(thread, now);
                            let unknown = self.events.unknown.of(&what);
                            self.pending.push(Occurrence { time, thread, tgid: 0, unknown, what });
                        }
                        Some((creator, Said::NewTask { pid, is_thread })) => {
                            self.threads.started(creator, pid, is_thread, now);
                        }
                        None => {}
                    }
                }
                pages += 1;
                if pages == PAGES_AT_ONCE {
                    complete = complete.min(cpu.last);
                    break;
                }
            }
        }
        Ok(complete)
    }

    /// Gives `pairing` the events up to a time, by time.
    fn give(&mut self, until: u64, pairing: &mut Pairing) {
        // Each CPU's are in order: the sort merges these runs.
        self.pending.sort_by_key(|occurrence| occurrence.time);
        let end = self.pending.partition_point(|occurrence| occurrence.time < until);
        let now = Instant::now();
        for mut occurrence in self.pending.drain(..end) {
            occurrence.tgid = self.threads.process(occurrence.thread, now);
            pairing.take(&occurrence);
        }
    }
}

/// The events that a `per_cpu/cpuN/stats` file says were lost.
fn overrun(stats: &str) -> u64 {
    let number = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let is_loss = ["overrun", "commit overrun", "dropped events"].contains(&name.trim());
        is_loss.then(|| value.trim().parse::<u64>().ok()).flatten()
    };
    stats.lines().filter_map(number).sum()
}

/// CLOCK_MONOTONIC in nanoseconds.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives; the clock exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_losses_count() {
        let stats = "entries: 3\noverrun: 5\ncommit overrun: 0\nbytes: 7\noldest event ts:  12.5\n\
            now ts:  13.1\ndropped events: 2\nread events: 90\n";
        assert_eq!(overrun(stats), 7);
    }

    #[test]
    fn the_clock_goes_on() {
        let before = monotonic();
        assert!(before > 0 && monotonic() >= before);
    }
}
