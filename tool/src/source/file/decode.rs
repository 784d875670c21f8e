// SPDX-License-Identifier: MIT
//! What the records of a file say, by the `format` descriptions that the file has.

use super::Description;
use crate::analysis::pairing::{Operands, What};
use crate::source::format::{Format, FormatError, Layout, Place};
use exitregs_common::event::{Event, GROUP, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::flags::EventInfo;
use exitregs_common::hypercall::Abi;

/// The systems whose events are read: where a file has the same event of both, only that of the first, which has
/// registers.
pub const SYSTEMS: [&str; 2] = [GROUP, "kvm"];

/// Fields that are not numbers of an event's own are read as 0 where a kernel's event lacks them.
type Field = Option<Place>;

/// How the records of one event are read.
#[derive(Debug, Clone)]
enum Decoder {
    Exit(Layout<KvmExit>),
    Entry(Layout<KvmEntry>),
    NestedPageFault(Layout<KvmNestedPageFault>),
    NestedEntry {
        l2: Place,
        event: Field,
    },
    NestedEntryFailed,
    NestedExit {
        exit_reason: Place,
    },
    NestedExitInject {
        exit_reason: Place,
    },
    NestedInterruptExit,
    Exception {
        vector: Place,
        has_error: Field,
        error_code: Field,
    },
    /// `kvm_hypercall`: RAX, RBX, RCX, RDX.
    Hypercall([Place; 4]),
    /// `kvm_hv_hypercall`.
    HyperVHypercall {
        code: Place,
    },
    /// `kvm_xen_hypercall`.
    XenHypercall {
        number: Place,
    },
    Msr {
        write: Place,
        index: Place,
        data: Place,
        exception: Field,
    },
    Cpuid {
        leaf: Place,
        subleaf: Field,
        answer: [Place; 4],
    },
    Pio {
        write: Place,
        port: Place,
        count: Place,
        value: Field,
    },
}

impl Decoder {
    /// That of the event that a `format` file describes; `None` if it is not one that is read.
    fn of(format: &Format) -> Result<Option<Self>, FormatError> {
        let field = |name: &'static str| {
            let missing = || FormatError::NoField { event: format.name.clone(), fields: vec![name] };
            format.place(name).ok_or_else(missing)
        };
        let fields = |names: [&'static str; 4]| -> Result<[Place; 4], FormatError> {
            let [a, b, c, d] = names.map(field);
            Ok([a?, b?, c?, d?])
        };
        let optional = |name| format.place(name);
        Ok(Some(match format.name.as_str() {
            KvmExit::NAME => {
                field("exit_reason")?;
                Self::Exit(Layout::of_any(format)?)
            }
            KvmEntry::NAME => Self::Entry(Layout::of_any(format)?),
            KvmNestedPageFault::NAME => Self::NestedPageFault(Layout::of_any(format)?),
            "kvm_nested_vmenter" | "kvm_nested_vmrun" => {
                Self::NestedEntry { l2: field("vmcb")?, event: optional("event_inj") }
            }
            "kvm_nested_vmenter_failed" => Self::NestedEntryFailed,
            "kvm_nested_vmexit" => match (optional("exit_reason"), optional("rip")) {
                (Some(exit_reason), _) => Self::NestedExit { exit_reason },
                // Linux before 5.10 calls it otherwise.
                (None, Some(_)) => Self::NestedExit { exit_reason: field("exit_code")? },
                // kvm_nested_vmexit_inject, as the patch series calls it.
                (None, None) => Self::NestedExitInject { exit_reason: field("exit_code")? },
            },
            "kvm_nested_vmexit_inject" => Self::NestedExitInject { exit_reason: field("exit_code")? },
            "kvm_nested_intr_vmexit" => Self::NestedInterruptExit,
            "kvm_inj_exception" => Self::Exception {
                vector: field("exception")?,
                has_error: optional("has_error"),
                error_code: optional("error_code"),
            },
            "kvm_hypercall" => Self::Hypercall(fields(["nr", "a0", "a1", "a2"])?),
            "kvm_hv_hypercall" => Self::HyperVHypercall { code: field("code")? },
            "kvm_xen_hypercall" => Self::XenHypercall { number: field("nr")? },
            "kvm_msr" => Self::Msr {
                write: field("write")?,
                index: field("ecx")?,
                data: field("data")?,
                exception: optional("exception"),
            },
            "kvm_cpuid" => Self::Cpuid {
                leaf: field("function")?,
                subleaf: optional("index"),
                answer: fields(["rax", "rbx", "rcx", "rdx"])?,
            },
            "kvm_pio" => Self::Pio {
                write: field("rw")?,
                port: field("port")?,
                count: field("count")?,
                value: optional("val"),
            },
            _ => return Ok(None),
        }))
    }

    /// What a record says; `None` if it is too short.
    #[inline]
    fn decode(&self, record: &[u8]) -> Option<What> {
        let read = |place: &Place| place.read(record);
        // `Some(0)` for what the event does not have.
        let optional = |field: &Field| field.map_or(Some(0), |place| place.read(record));
        Some(match self {
            Self::Exit(layout) => What::Exit(layout.decode(record)?),
            Self::Entry(layout) => What::Entry(layout.decode(record)?),
            Self::NestedPageFault(layout) => What::NestedPageFault(layout.decode(record)?),
            Self::NestedEntry { l2, event } => {
                What::NestedEntry { l2: read(l2)?, event: EventInfo(optional(event)? as u32) }
            }
            Self::NestedEntryFailed => What::NestedEntryFailed,
            Self::NestedExit { exit_reason } => What::NestedExit { exit_reason: read(exit_reason)? as u32 },
            Self::NestedExitInject { exit_reason } => {
                What::NestedExitInject { exit_reason: read(exit_reason)? as u32 }
            }
            Self::NestedInterruptExit => What::NestedInterruptExit,
            Self::Exception { vector, has_error, error_code } => What::Exception {
                vector: read(vector)? as u8,
                error_code: (optional(has_error)? != 0)
                    .then(|| optional(error_code))
                    .flatten()
                    .map(|code| code as u32),
            },
            Self::Hypercall(registers) => {
                let mut values = [0; 4];
                for (value, place) in values.iter_mut().zip(registers) {
                    *value = read(place)?;
                }
                What::Hypercall(Abi::Kvm, Operands { values, known: 0b1111 })
            }
            // The call code is the low half of RCX's low half.
            Self::HyperVHypercall { code } => {
                What::Hypercall(Abi::HyperV, Operands { values: [0, 0, read(code)?, 0], known: 0b0100 })
            }
            Self::XenHypercall { number } => {
                What::Hypercall(Abi::Xen, Operands { values: [read(number)?, 0, 0, 0], known: 0b0001 })
            }
            Self::Msr { write, index, data, exception } => What::Msr {
                write: read(write)? != 0,
                index: read(index)? as u32,
                data: read(data)?,
                exception: optional(exception)? != 0,
            },
            Self::Cpuid { leaf, subleaf, answer } => {
                let mut values = [0; 4];
                for (value, place) in values.iter_mut().zip(answer) {
                    *value = read(place)?;
                }
                let subleaf = match subleaf {
                    Some(place) => Some(read(place)? as u32),
                    None => None,
                };
                What::Cpuid { leaf: read(leaf)? as u32, subleaf, answer: values }
            }
            Self::Pio { write, port, count, value } => What::Pio {
                write: read(write)? != 0,
                port: read(port)? as u16,
                count: read(count)? as u32,
                value: optional(value)? as u32,
            },
        })
    }
}

