// SPDX-License-Identifier: MIT
//! Counters of the kernel's own events by perf: a number for each filter, no times. A few of them cost less than
//! anything that records or times exits.

use super::tracefs::file;
use super::tracefs::instance::Instance;
use crate::vm::threads;
use anyhow::{Context, Result, anyhow, bail};
use perf_event_open_sys::bindings::{PERF_TYPE_TRACEPOINT, perf_event_attr};
use perf_event_open_sys::{ioctls, perf_event_open};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

/// A count of the events that a filter selects. Dropping it ends it.
#[derive(Debug)]
pub struct Counter {
    /// One for each CPU, or for each thread that there was when it was opened.
    files: Vec<File>,
}

impl Counter {
    /// Opens a counter of an event, which does not count yet: of all processes, or of these and
    /// the threads that they start.
    ///
    /// # Errors
    /// The kernel has no such event, refuses the filter (why, in its own words), or does not let this process count.
    pub fn open(
        tracefs: &Path,
        system: &str,
        event: &str,
        filter: Option<&str>,
        processes: &[u32],
    ) -> Result<Self> {
        let id = file::read(&tracefs.join(format!("events/{system}/{event}/id")))?;
        let id = id.trim().parse().with_context(|| format!("the id of {event} is {id:?}"))?;
        let mut files = Vec::new();
        for (pid, cpu) in places(processes)? {
            let file = open(id, pid, cpu).with_context(|| {
                format!("cannot count {event} (perf_event_open): run as root, or with CAP_PERFMON")
            });
            files.push(file?);
        }
        let counter = Self { files };
        if let Some(filter) = filter {
            counter.set_filter(tracefs, system, event, filter)?;
        }
        Ok(counter)
    }

    fn set_filter(&self, tracefs: &Path, system: &str, event: &str, filter: &str) -> Result<()> {
        let text = CString::new(filter).context("a filter with a NUL character")?;
        for file in &self.files {
            // SAFETY: the descriptor is a perf event's, and the text ends with NUL and lives during the call.
            if unsafe { ioctls::SET_FILTER(file.as_raw_fd(), text.as_ptr().cast_mut()) } != 0 {
                let error = io::Error::last_os_error();
                // perf does not say why; the same filter on an event of our own does.
                let explained =
                    Instance::new(tracefs).and_then(|instance| instance.set_filter(system, event, filter));
                explained?;
                return Err(error).with_context(|| format!("perf refuses the filter {filter:?} for {event}"));
            }
        }
        Ok(())
    }

    /// Begins to count.
    ///
    /// # Errors
    /// The kernel refuses that.
    pub fn enable(&self) -> Result<()> {
        for file in &self.files {
            // SAFETY: the descriptor is a perf event's; this ioctl takes no memory.
            if unsafe { ioctls::ENABLE(file.as_raw_fd(), 0) } != 0 {
                return Err(io::Error::last_os_error()).context("cannot enable a counter");
            }
        }
        Ok(())
    }

    /// How many there were since it was enabled.
    ///
    /// # Errors
    /// A counter cannot be read.
    pub fn read(&self) -> Result<u64> {
        let mut sum = 0;
        for mut file in &self.files {
            let mut count = [0; 8];
            file.read_exact(&mut count).context("cannot read a counter")?;
            sum += u64::from_ne_bytes(count);
        }
        Ok(sum)
    }
}

/// Process or thread and CPU, as perf_event_open(2) takes them.
fn places(processes: &[u32]) -> Result<Vec<(i32, i32)>> {
    if processes.is_empty() {
        let path = Path::new("/sys/devices/system/cpu/online");
        let online = file::read(path)?;
        let cpus = cpus(&online).ok_or_else(|| anyhow!("{} makes no sense: {online:?}", path.display()))?;
        return Ok(cpus.into_iter().map(|cpu| (-1, cpu)).collect());
    }
    let threads: BTreeSet<u32> = processes.iter().flat_map(|process| threads(*process)).collect();
    if threads.is_empty() {
        bail!("the selected VMs are gone");
    }
    Ok(threads.into_iter().map(|thread| (thread as i32, -1)).collect())
}

/// The CPUs of a list such as `0-3,8`.
fn cpus(list: &str) -> Option<Vec<i32>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<i32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

fn open(id: u64, pid: i32, cpu: i32) -> io::Result<File> {
    let mut attributes = perf_event_attr {
        type_: PERF_TYPE_TRACEPOINT,
        size: size_of::<perf_event_attr>() as u32,
        config: id,
        ..perf_event_attr::default()
    };
    attributes.set_disabled(1);
    // Threads that a counted one starts are counted, too.
    attributes.set_inherit(u64::from(pid != -1));
    const CLOEXEC: std::ffi::c_ulong = 8;
    // SAFETY: the attributes are initialized, as long as their size member says, and live during the call.
    let descriptor = unsafe { perf_event_open(&mut attributes, pid, cpu, -1, CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, is valid, and nobody else closes it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpus("0\n"), Some(vec![0]));
        assert_eq!(cpus("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(cpus(""), None);
        assert_eq!(cpus("0-x"), None);
    }

    #[test]
    fn without_processes_every_cpu_is_counted() {
        assert!(places(&[]).unwrap().iter().all(|(pid, cpu)| *pid == -1 && *cpu >= 0));
        let own = places(&[std::process::id()]).unwrap();
        assert!(own.contains(&(std::process::id() as i32, -1)));
        assert!(places(&[u32::MAX]).is_err());
    }
}
