// SPDX-License-Identifier: MIT
//! A tracefs instance of our own: ring buffers, filters and enabled events that nobody else's tracing meets.

use super::file;
use crate::filter::{MAX_LENGTH, refusal};
use crate::vm::threads;
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// An instance, removed when dropped.
#[derive(Debug)]
pub struct Instance {
    path: PathBuf,
}

impl Instance {
    /// Makes an instance in `tracefs`, after removing those that runs left which were killed.
    ///
    /// # Errors
    /// The kernel does not let this process make one.
    pub fn new(tracefs: &Path) -> Result<Self> {
        remove_abandoned(tracefs);
        let instances = tracefs.join("instances");
        let pid = std::process::id();
        let start = start_time(pid).context("cannot read /proc/self/stat")?;
        // A process may have several.
        let names = (0..).map(|number| match number {
            0 => format!("{PREFIX}{pid}-{start}"),
            _ => format!("{PREFIX}{pid}-{start}-{number}"),
        });
        for name in names {
            let path = instances.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make {}", path.display()));
                }
            }
        }
        unreachable!("there is always another number")
    }

    /// A file of the instance.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a setting and checks that the kernel took it.
    ///
    /// # Errors
    /// It did not.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        file::set(&self.file(name), value)
    }

    /// Writes to a file that shows something else than was written.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        file::write(&self.file(name), text)
    }

    /// Filters an event.
    ///
    /// # Errors
    /// The kernel refuses the filter; why, in its own words. The event must not be enabled then: it would run
    /// unfiltered.
    pub fn set_filter(&self, system: &str, event: &str, filter: &str) -> Result<()> {
        let path = self.file(&format!("events/{system}/{event}/filter"));
        if filter.len() > MAX_LENGTH {
            return Err(anyhow!(
                "the filter for {event} has {} characters, but the kernel takes {MAX_LENGTH} at most: \
                 select less at once",
                filter.len()
            ));
        }
        if let Err(error) = file::write(&path, filter) {
            let log = file::read(&self.file("error_log")).unwrap_or_default();
            return Err(match refusal(&log) {
                Some(why) => anyhow!("the kernel refuses the filter for {event}: {why}"),
                None => error.context(format!("the kernel refuses the filter for {event}")),
            });
        }
        let is = file::read(&path)?;
        if is.trim_end() != filter.trim() {
            return Err(anyhow!("the filter for {event} should be {filter:?}, but the kernel has {is:?}"));
        }
        Ok(())
    }

    /// Takes only events of these processes' threads, and of the threads and processes that they start.
    ///
    /// # Errors
    /// The kernel refuses that, or all of the processes are gone.
    pub fn set_processes(&self, pids: &[u32]) -> Result<()> {
        // First: a thread that is not listed yet is then taken because of the one that starts it.
        self.set("options/event-fork", "1")?;
        let mut listed = BTreeSet::new();
        loop {
            let threads: BTreeSet<u32> = pids.iter().flat_map(|pid| threads(*pid)).collect();
            let new: Vec<_> = threads.difference(&listed).map(u32::to_string).collect();
            if new.is_empty() {
                break;
            }
            self.write("set_event_pid", &new.join(" "))?;
            listed.extend(threads);
        }
        if listed.is_empty() { Err(anyhow!("the selected VMs are gone")) } else { Ok(()) }
    }

    /// Enables an event.
    ///
    /// # Errors
    /// The kernel refuses that.
    pub fn enable(&self, system: &str, event: &str) -> Result<()> {
        self.set(&format!("events/{system}/{event}/enable"), "1")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("exitregs: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// How the names of instances begin: `exitregs-PID-START`, the process and when it started.
const PREFIX: &str = "exitregs-";

/// Removes the instances of processes that are gone. One that a process still has open the kernel does not remove,
/// whoever's it is: a process of another PID namespace is not to be seen from here.
pub(in crate::source) fn remove_abandoned(tracefs: &Path) {
    for entry in fs::read_dir(tracefs.join("instances")).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| owner_is_gone(name, start_time)) {
            // Another run may be removing it as well.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Whether `name` is that of an instance of ours whose process is gone.
fn owner_is_gone(name: &str, start_time: impl Fn(u32) -> Option<u64>) -> bool {
    let Some(owner) = name.strip_prefix(PREFIX) else { return false };
    let mut numbers = owner.split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start)), None | Some(Ok(_)), None) =
        (numbers.next(), numbers.next(), numbers.next(), numbers.next())
    else {
        return false;
    };
    u32::try_from(pid).is_ok_and(|pid| start_time(pid) != Some(start))
}

/// When a process started, in clock ticks since boot; `None` if there is none. proc(5), field 22 of `stat`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may have spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The last error of an `error_log`, as the kernel wrote it, without the time.
pub(in crate::source) fn explanation(log: &str) -> Option<String> {
    let start = log.rfind("\n[").map_or(0, |start| start + 1);
    let last = log[start..].trim_end();
    let text = last.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(last, |(_, text)| text);
    (!text.is_empty()).then(|| format!("  {}", text.replace('\n', "\n  ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_instances_of_dead_processes_are_abandoned() {
        let started = |pid| (pid == 7).then_some(100);
        let gone = |name| owner_is_gone(name, started);
        assert!(gone("exitregs-8-100"), "no such process");
        assert!(gone("exitregs-7-99"), "another process has the pid now");
        assert!(gone("exitregs-8-100-2"));
        assert!(!gone("exitregs-7-100") && !gone("exitregs-7-100-1"), "it runs");
        for other in ["exitregs", "exitregs-", "exitregs-8", "exitregs-x-1", "exitregs-8-1-2-3", "foo-8-100"]
        {
            assert!(!gone(other), "{other}");
        }
    }

    #[test]
    fn this_process_is_not_gone() {
        let pid = std::process::id();
        let start = start_time(pid).unwrap();
        assert!(!owner_is_gone(&format!("{PREFIX}{pid}-{start}"), start_time));
        assert!(threads(pid).contains(&pid));
    }

    #[test]
    fn the_last_error_explains() {
        let log = "[   12.5] event filter parse error: error: Field not found\n  Command: foo == 1\n           ^\n\
            [   13.0] event filter parse error: error: Invalid operator\n  Command: vcpu_id ~ 1\n                   ^\n";
        let text = explanation(log).unwrap();
        assert!(text.starts_with("  event filter parse error: error: Invalid operator\n"), "{text}");
        assert!(text.ends_with('^') && text.contains("vcpu_id ~ 1") && !text.contains("foo"), "{text}");
        assert_eq!(explanation(""), None);
    }
}
