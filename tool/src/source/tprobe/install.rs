// SPDX-License-Identifier: MIT
//! Dynamic events in the kernel: installed, listed, removed.
//!
//! They belong to all users of the host at once, for a kernel may take one probe for a tracepoint only. Events that a run
//! needs for itself are removed by the last run that used them, be it the next one after one that was killed; those that
//! somebody asked for stay until they are removed. A file says that they are to stay, for the kernel does not. Who uses them
//! says a lock (flock(2)) on tracefs' file with the definitions: shared by all that use them, exclusive for who removes them.

use super::definition::Definition;
use crate::source::tracefs::{file, instance};
use anyhow::{Context, Result, anyhow};
use exitregs_common::event::GROUP;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// While it exists, the events are to stay.
const KEPT: &str = "/run/exitregs/events";

/// The file of tracefs with the definitions.
const DYNAMIC_EVENTS: &str = "dynamic_events";

/// Where dynamic events are installed.
#[derive(Debug, Clone)]
pub struct Events {
    tracefs: PathBuf,
}

/// Why an event, or the module that makes it, cannot be removed: somebody uses it.
#[derive(Debug, thiserror::Error)]
#[error("{what} is in use{}", .by.iter().fold(String::new(), |text, user| format!("{text}\n  {user}")))]
pub struct InUse {
    /// What.
    pub what: String,
    /// Who.
    pub by: Vec<String>,
}

impl InUse {
    fn event(event: &str, by: Vec<String>) -> Self {
        Self { what: format!("{GROUP}:{event}"), by }
    }
}

/// The events as a run uses them. When it is dropped they are removed, unless another run uses them or they are to stay.
#[derive(Debug)]
pub struct Used {
    events: Events,
    lock: File,
}

impl Used {
    /// From now on they stay when no run uses them any more.
    ///
    /// # Errors
    /// The file that says so cannot be written.
    pub fn keep(&self) -> Result<()> {
        let folder = Path::new(KEPT).parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(KEPT, "").with_context(|| format!("cannot write {KEPT}"))
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        // The lock is given up before it is asked for anew: of two runs that end at once, the later one gets it.
        if self.lock.try_lock().is_err() || are_kept() {
            return;
        }
        match self.events.remove_all(false) {
            Ok(_) => {}
            // Somebody else's tool has been told to use them, and the next run will find them.
            Err(error) if error.is::<InUse>() => eprintln!("exitregs: the dynamic events stay: {error:#}"),
            Err(error) => eprintln!("exitregs: {error:#}"),
        }
    }
}

impl Events {
    /// Those of a mounted tracefs.
    pub fn of(tracefs: &Path) -> Self {
        Self { tracefs: tracefs.to_owned() }
    }

    /// The definitions of our group's events, as the kernel shows them, in the order in which they were made.
    ///
    /// # Errors
    /// tracefs cannot be read.
    pub fn list(&self) -> Result<Vec<String>> {
        let text = file::read(&self.tracefs.join(DYNAMIC_EVENTS))?;
        Ok(text.lines().filter(|line| name(line).is_some()).map(str::to_owned).collect())
    }

    /// Makes the events that are not there; those that are there with another definition, or do not happen any more, are made
    /// anew. Returns the names of those that it made. If one of them cannot be made, none stays that is not used.
    ///
    /// # Errors
    /// The kernel refuses a definition; an event is in use with another one ([`InUse`]); somebody else's probe is where ours
    /// should be.
    pub fn install(&self, definitions: &[Definition]) -> Result<(Used, Vec<&'static str>)> {
        let lock = self.definitions()?;
        if lock.try_lock().is_ok() {
            // Not under another run: one that has read what an event is like, and is about to enable it, would not know the
            // new one.
            let there = self.list()?;
            for definition in definitions {
                if there.contains(&definition.to_string()) && self.is_dead(definition) {
                    // In use by another tool, it stays as it is.
                    let _ = self.remove_one(definition.name);
                }
            }
        }
        lock.lock_shared().context("cannot lock the dynamic events")?;
        let used = Used { events: self.clone(), lock };
        let made = self.make_all(definitions)?;
        Ok((used, made))
    }

    fn definitions(&self) -> Result<File> {
        let path = self.tracefs.join(DYNAMIC_EVENTS);
        // Never for writing: that would take everybody's events away.
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    fn make_all(&self, definitions: &[Definition]) -> Result<Vec<&'static str>> {
        let there = self.list()?;
        let mut made: Vec<&'static str> = Vec::new();
        for definition in definitions {
            let wanted = definition.to_string();
            let is = there.iter().find(|line| name(line) == Some(definition.name));
            if is.is_some_and(|line| *line == wanted) {
                continue;
            }
            if is.is_some() {
                self.remove_one(definition.name)?;
            }
            self.make(definition, &wanted)?;
            made.push(definition.name);
        }
        Ok(made)
    }

    /// Whether the event does not happen any more: its function was unloaded with its module, and the kernel, which finds a
    /// tracepoint again when that is loaded anew, does not find functions.
    fn is_dead(&self, definition: &Definition) -> bool {
        /// What the kernel puts on a tracepoint to probe it: on Linux 6.12 while there is the event, later while it is enabled.
        const TRACEPOINT: &str = "__probestub_kvm_exit";
        if !definition.is_on_function() {
            return false;
        }
        let functions = file::read(&self.tracefs.join("enabled_functions")).unwrap_or_default();
        let is_probed = |function| functions.lines().any(|line| line.split(' ').next() == Some(function));
        is_probed(TRACEPOINT) && !is_probed(definition.on)
    }

