// SPDX-License-Identifier: MIT
//! The events that are traced, and what their records say.

use super::Provider;
use crate::analysis::pairing::{Unknown, What};
use crate::source::decode::Decoder;
use crate::source::format::{Format, FormatError, Layout, Place};
use exitregs_common::event::{Event, KvmEntry, KvmExit, KvmNestedPageFault};

/// The event of a nested entry, which tells the L2.
pub const NESTED_ENTRY: &str = "kvm_nested_vmenter";
/// The event of an exception that KVM injects, which `kvm_entry` does not tell before Linux 7.
pub const EXCEPTION: &str = "kvm_inj_exception";
/// The event of L0's giving L1 an exit of L2's. The patch series, which drops the other event of that name, renames it.
pub const NESTED_EXITS: [&str; 2] = ["kvm_nested_vmexit_inject", "kvm_nested_vmexit"];
/// The events that tell whose a hypercall is. A kernel without the emulation of a hypervisor may lack its event.
pub const HYPERCALLS: [&str; 3] = ["kvm_hypercall", "kvm_hv_hypercall", "kvm_xen_hypercall"];

/// The event of a new thread or process, of the system `task`: it tells whose thread a vCPU's is.
pub const NEW_TASK: &str = "task_newtask";
/// `CLONE_THREAD` of clone(2).
const CLONE_THREAD: u64 = 0x1_0000;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Something about a vCPU.
    Vcpu(What),
    /// The thread has started another.
    NewTask {
        /// The other's pid.
        pid: u32,
        /// It is of the same process; else it is one.
        is_thread: bool,
    },
}

/// How the records of one event are read.
#[derive(Debug, Clone)]
enum Reads {
    Vcpu(Box<Decoder>),
    NewTask { pid: Place, flags: Place },
}

/// How the records of all events are read, by the running kernel's `format` files.
#[derive(Debug, Clone)]
pub struct Events {
    /// Who made those that have COMMON.
    pub provider: Provider,
    decoders: Vec<(u64, &'static str, Reads)>,
    kind: Place,
    thread: Place,
    /// What this kernel's events do not tell.
    pub unknown: Unknown,
}

impl Events {
    /// Reads the descriptions; `format` gives the text of a system's event's `format` file, if the kernel has the event.
    ///
    /// # Errors
    /// An event is missing, or is not as it should be: for instance the kernel lacks the patches.
    pub fn new(
        provider: Provider,
        format: impl Fn(&str, &str) -> Option<String>,
    ) -> Result<Self, FormatError> {
        let format = |name| format(system(provider, name), name).map(|text| Format::parse(&text)).transpose();
        let wanted = |name| format(name)?.ok_or(FormatError::NoEvent(name));
        let exit = wanted(KvmExit::NAME)?;
        let common = |field: &'static str| exit.place(field).ok_or(FormatError::Missing(field));
        let (kind, thread) = (common("common_type")?, common("common_pid")?);
        let mut events = Self { provider, decoders: Vec::new(), kind, thread, unknown: Unknown::default() };
        let entry = wanted(KvmEntry::NAME)?;
        events.unknown = Unknown {
            exit: events.add_whole::<KvmExit>(&exit)?,
            entry: events.add_whole::<KvmEntry>(&entry)?,
            nested_page_fault: 0,
        };
        for name in [NESTED_ENTRY, EXCEPTION] {
            events.add(name, &wanted(name)?)?;
        }
        match format(KvmNestedPageFault::NAME)? {
            Some(fault) => {
                events.unknown.nested_page_fault = events.add_whole::<KvmNestedPageFault>(&fault)?
            }
            None if provider.partial => {}
            None => return Err(FormatError::NoEvent(KvmNestedPageFault::NAME)),
        }
        for name in NESTED_EXITS {
            if let Some(told) = format(name)? {
                events.add(name, &told)?;
                break;
            }
        }
        for name in HYPERCALLS {
            if let Some(hypercall) = format(name)? {
                events.add(name, &hypercall)?;
            }
        }
        if let Some(task) = format(NEW_TASK)? {
            let reads = Reads::NewTask { pid: task.expect("pid")?, flags: task.expect("clone_flags")? };
            events.decoders.push((task.id.into(), NEW_TASK, reads));
        }
        Ok(events)
    }

    /// Adds the event of that name; which of its fields it lacks.
    fn add(&mut self, name: &'static str, format: &Format) -> Result<u32, FormatError> {
        let decoder = Decoder::of(format)?.ok_or(FormatError::NoEvent(name))?;
        let absent = decoder.absent();
        self.decoders.push((format.id.into(), name, Reads::Vcpu(Box::new(decoder))));
        Ok(absent)
    }

    /// As [`add`](Self::add); the event has to have every field, unless the provider's have not.
    fn add_whole<E: Event>(&mut self, format: &Format) -> Result<u32, FormatError> {
        if !self.provider.partial {
            Layout::<E>::of(format)?;
        }
        self.add(E::NAME, format)
    }

    /// The system of an event.
    pub fn system(&self, event: &str) -> &'static str {
        system(self.provider, event)
    }

    /// The names of the events that this kernel has.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.decoders.iter().map(|(_, name, _)| *name)
    }

    /// The fields that this kernel's `kvm_exit` and `kvm_entry` lack.
    pub fn lacks(&self) -> Vec<&'static str> {
        fn named<E: Event>(bits: u32) -> impl Iterator<Item = &'static str> {
            let fields = E::FIELDS.iter().enumerate();
            fields.filter(move |(index, _)| bits & 1 << index != 0).map(|(_, field)| field.name)
        }
        named::<KvmExit>(self.unknown.exit).chain(named::<KvmEntry>(self.unknown.entry)).collect()
    }

    /// The thread of a record and what it says. `None` inside: an event that is not ours. `None`: the record is too
    /// short for what it is.
    pub fn decode(&self, record: &[u8]) -> Option<Option<(u32, Said)>> {
        let kind = self.kind.read(record)?;
        let Some((.., reads)) = self.decoders.iter().find(|(id, ..)| *id == kind) else {
            return Some(None);
        };
        let said = match reads {
            Reads::Vcpu(decoder) => Said::Vcpu(decoder.decode(record)?),
            Reads::NewTask { pid, flags } => Said::NewTask {
                pid: pid.read(record)? as u32,
                is_thread: flags.read(record)? & CLONE_THREAD != 0,
            },
        };
        Some(Some((self.thread.read(record)? as u32, said)))
    }
}

fn system(provider: Provider, event: &str) -> &'static str {
    match event {
        KvmExit::NAME | KvmEntry::NAME | KvmNestedPageFault::NAME => provider.group,
        NEW_TASK => "task",
        _ => "kvm",
    }
}
