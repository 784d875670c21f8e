// SPDX-License-Identifier: MIT
//! How L1 runs an L2 by VMRUN, looks at its exit and changes its state.

use std::mem::offset_of;

use exitregs_common::svm::ExitCode;
use iced_x86::code_asm::*;

use super::super::layout::{GuestLayout, PAGE, saved};
use super::super::log::{Failure, Record};
use super::super::site::Instruction;
use super::super::svm::{self, Expected, Vmcb};
use super::{Assembler, Emit, Level, RFLAGS_IF};
use crate::script::{Exception, Hole, Value};
use crate::truth::{Exits, Handled};

/// Registers that #VMEXIT does not save and that L1 uses.
const L2_REGISTERS: [(AsmRegister64, u64); 7] = [
    (rbx, saved::RBX),
    (rcx, saved::RCX),
    (rdx, saved::RDX),
    (rsi, saved::RSI),
    (rdi, saved::RDI),
    (r9, saved::R9),
    (r11, saved::R11),
];

impl Assembler<'_> {
    /// VMRUN, with L2's registers before and after it.
    pub(super) fn enter(&mut self, guest: usize) -> Emit {
        let GuestLayout { vmcb, registers, .. } = *self.guest(guest);
        let id = self.site(
            Instruction::Vmrun { guest },
            None,
            Expected { reason: Some(ExitCode::VMRUN), exits: Exits::Once, handled: Some(Handled::L0) },
        );
        self.records += 1;
        for (register, offset) in L2_REGISTERS {
            self.a.mov(register, qword_ptr(registers + offset))?;
        }
        self.a.mov(rax, vmcb)?;
        self.begin(Level::L1, id)?;
        self.place_instruction(id)?;
        self.a.vmrun()?;
        self.place_resume(id)?;
        self.end(Level::L1)?;
        for (register, offset) in L2_REGISTERS {
            self.a.mov(qword_ptr(registers + offset), register)?;
        }
        self.a.mov(rax, qword_ptr(vmcb + offset_of!(Vmcb, control.exit_code) as u64))?;
        self.a.mov(qword_ptr(r8 + offset_of!(Record, exit_code) as i32), rax)?;
        self.a.mov(qword_ptr(vmcb + offset_of!(Vmcb, control.event_inj) as u64), 0)
    }

    /// The exit must be that of this site, for this reason.
    pub(super) fn expect(&mut self, guest: usize, site: u32, code: ExitCode) -> Emit {
        self.a.mov(edx, site)?;
        self.a.mov(ebx, code.0)?;
        let pending = self.pending(site);
        match (pending.elsewhere, pending.instruction) {
            (Some(address), _) => self.a.mov(rcx, address)?,
            (None, instruction) => self.a.lea(rcx, ptr(instruction))?,
        }
        self.a.call(self.check[guest])
    }

    /// Compares the exit of L2 with what is expected: RBX the code, RCX the RIP, RDX the site.
    pub(super) fn check_routine(&mut self, guest: usize) -> Emit {
        let vmcb = self.guest(guest).vmcb;
        let mut wrong = self.a.create_label();
        let mut label = self.check[guest];
        self.a.set_label(&mut label)?;
        self.a.mov(rax, qword_ptr(vmcb + offset_of!(Vmcb, control.exit_code) as u64))?;
        self.a.cmp(eax, ebx)?;
        self.a.jne(wrong)?;
        self.a.cmp(self.l2_rip(guest), rcx)?;
        self.a.jne(wrong)?;
        self.a.ret()?;
        self.a.set_label(&mut wrong)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, kind))), Failure::UNEXPECTED_EXIT as i32)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, site))), rdx)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, expected_code))), rbx)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, expected_rip))), rcx)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, code))), rax)?;
        for (from, to) in [
            (offset_of!(Vmcb, save.rip), offset_of!(Failure, rip)),
            (offset_of!(Vmcb, control.exit_info_1), offset_of!(Failure, info1)),
            (offset_of!(Vmcb, control.exit_info_2), offset_of!(Failure, info2)),
        ] {
            self.a.mov(rax, qword_ptr(vmcb + from as u64))?;
            self.a.mov(qword_ptr(self.failure(to)), rax)?;
        }
        self.a.jmp(self.fail)
    }

    /// Where L2 goes on, in its VMCB.
    pub(super) fn l2_rip(&self, guest: usize) -> AsmMemoryOperand {
        qword_ptr(self.guest(guest).vmcb + offset_of!(Vmcb, save.rip) as u64)
    }

    /// L2 goes on there. Changes RAX.
    pub(super) fn set_l2_rip(&mut self, guest: usize, label: CodeLabel) -> Emit {
        self.a.lea(rax, ptr(label))?;
        self.a.mov(self.l2_rip(guest), rax)
    }

    /// L2 goes on with this value in RAX, RBX, RCX or RDX (0 to 3). Changes L1's RAX.
    pub(super) fn set_l2_register(&mut self, guest: usize, register: usize, value: Value) -> Emit {
        let GuestLayout { vmcb, registers, .. } = *self.guest(guest);
        let place = match register {
            0 => vmcb + offset_of!(Vmcb, save.rax) as u64,
            1 => registers + saved::RBX,
            2 => registers + saved::RCX,
            _ => registers + saved::RDX,
        };
        self.load(rax, value)?;
        self.a.mov(qword_ptr(place), rax)
    }

    /// L2 goes on with this exception. Changes RAX.
    pub(super) fn inject(&mut self, guest: usize, exception: Exception) -> Emit {
        self.a.mov(rax, svm::event_injection(exception))?;
        self.a.mov(qword_ptr(self.guest(guest).vmcb + offset_of!(Vmcb, control.event_inj) as u64), rax)
    }

    /// L2 goes on with RFLAGS.IF clear.
    pub(super) fn disable_l2_interrupts(&mut self, guest: usize) -> Emit {
        let rflags = self.guest(guest).vmcb + offset_of!(Vmcb, save.rflags) as u64;
        self.a.and(dword_ptr(rflags), !RFLAGS_IF)
    }

    /// Puts the VMCB back into its first state.
    pub(super) fn reset_l2(&mut self, guest: usize) -> Emit {
        let layout = self.guest(guest);
        self.a.cld()?;
        self.a.mov(rsi, layout.pristine_vmcb)?;
        self.a.mov(rdi, layout.vmcb)?;
        self.a.mov(ecx, (PAGE / 8) as u32)?;
        self.a.rep().movsq()
    }

    pub(super) fn set_hole(&mut self, guest: usize, index: u64, hole: Option<Hole>) -> Emit {
        let address = self.options.layout.holes + index * PAGE;
        self.a.mov(rax, svm::nested_entry(address, hole))?;
        self.a.mov(qword_ptr(self.guest(guest).hole_entry(index)), rax)
    }
}
