// SPDX-License-Identifier: MIT
//! How L1 runs an L2 by VMRUN, looks at its exit and changes its state.

use std::mem::offset_of;

use exitregs_common::svm::ExitCode;
use iced_x86::code_asm::*;

use super::super::layout::{GuestLayout, PAGE, saved};
use super::super::log::{Failure, Record};
use super::super::site::{Entering, Instruction};
use super::super::svm::{self, Vmcb};
use super::super::vendor::Expected;
use super::extension::Extension;
use super::{Assembler, Emit, L2Step, Level, RFLAGS_IF};
use crate::script::{Exception, Op, Step, SvmOp, Value};
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

/// By SVM.
pub(super) struct Svm;

impl Extension for Svm {
    fn start(&self, _a: &mut Assembler) -> Emit {
        // The VMCBs are in memory, and EFER.SVME is set.
        Ok(())
    }

    fn routines(&self, a: &mut Assembler) -> Emit {
        (0..a.check.len()).try_for_each(|guest| check_routine(a, guest))
    }

    fn enter(&self, a: &mut Assembler, guest: usize) -> Emit {
        let GuestLayout { control: vmcb, registers, .. } = *a.guest(guest);
        let id = a.site(
            Instruction::Enter { guest, by: Entering::Vmrun },
            None,
            Expected { reason: Some(ExitCode::VMRUN.0), exits: Exits::Once, handled: Some(Handled::L0) },
        );
        a.records += 1;
        for (register, offset) in L2_REGISTERS {
            a.a.mov(register, qword_ptr(registers + offset))?;
        }
        a.a.mov(rax, vmcb)?;
        a.begin(Level::L1, id)?;
        a.place_instruction(id)?;
        a.a.vmrun()?;
        a.place_resume(id)?;
        a.end(Level::L1)?;
        for (register, offset) in L2_REGISTERS {
            a.a.mov(qword_ptr(registers + offset), register)?;
        }
        a.a.mov(rax, qword_ptr(vmcb + offset_of!(Vmcb, control.exit_code) as u64))?;
        a.a.mov(qword_ptr(r8 + offset_of!(Record, exit_code) as i32), rax)?;
        a.a.mov(qword_ptr(vmcb + offset_of!(Vmcb, control.event_inj) as u64), 0)
    }

    fn l2_rip(&self, a: &Assembler, guest: usize) -> AsmMemoryOperand {
        qword_ptr(a.guest(guest).control + offset_of!(Vmcb, save.rip) as u64)
    }

    fn set_l2_rip(&self, a: &mut Assembler, guest: usize) -> Emit {
        a.a.mov(self.l2_rip(a, guest), rax)
    }

    fn set_l2_register(&self, a: &mut Assembler, guest: usize, register: usize, value: Value) -> Emit {
        let GuestLayout { control: vmcb, registers, .. } = *a.guest(guest);
        let place = match register {
            0 => vmcb + offset_of!(Vmcb, save.rax) as u64,
            1 => registers + saved::RBX,
            2 => registers + saved::RCX,
            _ => registers + saved::RDX,
        };
        a.load(rax, value)?;
        a.a.mov(qword_ptr(place), rax)
    }

    fn inject(&self, a: &mut Assembler, guest: usize, exception: Exception) -> Emit {
        a.a.mov(rax, svm::event_injection(exception))?;
        a.a.mov(qword_ptr(a.guest(guest).control + offset_of!(Vmcb, control.event_inj) as u64), rax)
    }

    fn reset(&self, a: &mut Assembler, guest: usize) -> Emit {
        let layout = a.guest(guest);
        a.a.cld()?;
        a.a.mov(rsi, layout.initial)?;
        a.a.mov(rdi, layout.control)?;
        a.a.mov(ecx, (PAGE / 8) as u32)?;
        a.a.rep().movsq()
    }

    fn flush(&self, _a: &mut Assembler) -> Emit {
        // Each VMRUN does.
        Ok(())
    }

    /// An interrupt is pending since before VMRUN, and L2 has interrupts disabled until its STI. It may come before the HLT,
    /// if L0 was interrupted itself right after the STI: then once more.
    fn halt<'a>(&self, a: &mut Assembler<'a>, guest: usize, item: L2Step<'a>) -> Emit {
        let Op::Hlt { sleep_us } = item.step.op else { unreachable!("only HLT is left by force") };
        let rip = self.l2_rip(a, guest);
        let (instruction, resume) = a.labels(item.site);
        let mut again = a.a.create_label();
        let mut done = a.a.create_label();
        let mut fine = a.a.create_label();

        a.a.set_label(&mut again)?;
        a.arm_wake_up(sleep_us)?;
        self.enter(a, guest)?;
        // At the HLT or after it; whatever else is a failure.
        a.a.mov(edx, item.site)?;
        a.a.mov(ebx, ExitCode::INTR.0)?;
        a.a.lea(rcx, ptr(instruction))?;
        a.a.cmp(rip, rcx)?;
        a.a.je(fine)?;
        a.a.lea(rcx, ptr(resume))?;
        a.a.set_label(&mut fine)?;
        a.a.call(a.check[guest])?;
        a.glue(&Step::new(Op::Svm(SvmOp::Stgi)))?;
        a.a.sti()?;
        a.a.nop()?;
        a.a.cli()?;
        // L2 goes on with interrupts disabled: the next one may be pending when it does.
        let rflags = a.guest(guest).control + offset_of!(Vmcb, save.rflags) as u64;
        a.a.and(dword_ptr(rflags), !RFLAGS_IF)?;
        a.a.lea(rcx, ptr(resume))?;
        a.a.cmp(rip, rcx)?;
        a.a.je(done)?;
        // The record that L2 opened is void: it opens another one.
        a.a.mov(r9, qword_ptr(a.guest(guest).registers + saved::R9))?;
        a.a.mov(qword_ptr(r9 + offset_of!(Record, state) as i32), Record::VOID as i32)?;
        a.set_l2_rip(guest, item.retry)?;
        a.a.jmp(again)?;
        a.a.set_label(&mut done)?;
        a.a.zero_bytes()
    }
}

/// Compares the exit of L2 with what is expected: RBX the code, RCX the RIP, RDX the site.
fn check_routine(a: &mut Assembler, guest: usize) -> Emit {
    let vmcb = a.guest(guest).control;
    let mut wrong = a.a.create_label();
    let mut label = a.check[guest];
    a.a.set_label(&mut label)?;
    a.a.mov(rax, qword_ptr(vmcb + offset_of!(Vmcb, control.exit_code) as u64))?;
    a.a.cmp(eax, ebx)?;
    a.a.jne(wrong)?;
    a.a.cmp(Svm.l2_rip(a, guest), rcx)?;
    a.a.jne(wrong)?;
    a.a.ret()?;
    a.a.set_label(&mut wrong)?;
    a.unexpected_exit()?;
    for (from, to) in [
        (offset_of!(Vmcb, save.rip), offset_of!(Failure, rip)),
        (offset_of!(Vmcb, control.exit_info_1), offset_of!(Failure, info1)),
        (offset_of!(Vmcb, control.exit_info_2), offset_of!(Failure, info2)),
    ] {
        a.a.mov(rax, qword_ptr(vmcb + from as u64))?;
        a.a.mov(qword_ptr(a.failure(to)), rax)?;
    }
    a.a.jmp(a.fail)
}
