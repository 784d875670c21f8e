// SPDX-License-Identifier: MIT
//! The processes of vCPU threads: a trace record has the thread's pid only.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// A pid may be another thread's after this.
const VALID: Duration = Duration::from_secs(1);

/// Thread groups by thread: told when the thread was started, or looked up in /proc when it is first seen, and now and
/// then again.
#[derive(Debug, Default)]
pub struct Threads {
    known: HashMap<u32, (u32, Instant)>,
    commands: HashMap<u32, String>,
}

impl Threads {
    /// The pid of the process that a thread belongs to; 0 if the thread was gone when it was first looked for.
    pub fn process(&mut self, thread: u32, now: Instant) -> u32 {
        let known = self.known.get(&thread).copied();
        match known {
            Some((process, looked)) if now.saturating_duration_since(looked) < VALID => process,
            _ => {
                let process = process_of(thread).or(known.map(|(process, _)| process)).unwrap_or(0);
                self.known.insert(thread, (process, now));
                if process != 0 {
                    self.commands.entry(process).or_insert_with(|| command(process));
                }
                process
            }
        }
    }

    /// `creator` has started a thread of its process, or a process.
    pub fn started(&mut self, creator: u32, pid: u32, is_thread: bool, now: Instant) {
        let process = if is_thread { self.process(creator, now) } else { pid };
        if process != 0 {
            self.known.insert(pid, (process, now));
        }
    }

    /// The processes that were seen, and their commands' names, which are empty if they were gone already.
    pub fn commands(&self) -> Vec<(u32, String)> {
        self.commands.iter().map(|(process, command)| (*process, command.clone())).collect()
    }
}

fn command(process: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_belongs_to_its_process() {
        let mut threads = Threads::default();
        let thread = std::thread::spawn(|| {
            // SAFETY: gettid(2) takes nothing and cannot fail.
            unsafe { libc::gettid() as u32 }
        });
        let gone = thread.join().unwrap();
        let now = Instant::now();
        assert_eq!(threads.process(std::process::id(), now), std::process::id());
        assert_eq!(threads.process(gone, now), 0);
        threads.started(8, 9, false, now);
        threads.started(9, gone, true, now);
        assert_eq!(threads.process(gone, now), 9, "its process is told though it is gone");
        // Even later: what was known stays known.
        threads.known.insert(gone, (7, now));
        assert_eq!(threads.process(gone, now + 2 * VALID), 7);
    }
}
