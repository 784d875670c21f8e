// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What SVM and VMX report in the same form: page-fault error codes, vectors, event information, port accesses.
//!
//! Flags print as their names joined by `|`; bits without a name follow as one hexadecimal number; no bit is `0`.

use super::prelude::bitflags;
use core::fmt;

/// Writes `names` joined by `|`, then what of `bits` they do not cover.
pub(super) fn write_flags(
    f: &mut fmt::Formatter<'_>,
    bits: u64,
    names: impl Iterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let (mut rest, mut separator) = (bits, "");
    for (name, flag) in names {
        write!(f, "{separator}{name}")?;
        rest &= !flag;
        separator = "|";
    }
    if rest != 0 {
        write!(f, "{separator}{rest:#x}")
    } else if bits == 0 {
        f.write_str("0")
    } else {
        Ok(())
    }
}

/// Gives a `bitflags!` type the `Display` that the module comment describes.
macro_rules! display_flags {
    ($($Flags:ty),* $(,)?) => {
        $(impl core::fmt::Display for $Flags {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                let names = self.iter_names().map(|(name, flag)| (name, u64::from(flag.bits())));
                super::flags::write_flags(f, u64::from(self.bits()), names)
            }
        })*
    };
}
pub(super) use display_flags;

bitflags! {
    /// A page-fault error code: of #PF, of a nested page fault (EXITINFO1 of SVM's `npf`), and as KVM's MMU passes it
    /// on. `PFERR_*` in arch/x86/include/asm/kvm_host.h; SDM Vol. 3A "Page-Fault Exceptions"; APM Vol. 2 sections 8.4.2
    /// and 15.25.6.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PageFaultError: u64 {
        /// The page was present: a protection violation.
        const PRESENT = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
        /// The access was made at CPL 3.
        const USER = 1 << 2;
        /// A reserved bit was set in a paging-structure entry.
        const RSVD = 1 << 3;
        /// The access was an instruction fetch.
        const FETCH = 1 << 4;
        /// A protection key forbade the access.
        const PK = 1 << 5;
        /// The access was to a shadow stack.
        const SS = 1 << 6;
        /// The access broke a rule of SGX.
        const SGX = 1 << 15;
        /// The reverse map table forbade the access (SEV-SNP).
        const GUEST_RMP = 1 << 31;
        /// The nested fault came while translating the guest's final physical address.
        const GUEST_FINAL = 1 << 32;
        /// The nested fault came while translating the guest's page tables.
        const GUEST_PAGE = 1 << 33;
        /// The guest's effective C-bit was 1 (SEV-SNP).
        const GUEST_ENC = 1 << 34;
        /// PVALIDATE or RMPADJUST met a page size other than the RMP's (SEV-SNP).
        const GUEST_SIZEM = 1 << 35;
        /// A VMPL permission check failed (SEV-SNP).
        const GUEST_VMPL = 1 << 36;
        /// The shadow-stack check of nested paging failed.
        const GUEST_SSS = 1 << 37;
        /// KVM's own: an access the instruction makes implicitly, such as to a descriptor table.
        const IMPLICIT_ACCESS = 1 << 48;
        /// KVM's own: an access to the guest's private memory.
        const PRIVATE_ACCESS = 1 << 49;
    }
}

display_flags!(PageFaultError);

/// The vector of an exception by its mnemonic.
pub fn exception_by_name(name: &str) -> Option<u8> {
    (0..32).find(|vector| exception_name(*vector) == Some(name))
}

/// The mnemonic of an exception vector (`#PF` for 14), `NMI` for 2; `None` for vectors without one.
/// APM Vol. 2 Table 8-1; SDM Vol. 3A "Protected-Mode Exceptions and Interrupts".
pub const fn exception_name(vector: u8) -> Option<&'static str> {
    Some(match vector {
        0 => "#DE",
        1 => "#DB",
        2 => "NMI",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        20 => "#VE",
        21 => "#CP",
        28 => "#HV",
        29 => "#VC",
        30 => "#SX",
        _ => return None,
    })
}