    fn make(&self, definition: &Definition, text: &str) -> Result<()> {
        let Err(error) = file::write(&self.tracefs.join(DYNAMIC_EVENTS), text) else { return Ok(()) };
        if self.list()?.iter().any(|line| line == text) {
            // Another run was faster. The kernel's error then depends on its version.
            return Ok(());
        }
        let what = format!("cannot make {GROUP}:{}", definition.name);
        if kind(&error) == Some(ErrorKind::AlreadyExists) {
            let other = self.other_probe(definition)?;
            return Err(anyhow!(
                "{what}: the kernel takes one probe for the tracepoint {}, and there is one already{}\n  \
                 remove that first, or use another source",
                definition.on,
                other.map(|line| format!(": {line}")).unwrap_or_default()
            ));
        }
        let log = file::read(&self.tracefs.join("error_log")).unwrap_or_default();
        Err(match instance::explanation(&log) {
            Some(why) => error.context(format!("{what}\n{why}")),
            None => error.context(what),
        })
    }

    /// Somebody else's probe on the same tracepoint.
    fn other_probe(&self, definition: &Definition) -> Result<Option<String>> {
        let text = file::read(&self.tracefs.join(DYNAMIC_EVENTS))?;
        let on_same = |line: &&str| line.starts_with('t') && line.split(' ').nth(1) == Some(definition.on);
        Ok(text.lines().find(on_same).map(str::to_owned))
    }

    /// Removes our group's events and returns their names. Those in use stay, unless `force` disables them everywhere.
    ///
    /// # Errors
    /// [`InUse`], of the first that is; or tracefs cannot be written.
    pub fn remove(&self, force: bool) -> Result<Vec<String>> {
        let lock = self.definitions()?;
        let removed = if lock.try_lock().is_ok() || force {
            self.remove_all(force)?
        } else if let Some(event) = self.list()?.first().and_then(|line| name(line)) {
            return Err(InUse::event(event, vec!["a run of exitregs uses it".to_owned()]).into());
        } else {
            // Whoever has the lock may be making them.
            Vec::new()
        };
        do_not_keep();
        Ok(removed)
    }

    fn remove_all(&self, force: bool) -> Result<Vec<String>> {
        // Killed runs use nothing any more.
        instance::remove_abandoned(&self.tracefs);
        let names: Vec<_> =
            self.list()?.iter().filter_map(|line| name(line).map(str::to_owned)).rev().collect();
        if let (false, Some(used)) = (force, names.iter().find_map(|name| self.use_of(name))) {
            return Err(used.into());
        }
        for name in &names {
            if force {
                self.disable(name)?;
            }
            self.remove_one(name)?;
        }
        Ok(names)
    }

    fn remove_one(&self, event: &str) -> Result<()> {
        let Err(error) = file::write(&self.tracefs.join(DYNAMIC_EVENTS), &format!("-:{GROUP}/{event}"))
        else {
            return Ok(());
        };
        match kind(&error) {
            // Another run was faster.
            Some(ErrorKind::NotFound) => Ok(()),
            Some(ErrorKind::ResourceBusy) => Err(self
                .use_of(event)
                .unwrap_or_else(|| InUse::event(event, vec!["perf or a BPF program uses it".to_owned()]))
                .into()),
            _ => Err(error.context(format!("cannot remove {GROUP}:{event}"))),
        }
    }

    /// Who has an event enabled, as far as tracefs shows it: perf and BPF programs it does not.
    pub fn use_of(&self, event: &str) -> Option<InUse> {
        let folders = self.folders();
        let enabled = |folder: &&PathBuf| {
            let file = folder.join(format!("events/{GROUP}/{event}/enable"));
            file::read(&file).is_ok_and(|text| text.trim() != "0")
        };
        let users =
            folders.iter().filter(enabled).map(|folder| format!("it is enabled in {}", folder.display()));
        let by: Vec<_> = users.collect();
        (!by.is_empty()).then(|| InUse::event(event, by))
    }

    /// Disables an event everywhere, as far as tracefs can.
    ///
    /// # Errors
    /// tracefs cannot be written.
    pub fn disable(&self, event: &str) -> Result<()> {
        for folder in self.folders() {
            let file = folder.join(format!("events/{GROUP}/{event}/enable"));
            // An instance may be gone by now.
            if file.exists() {
                file::write(&file, "0")?;
            }
        }
        Ok(())
    }

    /// The top folder of tracefs and those of its instances.
    fn folders(&self) -> Vec<PathBuf> {
        let instances = fs::read_dir(self.tracefs.join("instances")).into_iter().flatten().flatten();
        std::iter::once(self.tracefs.clone()).chain(instances.map(|entry| entry.path())).collect()
    }
}

/// Whether they stay.
pub fn are_kept() -> bool {
    Path::new(KEPT).exists()
}

/// They need not stay any more.
fn do_not_keep() {
    // It was not there, or no directory is: nothing says that they stay.
    let _ = fs::remove_file(KEPT);
    let _ = Path::new(KEPT).parent().map(fs::remove_dir);
}

/// The name of one of our group's events, from its definition.
pub fn name(definition: &str) -> Option<&str> {
    definition.split(' ').next()?.split_once(':')?.1.strip_prefix(GROUP)?.strip_prefix('/')
}

fn kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_groups_events_have_a_name() {
        assert_eq!(name("t:exitregs/kvm_exit kvm_exit rax=+8($arg1):x64"), Some("kvm_exit"));
        assert_eq!(
            name("f16:exitregs/kvm_nested_page_fault nested_svm_inject_npf_exit"),
            Some("kvm_nested_page_fault")
        );
        for other in ["t:exitregs2/kvm_exit kvm_exit", "p:kprobes/p_x x", "", "exitregs/kvm_exit"] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
