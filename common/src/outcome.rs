// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! How an exit ended: what its instruction gave, as far as exit and entry prove it.

use super::detail::Detail;
use super::event::Exit;
use super::flags::{EventInfo, EventType};
use super::gpr::Gpr;
use super::isa::Isa;
use core::fmt::{self, Display};

/// The longest an x86 instruction can be, in bytes.
const LONGEST_INSTRUCTION: u64 = 15;

/// How the instruction that exited ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest goes on behind it.
    Completed,
    /// The guest is to take an exception at it.
    Exception(EventInfo),
    /// Neither is proved.
    Unknown,
    /// No entry has ended the exit.
    NotEnded,
}

impl Outcome {
    /// How `exit` ended.
    pub fn of(exit: &Exit) -> Self {
        if exit.entry_time == 0 {
            return Self::NotEnded;
        }
        if exit.exit.is_nested != exit.entry.is_nested {
            // VMRUN, VMLAUNCH and VMRESUME end with the entry to L2, whose RIP and exceptions are none of L1's.
            return Self::Unknown;
        }
        let rips_known = exit.knows_exit("guest_rip") && exit.knows_entry("rip");
        if rips_known && (1..=LONGEST_INSTRUCTION).contains(&exit.entry.rip.wrapping_sub(exit.exit.guest_rip))
        {
            return Self::Completed;
        }
        let injected = EventInfo(exit.entry.intr_info);
        // An event whose delivery the exit interrupted is injected again: it is not the exit's doing.
        let is_exception = exit.knows_entry("intr_info")
            && injected.is_valid()
            && injected.event_type() == EventType::Exception
            && !vectoring(exit).is_valid();
        // On VMX the RIP of the exit may be unknown. That KVM wrote one, while nobody but KVM could, tells as much
        // where all that KVM does is to skip the instruction; an emulated one it may also begin again.
        let l0_alone = exit.entry_time == exit.next_entry_time;
        let is_skipped = match Detail::of(exit) {
            Detail::Msr { .. } | Detail::Hypercall { .. } | Detail::Cpuid { .. } => true,
            Detail::Io(access) => !access.is_string,
            Detail::None | Detail::Unknown => false,
        };
        let stays = if rips_known { exit.entry.rip == exit.exit.guest_rip } else { exit.rip_written == 0 };
        if is_exception && stays {
            return Self::Exception(injected);
        }
        if !rips_known
            && exit.exit.isa == Isa::Vmx as u32
            && l0_alone
            && is_skipped
            && exit.rip_written != 0
            && !is_exception
        {
            return Self::Completed;
        }
        Self::Unknown
    }
}

/// The event that was being delivered at the exit: SVM's EXITINTINFO, VMX's IDT-vectoring information.
fn vectoring(exit: &Exit) -> EventInfo {
    EventInfo(if exit.exit.isa == Isa::Svm as u32 { exit.exit.intr_info } else { exit.exit.info2 as u32 })
}

/// What the instruction gave, for the exits that have a [`Detail`]; of the others only an exception shows.
#[derive(Debug, Clone, Copy)]
pub struct ExitResult<'a> {
    exit: &'a Exit,
    detail: Detail,
    outcome: Outcome,
}

impl<'a> ExitResult<'a> {
    /// The result of `exit`; `None` if there is none to show.
    pub fn of(exit: &'a Exit) -> Option<Self> {
        let (detail, outcome) = (Detail::of(exit), Outcome::of(exit));
        let shows = detail != Detail::None || matches!(outcome, Outcome::Exception(_));
        shows.then_some(Self { exit, detail, outcome })
    }
}

/// `0x1f`, `ok`, `-KVM_ENOSYS`, `eax 0x1 ebx 0x2 ecx 0x3 edx 0x4`, `#GP`, `?`.
impl Display for ExitResult<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = |gpr| self.exit.result(gpr);
        match self.outcome {
            Outcome::Completed => match self.detail {
                Detail::Msr { write: true, .. } => f.write_str("ok"),
                Detail::Io(access) if !access.is_in || access.is_string => f.write_str("ok"),
                Detail::Msr { write: false, .. } => match (result(Gpr::Rdx), result(Gpr::Rax)) {
                    (Some(rdx), Some(rax)) => write!(f, "{:#x}", rdx << 32 | u64::from(rax as u32)),
                    _ => f.write_str("?"),
                },
                Detail::Cpuid { .. } => {
                    let registers = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(result);
                    let [Some(rax), Some(rbx), Some(rcx), Some(rdx)] = registers else {
                        return f.write_str("?");
                    };
                    write!(
                        f,
                        "eax {:#x} ebx {:#x} ecx {:#x} edx {:#x}",
                        rax as u32, rbx as u32, rcx as u32, rdx as u32
                    )
                }
                detail => match (detail, result(Gpr::Rax)) {
                    (Detail::Hypercall { abi: Some(abi), .. }, Some(rax)) => abi.result(rax).fmt(f),
                    (Detail::Hypercall { abi: None, .. }, Some(rax)) => write!(f, "{rax:#x}"),
                    (Detail::Io(access), Some(rax)) => write!(f, "{:#x}", low_bytes(rax, access.size)),
                    _ => f.write_str("?"),
                },
            },
            Outcome::Exception(event) => event.fmt(f),
            Outcome::Unknown | Outcome::NotEnded => f.write_str("?"),
        }
    }
}

/// The low `size` bytes of a register; all of it if `size` is no operand size.
pub(super) const fn low_bytes(register: u64, size: u8) -> u64 {
    match size {
        1 => register & 0xff,
        2 => register & 0xffff,
        4 => register & 0xffff_ffff,
        _ => register,
    }
}
