// SPDX-License-Identifier: MIT
//! The events that are traced, and what their records say.

use super::Provider;
use crate::analysis::pairing::{Operands, Unknown, What};
use crate::source::format::{Format, FormatError, Layout, Place};
use exitregs_common::event::{Event, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::flags::EventInfo;
use exitregs_common::hypercall::Abi;

/// The event of a nested entry, which tells the L2.
pub const NESTED_ENTRY: &str = "kvm_nested_vmenter";
/// The event of an exception that KVM injects, which `kvm_entry` does not tell before Linux 7.
pub const EXCEPTION: &str = "kvm_inj_exception";
/// The event of L0's giving L1 an exit of L2's. The patch series, which drops the other event of that name, renames it.
pub const NESTED_EXITS: [&str; 2] = ["kvm_nested_vmexit_inject", "kvm_nested_vmexit"];
/// The events that tell whose a hypercall is. A kernel without the emulation of a hypervisor may lack its event.
pub const HYPERCALLS: [(&str, Abi); 3] =
    [("kvm_hypercall", Abi::Kvm), ("kvm_hv_hypercall", Abi::HyperV), ("kvm_xen_hypercall", Abi::Xen)];

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
enum Decoder {
    Exit(Layout<KvmExit>),
    Entry(Layout<KvmEntry>),
    NestedPageFault(Layout<KvmNestedPageFault>),
    NestedEntry { l2: Place, event: Place },
    Exception { vector: Place, has_error: Place, error_code: Place },
    Hypercall(Abi),
    NestedExit { exit_reason: Place },
    NewTask { pid: Place, flags: Place },
}

/// How the records of all events are read, by the running kernel's `format` files.
#[derive(Debug, Clone)]
pub struct Events {
    /// Who made those that have COMMON.
    pub provider: Provider,
    decoders: Vec<(u64, &'static str, Decoder)>,
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
        let format = |name| format(system(provider, name), name);
        let parse = |name: &'static str| {
            let text = format(name).ok_or(FormatError::Missing(name))?;
            Format::parse(&text)
        };
        let exit = parse(KvmExit::NAME)?;
        let common = |field: &'static str| exit.place(field).ok_or(FormatError::Missing(field));
        let (kind, thread) = (common("common_type")?, common("common_pid")?);
        let exit_layout = layout::<KvmExit>(provider, &exit)?;
        let entry = parse(KvmEntry::NAME)?;
        let entry_layout = layout::<KvmEntry>(provider, &entry)?;
        let unknown = Unknown { exit: exit_layout.absent(), entry: entry_layout.absent() };

        let place = |format: &Format, field: &'static str| {
            let missing = || FormatError::NoField { event: format.name.clone(), fields: vec![field] };
            format.place(field).ok_or_else(missing)
        };
        let nested = parse(NESTED_ENTRY)?;
        let nested_entry =
            Decoder::NestedEntry { l2: place(&nested, "vmcb")?, event: place(&nested, "event_inj")? };
        let injected = parse(EXCEPTION)?;
        let exception = Decoder::Exception {
            vector: place(&injected, "exception")?,
            has_error: place(&injected, "has_error")?,
            error_code: place(&injected, "error_code")?,
        };
        let mut decoders = vec![
            (exit.id.into(), KvmExit::NAME, Decoder::Exit(exit_layout)),
            (entry.id.into(), KvmEntry::NAME, Decoder::Entry(entry_layout)),
            (nested.id.into(), NESTED_ENTRY, nested_entry),
            (injected.id.into(), EXCEPTION, exception),
        ];
        if !provider.partial {
            let fault = parse(KvmNestedPageFault::NAME)?;
            let layout = Decoder::NestedPageFault(Layout::of(&fault)?);
            decoders.push((fault.id.into(), KvmNestedPageFault::NAME, layout));
        }
        if let Some((name, text)) = NESTED_EXITS.into_iter().find_map(|name| Some((name, format(name)?))) {
            let told = Format::parse(&text)?;
            let decoder = Decoder::NestedExit { exit_reason: place(&told, "exit_code")? };
            decoders.push((told.id.into(), name, decoder));
        }
        for (name, abi) in HYPERCALLS {
            if let Some(text) = format(name) {
                decoders.push((Format::parse(&text)?.id.into(), name, Decoder::Hypercall(abi)));
            }
        }
        if let Some(text) = format(NEW_TASK) {
            let task = Format::parse(&text)?;
            let new = Decoder::NewTask { pid: place(&task, "pid")?, flags: place(&task, "clone_flags")? };
            decoders.push((task.id.into(), NEW_TASK, new));
        }
        Ok(Self { provider, decoders, kind, thread, unknown })
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
        let Some((.., decoder)) = self.decoders.iter().find(|(id, ..)| *id == kind) else {
            return Some(None);
        };
        let what = match decoder {
            Decoder::Exit(layout) => What::Exit(layout.decode(record)?),
            Decoder::Entry(layout) => What::Entry(layout.decode(record)?),
            Decoder::NestedPageFault(layout) => What::NestedPageFault(layout.decode(record)?),
            Decoder::NestedEntry { l2, event } => {
                What::NestedEntry { l2: l2.read(record)?, event: EventInfo(event.read(record)? as u32) }
            }
            Decoder::Exception { vector, has_error, error_code } => What::Exception {
                vector: vector.read(record)? as u8,
                error_code: (has_error.read(record)? != 0)
                    .then(|| error_code.read(record))
                    .flatten()
                    .map(|code| code as u32),
            },
            // The registers are in kvm_exit.
            Decoder::Hypercall(abi) => What::Hypercall(*abi, Operands::default()),
            Decoder::NestedExit { exit_reason } => {
                What::NestedExitInject { exit_reason: exit_reason.read(record)? as u32 }
            }
            Decoder::NewTask { pid, flags } => {
                let is_thread = flags.read(record)? & CLONE_THREAD != 0;
                let said = Said::NewTask { pid: pid.read(record)? as u32, is_thread };
                return Some(Some((self.thread.read(record)? as u32, said)));
            }
        };
        Some(Some((self.thread.read(record)? as u32, Said::Vcpu(what))))
    }
}

fn system(provider: Provider, event: &str) -> &'static str {
    match event {
        KvmExit::NAME | KvmEntry::NAME | KvmNestedPageFault::NAME => provider.group,
        NEW_TASK => "task",
        _ => "kvm",
    }
}

fn layout<E: Event>(provider: Provider, format: &Format) -> Result<Layout<E>, FormatError> {
    if provider.partial { Layout::of_any(format) } else { Layout::of(format) }
}
