// SPDX-License-Identifier: MIT
//! What the records of KVM's events say, by their `format` descriptions.

use super::format::{Format, FormatError, Layout, Place};
use super::tprobe::definition::{FROM_HARDWARE, HARDWARE_ERROR_CODE, HARDWARE_EXIT_REASON};
use crate::analysis::pairing::{Operands, What};
use exitregs_common::event::{Event, KvmEntry, KvmExit, KvmNestedPageFault, field_bit};
use exitregs_common::flags::EventInfo;
use exitregs_common::hypercall::Abi;
use exitregs_common::vmx::ExitReason;

/// Fields that are not numbers of an event's own are read as 0 where a kernel's event lacks them.
type Field = Option<Place>;

/// Where a dynamic `kvm_nested_page_fault` has what its `host_error_code` is made of, which KVM does after the probe.
#[derive(Debug, Clone)]
pub struct Hardware {
    from_hardware: Place,
    error_code: Place,
    /// VMX's only.
    exit_reason: Field,
}

impl Hardware {
    fn of(format: &Format) -> Option<Self> {
        let number = |name| format.number(name).ok().flatten();
        Some(Self {
            from_hardware: number(FROM_HARDWARE)?,
            error_code: number(HARDWARE_ERROR_CODE)?,
            exit_reason: number(HARDWARE_EXIT_REASON),
        })
    }

    /// The `host_error_code`: 0 if the hardware did not report this fault, or not as one that has an exit qualification.
    fn host_error_code(&self, record: &[u8]) -> Option<u64> {
        let reason = match &self.exit_reason {
            Some(place) => ExitReason(place.read(record)? as u32).basic(),
            None => ExitReason::EPT_VIOLATION,
        };
        let is_told = self.from_hardware.read(record)? != 0 && reason == ExitReason::EPT_VIOLATION;
        if is_told { self.error_code.read(record) } else { Some(0) }
    }
}

/// How the records of one event are read.
#[derive(Debug, Clone)]
pub enum Decoder {
    /// `kvm_exit`.
    Exit(Layout<KvmExit>),
    /// `kvm_entry`.
    Entry(Layout<KvmEntry>),
    /// `kvm_nested_page_fault`.
    NestedPageFault(Layout<KvmNestedPageFault>, Option<Hardware>),
    /// `kvm_nested_vmenter`.
    NestedEntry { l2: Place, event: Field },
    /// `kvm_nested_vmenter_failed`.
    NestedEntryFailed,
    /// `kvm_nested_vmexit`.
    NestedExit { exit_reason: Place },
    /// `kvm_nested_vmexit_inject`.
    NestedExitInject { exit_reason: Place, info1: Field },
    /// `kvm_nested_intr_vmexit`.
    NestedInterruptExit,
    /// `kvm_inj_exception`.
    Exception { vector: Place, has_error: Field, error_code: Field },
    /// `kvm_hypercall`: RAX, RBX, RCX, RDX.
    Hypercall([Place; 4]),
    /// `kvm_hv_hypercall`.
    HyperVHypercall { code: Place },
    /// `kvm_xen_hypercall`.
    XenHypercall { number: Place },
    /// `kvm_msr`.
    Msr { write: Place, index: Place, data: Place, exception: Field },
    /// `kvm_cpuid`.
    Cpuid { leaf: Place, subleaf: Field, answer: [Place; 4] },
    /// `kvm_pio`.
    Pio { write: Place, port: Place, count: Place, value: Field },
}