/// How the records of a file's events are read, by what stands in their headers.
#[derive(Debug, Default)]
pub struct Decoders {
    decoders: Vec<(Decoder, u32)>,
    /// By `common_type`: the place of its decoder, counted from 1.
    places: Vec<u8>,
    kind: Option<Place>,
    thread: Option<Place>,
}

impl Decoders {
    /// Those of the events that a file describes: each with its system and the text of its `format`. What is known of
    /// them goes into `description`. A description that makes no sense, or is of no event that is read, is left out.
    pub fn new<'a>(formats: impl Iterator<Item = (&'a str, &'a str)>, description: &mut Description) -> Self {
        let mut found: Vec<(usize, Format, Decoder)> = Vec::new();
        for (system, text) in formats {
            let Some(rank) = SYSTEMS.iter().position(|known| *known == system) else { continue };
            let Ok(format) = Format::parse(text) else { continue };
            let Ok(Some(decoder)) = Decoder::of(&format) else { continue };
            match found.iter_mut().find(|(_, same, _)| same.name == format.name) {
                Some(same) if same.0 <= rank => {}
                Some(same) => *same = (rank, format, decoder),
                None => found.push((rank, format, decoder)),
            }
        }
        let mut decoders = Self::default();
        for (rank, format, decoder) in found {
            decoders.kind = decoders.kind.or(format.place("common_type"));
            decoders.thread = decoders.thread.or(format.place("common_pid"));
            let unknown = match &decoder {
                Decoder::Exit(layout) => layout.absent(),
                Decoder::Entry(layout) => layout.absent(),
                _ => 0,
            };
            match &decoder {
                Decoder::Exit(_) => description.unknown.exit = unknown,
                Decoder::Entry(_) => description.unknown.entry = unknown,
                Decoder::NestedExit { .. } => description.nested_exits = true,
                Decoder::NestedExitInject { .. } => description.nested_exit_causes = true,
                _ => {}
            }
            description.events.push(format!("{}:{}", SYSTEMS[rank], format.name));
            decoders.decoders.push((decoder, unknown));
            let id = usize::from(format.id);
            if decoders.places.len() <= id {
                decoders.places.resize(id + 1, 0);
            }
            decoders.places[id] = decoders.decoders.len() as u8;
        }
        decoders
    }

    /// The thread of a record, what it says, and which fields it does not have. `Some(None)`: an event that is not read.
    /// `None`: it is too short for what it is.
    #[inline]
    pub fn decode(&self, record: &[u8]) -> Option<Option<(u32, u32, What)>> {
        let (Some(kind), Some(thread)) = (self.kind, self.thread) else { return Some(None) };
        let kind = kind.read(record)? as usize;
        let place = usize::from(self.places.get(kind).copied().unwrap_or(0));
        let Some((decoder, unknown)) = place.checked_sub(1).and_then(|place| self.decoders.get(place)) else {
            return Some(None);
        };
        let what = decoder.decode(record)?;
        Some(Some((thread.read(record)? as u32, *unknown, what)))
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.decoders.is_empty()
    }
}
