// SPDX-License-Identifier: MIT
//! A running trace: set up, read, taken down.

use super::Tracefs;
use super::events::{EXCEPTION, HYPERCALLS, NESTED_ENTRY, NESTED_EXITS, NEW_TASK};
use super::instance::Instance;
use super::reader::Reader;
use crate::analysis::pairing::{Pairing, Record};
use crate::source::{Counters, Selection};
use anyhow::Result;
use exitregs_common::event::{Event, KvmEntry, KvmExit, KvmNestedPageFault};
use std::any::Any;

/// Each CPU's ring buffer has at least this many KiB.
const LEAST_BUFFER_KIB: usize = 1024;

/// A session. Dropping it removes all that it set up.
pub(super) struct Session {
    /// Before the instance: what is open cannot be removed.
    reader: Reader,
    instance: Instance,
    pairing: Pairing,
    vms: Vec<u32>,
    /// Last: until then the events are used.
    _guard: Option<Box<dyn Any>>,
}

impl Session {
    /// Starts to trace into ring buffers of `buffer_size` bytes altogether.
    pub(super) fn start(tracefs: Tracefs, selection: &Selection, buffer_size: usize) -> Result<Self> {
        let Tracefs { root, events, guard } = tracefs;
        let instance = Instance::new(&root)?;
        // BPF programs' clock, and the user's: clock_gettime(CLOCK_MONOTONIC).
        instance.set("trace_clock", "mono")?;
        // The reader is told of what is overwritten, not of what is refused.
        instance.set("options/overwrite", "1")?;
        let provider = events.provider;
        let faults_tell_all = events.unknown.nested_page_fault == 0;
        let systems: Vec<_> = events.names().map(|name| (name, events.system(name))).collect();
        let reader = Reader::open(&instance, events)?;
        let buffer = (buffer_size / 1024 / reader.cpus().max(1)).max(LEAST_BUFFER_KIB);
        // Rounded up to whole pages.
        instance.write("buffer_size_kb", &buffer.to_string())?;
        if !selection.vms.is_empty() {
            instance.set_processes(&selection.vms)?;
        }
        if let Some(filter) = &selection.filter {
            instance.set_filter(provider.group, KvmExit::NAME, &filter.to_string())?;
        }
        let has_faults = systems.iter().any(|(event, _)| *event == KvmNestedPageFault::NAME);
        if let Some(filter) = selection.nested_page_fault_filter.as_ref().filter(|_| has_faults) {
            instance.set_filter(provider.group, KvmNestedPageFault::NAME, &filter.to_string())?;
        }

        let mut wanted = vec![NEW_TASK, NESTED_ENTRY];
        if selection.exits || !faults_tell_all {
            wanted.extend(NESTED_EXITS);
        }
        if selection.nested_page_faults {
            wanted.push(KvmNestedPageFault::NAME);
        }
        if selection.exits {
            wanted.push(EXCEPTION);
            wanted.extend(HYPERCALLS);
            // The exit last: it must not find its entry disabled.
            wanted.extend([KvmEntry::NAME, KvmExit::NAME]);
        }
        for wanted in wanted {
            if let Some((event, system)) = systems.iter().find(|(event, _)| *event == wanted) {
                instance.enable(system, event)?;
            }
        }
        let pairing = Pairing::new(selection.hypercall_abi_l2);
        Ok(Self { reader, instance, pairing, vms: selection.vms.clone(), _guard: guard })
    }

    /// What has come out since the last call, by time.
    pub(super) fn read(&mut self) -> Result<Vec<Record>> {
        self.reader.read(&mut self.pairing)?;
        Ok(self.selected(Pairing::records))
    }

    /// Events that have been lost since the start.
    pub(super) fn lost(&self) -> Result<u64> {
        self.reader.lost()
    }

    /// Stops; what has not been read yet, and what was lost.
    pub(super) fn finish(&mut self) -> Result<(Vec<Record>, Counters)> {
        self.instance.set("tracing_on", "0")?;
        self.reader.drain(&mut self.pairing)?;
        let records = self.selected(Pairing::finish);
        Ok((records, Counters { lost: self.reader.lost()?, ..Counters::default() }))
    }

    /// The processes that were seen, and their commands' names.
    pub(super) fn commands(&self) -> Vec<(u32, String)> {
        self.reader.commands()
    }

    /// The records of the selected VMs: the kernel also takes those of processes that their VMMs have started.
    fn selected(&mut self, take: impl FnOnce(&mut Pairing) -> Vec<Record>) -> Vec<Record> {
        let mut records = take(&mut self.pairing);
        if !self.vms.is_empty() {
            // 0: a thread that was gone before anybody could ask whose it was; the kernel knew.
            records.retain(|record| record.tgid() == 0 || self.vms.contains(&record.tgid()));
        }
        records
    }
}