impl Decoder {
    /// That of the event that a `format` file describes; `None` if it is not one that is read.
    ///
    /// # Errors
    /// The event lacks a field, or has one of another size.
    pub fn of(format: &Format) -> Result<Option<Self>, FormatError> {
        let field = |name| format.expect(name);
        let fields = |names: [&'static str; 4]| -> Result<[Place; 4], FormatError> {
            let [a, b, c, d] = names.map(field);
            Ok([a?, b?, c?, d?])
        };
        let optional = |name| format.number(name);
        let inject = || -> Result<Self, FormatError> {
            Ok(Self::NestedExitInject { exit_reason: field("exit_code")?, info1: optional("exit_info1")? })
        };
        Ok(Some(match format.name.as_str() {
            KvmExit::NAME => {
                field("exit_reason")?;
                Self::Exit(Layout::of_any(format)?)
            }
            KvmEntry::NAME => Self::Entry(Layout::of_any(format)?),
            KvmNestedPageFault::NAME => Self::NestedPageFault(Layout::of_any(format)?, Hardware::of(format)),
            "kvm_nested_vmenter" | "kvm_nested_vmrun" => {
                Self::NestedEntry { l2: field("vmcb")?, event: optional("event_inj")? }
            }
            "kvm_nested_vmenter_failed" => Self::NestedEntryFailed,
            "kvm_nested_vmexit" => match (optional("exit_reason")?, format.place("rip")) {
                (Some(exit_reason), _) => Self::NestedExit { exit_reason },
                // Linux before 5.10 calls it otherwise.
                (None, Some(_)) => Self::NestedExit { exit_reason: field("exit_code")? },
                // kvm_nested_vmexit_inject, as the patch series calls it.
                (None, None) => inject()?,
            },
            "kvm_nested_vmexit_inject" => inject()?,
            "kvm_nested_intr_vmexit" => Self::NestedInterruptExit,
            "kvm_inj_exception" => Self::Exception {
                vector: field("exception")?,
                has_error: optional("has_error")?,
                error_code: optional("error_code")?,
            },
            "kvm_hypercall" => Self::Hypercall(fields(["nr", "a0", "a1", "a2"])?),
            "kvm_hv_hypercall" => Self::HyperVHypercall { code: field("code")? },
            "kvm_xen_hypercall" => Self::XenHypercall { number: field("nr")? },
            "kvm_msr" => Self::Msr {
                write: field("write")?,
                index: field("ecx")?,
                data: field("data")?,
                exception: optional("exception")?,
            },
            "kvm_cpuid" => Self::Cpuid {
                leaf: field("function")?,
                subleaf: optional("index")?,
                answer: fields(["rax", "rbx", "rcx", "rdx"])?,
            },
            "kvm_pio" => Self::Pio {
                write: field("rw")?,
                port: field("port")?,
                count: field("count")?,
                value: optional("val")?,
            },
            _ => return Ok(None),
        }))
    }

    /// What a record says; `None` if it is too short.
    #[inline(always)]
    pub fn decode(&self, record: &[u8]) -> Option<What> {
        let read = |place: &Place| place.read(record);
        // `Some(0)` for what the event does not have.
        let optional = |field: &Field| field.map_or(Some(0), |place| place.read(record));
        // `Some(None)` likewise.
        let known = |field: &Field| field.map_or(Some(None), |place| place.read(record).map(Some));
        Some(match self {
            Self::Exit(layout) => What::Exit(layout.decode(record)?),
            Self::Entry(layout) => What::Entry(layout.decode(record)?),
            Self::NestedPageFault(layout, hardware) => {
                let mut fault = layout.decode(record)?;
                if let Some(hardware) = hardware {
                    fault.host_error_code = hardware.host_error_code(record)?;
                }
                What::NestedPageFault(fault)
            }
            Self::NestedEntry { l2, event } => {
                What::NestedEntry { l2: read(l2)?, event: EventInfo(optional(event)? as u32) }
            }
            Self::NestedEntryFailed => What::NestedEntryFailed,
            Self::NestedExit { exit_reason } => What::NestedExit { exit_reason: read(exit_reason)? as u32 },
            Self::NestedExitInject { exit_reason, info1 } => {
                What::NestedExitInject { exit_reason: read(exit_reason)? as u32, info1: known(info1)? }
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
                let subleaf = known(subleaf)?.map(|subleaf| subleaf as u32);
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

    /// Bit n set: the event, a `kvm_exit`, `kvm_entry` or `kvm_nested_page_fault`, lacks the field n of its table.
    pub fn absent(&self) -> u32 {
        match self {
            Self::NestedPageFault(layout, None) => layout.absent(),
            Self::NestedPageFault(layout, Some(_)) => layout.absent() & !HOST_ERROR_CODE,
            Self::Exit(layout) => layout.absent(),
            Self::Entry(layout) => layout.absent(),
            _ => 0,
        }
    }
}

const HOST_ERROR_CODE: u32 = field_bit(KvmNestedPageFault::FIELDS, "host_error_code");
