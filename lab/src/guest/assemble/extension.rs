// SPDX-License-Identifier: MIT
//! What L1 does by the instructions of one virtualization extension.

use exitregs_common::isa::Isa;
use iced_x86::code_asm::AsmMemoryOperand;

use super::svm::Svm;
use super::vmx::Vmx;
use super::{Assembler, Emit, L2Step};
use crate::script::{Exception, Value};

/// Emits code for L1. RAX, RBX, RCX, RDX, RSI, RDI, R8 and R13 may be changed by all of it.
pub(super) trait Extension {
    /// Before the first turn.
    fn start(&self, a: &mut Assembler) -> Emit;
    /// Subroutines, after L1's code.
    fn routines(&self, a: &mut Assembler) -> Emit;
    /// Runs L2 until it exits, with its registers before and after that.
    fn enter(&self, a: &mut Assembler, guest: usize) -> Emit;
    /// Where the exit has left L2's RIP, a quadword.
    fn l2_rip(&self, a: &Assembler, guest: usize) -> AsmMemoryOperand;
    /// L2 goes on at the address in RAX.
    fn set_l2_rip(&self, a: &mut Assembler, guest: usize) -> Emit;
    /// L2 goes on with this value in RAX, RBX, RCX or RDX (0 to 3).
    fn set_l2_register(&self, a: &mut Assembler, guest: usize, register: usize, value: Value) -> Emit;
    /// L2 goes on with this exception.
    fn inject(&self, a: &mut Assembler, guest: usize, exception: Exception) -> Emit;
    /// Puts L2 into its first state.
    fn reset(&self, a: &mut Assembler, guest: usize) -> Emit;
    /// Makes sure that no access goes by what the nested page table of L2 was.
    fn flush(&self, a: &mut Assembler) -> Emit;
    /// L2 halts without L1 intercepting that, until an interrupt brings it back to L1.
    fn halt<'a>(&self, a: &mut Assembler<'a>, guest: usize, item: L2Step<'a>) -> Emit;
}

/// That of an instruction set.
pub(super) fn of(isa: Isa) -> &'static dyn Extension {
    match isa {
        Isa::Svm => &Svm,
        Isa::Vmx => &Vmx,
    }
}