/// What kind of event an [`EventInfo`] describes. `EVENT_TYPE_*` in arch/x86/include/asm/trapnr.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventType {
    /// An external, or virtual, interrupt.
    Interrupt = 0,
    /// Not defined.
    Reserved = 1,
    /// A non-maskable interrupt.
    Nmi = 2,
    /// An exception that the processor raised.
    Exception = 3,
    /// `INT n`.
    SoftwareInterrupt = 4,
    /// `INT1` (VMX).
    PrivilegedSoftwareException = 5,
    /// `INT3` or `INTO` (VMX).
    SoftwareException = 6,
    /// Anything else, such as a pending monitor trap flag (VMX).
    Other = 7,
}

/// An event that was being delivered or is to be injected: bits 31:0 of SVM's EXITINTINFO and EVENTINJ (APM Vol. 2
/// sections 15.7.2 and 15.20), and VMX's interruption-information fields (SDM Vol. 3C "VM-Exit Interruption-Information
/// Field"). It is `intr_info` of `kvm_exit` and `kvm_entry`; the error code is a field of its own there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventInfo(pub u32);

impl EventInfo {
    /// Bit 31: there is an event; without it every other bit is meaningless.
    pub const VALID: u32 = 1 << 31;
    /// Bit 11: the event has an error code.
    pub const ERROR_CODE_VALID: u32 = 1 << 11;
    /// Bit 12, VM-exit information of VMX only: the IRET that faulted had unblocked NMIs.
    pub const NMI_UNBLOCKED: u32 = 1 << 12;
    /// Bits 10:8: the [`EventType`].
    pub const TYPE_MASK: u32 = 7 << 8;
    /// Bits 10:8 of an exception.
    pub const TYPE_EXCEPTION: u32 = (EventType::Exception as u32) << 8;

    /// Whether there is an event.
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Whether the event has an error code.
    pub const fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE_VALID != 0
    }

    /// The vector, bits 7:0.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The kind of event, bits 10:8.
    pub const fn event_type(self) -> EventType {
        match (self.0 >> 8) & 7 {
            0 => EventType::Interrupt,
            1 => EventType::Reserved,
            2 => EventType::Nmi,
            3 => EventType::Exception,
            4 => EventType::SoftwareInterrupt,
            5 => EventType::PrivilegedSoftwareException,
            6 => EventType::SoftwareException,
            _ => EventType::Other,
        }
    }
}

/// `interrupt 0xec`, `NMI`, `#PF`, `INT 0x80`; `none` if not valid.
impl fmt::Display for EventInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_valid() {
            return f.write_str("none");
        }
        let vector = self.vector();
        match self.event_type() {
            EventType::Interrupt => write!(f, "interrupt {vector:#x}"),
            EventType::Nmi => f.write_str("NMI"),
            EventType::SoftwareInterrupt => write!(f, "INT {vector:#x}"),
            EventType::Exception | EventType::PrivilegedSoftwareException | EventType::SoftwareException => {
                match exception_name(vector) {
                    Some(name) => f.write_str(name),
                    None => write!(f, "exception {vector:#x}"),
                }
            }
            EventType::Other => write!(f, "other event {vector:#x}"),
            EventType::Reserved => write!(f, "reserved event {vector:#x}"),
        }
    }
}

/// A port access, from whichever processor reported it ([`super::svm::IoInfo`], [`super::vmx::IoQualification`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// Bytes moved at once: 1, 2 or 4; 0 if the report named none of these.
    pub size: u8,
    /// IN or INS; else OUT or OUTS.
    pub is_in: bool,
    /// INS or OUTS: the data is in memory, not in AL, AX or EAX.
    pub is_string: bool,
    /// The string instruction has a REP prefix.
    pub is_rep: bool,
}

/// `in 0x3f8 size 1`, `rep outs 0x3f8 size 2`.
impl fmt::Display for PortAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rep = if self.is_rep { "rep " } else { "" };
        let direction = if self.is_in { "in" } else { "out" };
        let string = if self.is_string { "s" } else { "" };
        write!(f, "{rep}{direction}{string} {:#x} size {}", self.port, self.size)
    }
}
