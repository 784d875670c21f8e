// SPDX-License-Identifier: MIT
//! What the guest needs to know of its processor, whichever vendor's it is: here [`svm`] and [`vmx`] meet.

use exitregs_common::isa::Isa;
use exitregs_common::svm::ExitCode;
use exitregs_common::vmx::{ExitReason, ExitReasonFlags};

use crate::script::{Guest, Hole, Op};
use crate::truth::{Exits, Handled};

use super::log::Record;
use super::svm;
use super::vmx;

/// A 64-bit code segment.
pub const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// A data segment.
pub const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// Bytes of the GDT, less one: the null descriptor and the two above.
pub const GDT_LIMIT: u16 = 3 * 8 - 1;
/// Bytes of an IDT of 256 gates, less one.
pub const IDT_LIMIT: u16 = 256 * 16 - 1;

/// The processor's state at the start, at both levels.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The instruction set that guests run by.
    pub isa: Isa,
    /// CR0.
    pub cr0: u64,
    /// CR4; with VMXE on VMX.
    pub cr4: u64,
    /// EFER; with SVME on SVM.
    pub efer: u64,
    /// The PAT.
    pub pat: u64,
    /// VMX: what its capability MSRs say.
    pub vmx: vmx::Capabilities,
}

/// Why and how often an instruction exits, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The reason.
    pub reason: Option<u32>,
    /// How often.
    pub exits: Exits,
    /// By whom it is handled.
    pub handled: Option<Handled>,
}

impl Expected {
    /// Whether L1 sees it.
    pub fn reaches_l1(self) -> bool {
        matches!(self.handled, Some(Handled::Reflected | Handled::Forced))
    }
}

/// What an operation of L1 (`guest` is `None`) or of an L2 causes under KVM with nested paging.
pub fn expected(isa: Isa, op: &Op, guest: Option<&Guest>) -> Expected {
    match isa {
        Isa::Svm => svm::expected(op, guest),
        Isa::Vmx => vmx::expected(op, guest),
    }
}

/// Whether L1 gets the exits that an operation of this guest has.
pub fn is_intercepted(isa: Isa, op: &Op, guest: &Guest) -> bool {
    match isa {
        Isa::Svm => svm::is_intercepted(op, guest),
        Isa::Vmx => vmx::is_intercepted(op, guest),
    }
}

/// The reason of a hypercall's exit.
pub const fn hypercall(isa: Isa) -> u32 {
    match isa {
        Isa::Svm => ExitCode::VMMCALL.0,
        Isa::Vmx => ExitReason::VMCALL.0,
    }
}

/// The reason with which an interrupt for L1 ends L2.
pub const fn interrupt(isa: Isa) -> u32 {
    match isa {
        Isa::Svm => ExitCode::INTR.0,
        Isa::Vmx => ExitReason::EXTERNAL_INTERRUPT.0,
    }
}

/// Whether [`Record::exit_code`] says that no L2 was entered.
pub const fn entry_failed(isa: Isa, exit_code: u64) -> bool {
    match isa {
        Isa::Svm => exit_code as u32 == ExitCode::ERR.0,
        Isa::Vmx => {
            exit_code & Record::NOT_ENTERED != 0
                || exit_code as u32 & ExitReasonFlags::FAILED_VMENTRY.bits() != 0
        }
    }
}

/// The entry of a nested page table for the page at `address`.
pub const fn nested_entry(isa: Isa, address: u64, hole: Option<Hole>) -> u64 {
    match isa {
        Isa::Svm => svm::nested_entry(address, hole),
        Isa::Vmx => vmx::ept_entry(address, hole),
    }
}

/// An entry above that: of a large page, or of another table.
pub const fn nested_directory_entry(isa: Isa, address: u64, large: bool) -> u64 {
    const LARGE: u64 = 1 << 7;
    match (isa, large) {
        (Isa::Svm, false) => svm::nested_entry(address, None),
        (Isa::Svm, true) => svm::nested_entry(address, None) | LARGE,
        (Isa::Vmx, false) => vmx::ept_table_entry(address),
        (Isa::Vmx, true) => vmx::ept_entry(address, None) | LARGE,
    }
}
