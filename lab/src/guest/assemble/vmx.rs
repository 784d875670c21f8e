// SPDX-License-Identifier: MIT
//! How L1 runs an L2 by VMLAUNCH and VMRESUME, looks at its exit and changes its state.
//!
//! A VMCS can be used while it is the current one, and by VMREAD and VMWRITE only. Each of these instructions may exit, so
//! each has a record like any other. They stand in subroutines, one of each, which keeps the code small.

use std::mem::offset_of;

use exitregs_common::vmx::ExitReason;
use iced_x86::code_asm::*;

use super::super::layout::{END_OF_FIELDS, GuestLayout, saved, slot};
use super::super::log::{Failure, Record};
use super::super::site::{Entering, Instruction};
use super::super::vendor::Expected;
use super::super::vmx::{self, field};
use super::extension::Extension;
use super::{Assembler, Emit, L2Step, Level, RFLAGS_IF};
use crate::script::{Exception, Op, Value, VmcsDefect, VmxOp};
use crate::truth::{Exits, Handled};

/// Registers that a VM exit does not save and that L1 uses, but for R13.
const L2_REGISTERS: [(AsmRegister64, u64); 8] = [
    (rax, saved::RAX),
    (rbx, saved::RBX),
    (rcx, saved::RCX),
    (rdx, saved::RDX),
    (rsi, saved::RSI),
    (rdi, saved::RDI),
    (r9, saved::R9),
    (r11, saved::R11),
];

/// How long an L2's HLT takes at least. An interrupt that is pending at the VM entry ends L2 at once, whatever its RFLAGS.IF:
/// one that came sooner would never let L2 come to its HLT.
const HALT_US: u32 = 2000;

/// Records that [`Vmx::enter`] makes.
const ENTER_RECORDS: u64 = 4;

/// Subroutines.
#[derive(Clone, Debug, Default)]
pub(super) struct Routines {
    /// VMREAD of the field in RDX to RAX.
    vmread: CodeLabel,
    /// VMWRITE of RAX to the field in RDX.
    vmwrite: CodeLabel,
    /// VMCLEAR and VMPTRLD of the VMCS at RBX, which becomes that of no guest.
    clear: CodeLabel,
    /// VMWRITE of the fields listed at RSI.
    write_fields: CodeLabel,
    /// An instruction of VMX has failed.
    failed: CodeLabel,
    /// Goes on after a VM exit of a VMLAUNCH that should fail.
    refused: CodeLabel,
    /// By guest.
    guests: Vec<GuestRoutines>,
}

#[derive(Clone, Copy, Debug)]
struct GuestRoutines {
    /// Makes its VMCS the current one; keeps RAX.
    select: CodeLabel,
    /// Puts it into its first state.
    reset: CodeLabel,
    /// Runs it until it exits.
    run: CodeLabel,
    /// Where its exits come to.
    exit: CodeLabel,
}

/// By VMX.
pub(super) struct Vmx;

impl Extension for Vmx {
    fn start(&self, a: &mut Assembler) -> Emit {
        let label = CodeAssembler::create_label;
        a.vmx = Routines {
            vmread: label(&mut a.a),
            vmwrite: label(&mut a.a),
            clear: label(&mut a.a),
            write_fields: label(&mut a.a),
            failed: label(&mut a.a),
            refused: label(&mut a.a),
            guests: (0..a.check.len())
                .map(|_| GuestRoutines {
                    select: label(&mut a.a),
                    reset: label(&mut a.a),
                    run: label(&mut a.a),
                    exit: label(&mut a.a),
                })
                .collect(),
        };
        a.a.mov(rax, a.options.layout.host_save)?;
        a.operand(VmxOp::Vmxon, rax)?;
        for guest in 0..a.check.len() {
            a.a.call(a.vmx.guests[guest].reset)?;
        }
        if !super::any_step(&a.options.script.steps, &|step| matches!(step.op, Op::VmlaunchInvalid { .. })) {
            return Ok(());
        }
        for (defect, vmcs) in VmcsDefect::ALL.into_iter().zip(a.options.layout.invalid) {
            a.a.mov(rbx, vmcs)?;
            a.a.call(a.vmx.clear)?;
            a.a.mov(rsi, a.options.layout.invalid_fields)?;
            a.a.call(a.vmx.write_fields)?;
            a.a.lea(rax, ptr(a.vmx.refused))?;
            a.vmwrite(field::HOST_RIP)?;
            let (field, value) = match defect {
                VmcsDefect::Control => (field::CR3_TARGETS, 5u32),
                VmcsDefect::Host => (field::HOST_CS_SELECTOR, 0),
                VmcsDefect::Guest => (field::GUEST_RFLAGS, 0),
            };
            a.a.mov(eax, value)?;
            a.vmwrite(field)?;
        }
        Ok(())
    }

    fn routines(&self, a: &mut Assembler) -> Emit {
        access_routine(a, VmxOp::Vmread)?;
        access_routine(a, VmxOp::Vmwrite)?;
        clear_routine(a)?;
        write_fields_routine(a)?;
        failed_routine(a)?;
        // Where a VMLAUNCH is that should fail, R8 is its record, which says where to go on.
        let mut refused = a.vmx.refused;
        a.a.set_label(&mut refused)?;
        a.a.mov(rsp, qword_ptr(a.slot(slot::L1_RSP)))?;
        a.a.jmp(qword_ptr(r8 + offset_of!(Record, resume) as i32))?;
        for guest in 0..a.check.len() {
            guest_routines(a, guest)?;
            check_routine(a, guest)?;
        }
        Ok(())
    }

    fn enter(&self, a: &mut Assembler, guest: usize) -> Emit {
        a.records += ENTER_RECORDS;
        a.a.call(a.vmx.guests[guest].run)
    }

    fn l2_rip(&self, a: &Assembler, guest: usize) -> AsmMemoryOperand {
        qword_ptr(a.guest(guest).registers + saved::RIP)
    }

    fn set_l2_rip(&self, a: &mut Assembler, guest: usize) -> Emit {
        a.select(guest)?;
        a.vmwrite(field::GUEST_RIP)
    }

    fn set_l2_register(&self, a: &mut Assembler, guest: usize, register: usize, value: Value) -> Emit {
        let offset = [saved::RAX, saved::RBX, saved::RCX, saved::RDX][register];
        a.load(rax, value)?;
        a.a.mov(qword_ptr(a.guest(guest).registers + offset), rax)
    }

    fn inject(&self, a: &mut Assembler, guest: usize, exception: Exception) -> Emit {
        let (information, error_code) = vmx::event_injection(exception);
        a.select(guest)?;
        if let Some(code) = error_code {
            a.a.mov(rax, code)?;
            a.vmwrite(field::ENTRY_ERROR_CODE)?;
        }
        a.a.mov(rax, information)?;
        a.vmwrite(field::ENTRY_INTERRUPTION)
    }

    fn reset(&self, a: &mut Assembler, guest: usize) -> Emit {
        // More than there are fields.
        a.records += 128;
        a.a.call(a.vmx.guests[guest].reset)
    }

    fn flush(&self, a: &mut Assembler) -> Emit {
        a.records += 1;
        // Of all EPT pointers.
        a.a.mov(edi, 2)?;
        let id = a.vmx_site(VmxOp::Invept);
        a.begin(Level::L1, id)?;
        a.place_instruction(id)?;
        a.a.invept(rdi, xmmword_ptr(a.slot(slot::DESCRIPTOR)))?;
        a.place_resume(id)?;
        a.end(Level::L1)?;
        a.a.jbe(a.vmx.failed)
    }

    /// The interrupt, a timer's, may come anywhere. L2 that has not come to the instructions around the HLT, which in a loop
    /// may be behind it, goes on where it is; if it was between them it does them again.
    fn halt<'a>(&self, a: &mut Assembler<'a>, guest: usize, item: L2Step<'a>) -> Emit {
        let Op::Hlt { sleep_us } = item.step.op else { unreachable!("only HLT is left by force") };
        let registers = a.guest(guest).registers;
        let rip = self.l2_rip(a, guest);
        let (_, resume) = a.labels(item.site);
        let mut again = a.a.create_label();
        let mut done = a.a.create_label();
        let mut before = a.a.create_label();
        let mut not_open = a.a.create_label();

        a.a.set_label(&mut again)?;
        a.arm_wake_up(Some(sleep_us.unwrap_or_default().max(HALT_US)))?;
        self.enter(a, guest)?;
        a.a.mov(edx, item.site)?;
        a.a.mov(ebx, ExitReason::EXTERNAL_INTERRUPT.0)?;
        a.a.mov(rcx, rip)?;
        a.a.call(a.check[guest])?;
        a.a.sti()?;
        a.a.nop()?;
        a.a.cli()?;
        // L2 goes on with interrupts disabled, neither halted nor in the shadow of its STI.
        a.records += 4;
        a.a.mov(edx, field::GUEST_RFLAGS)?;
        a.a.call(a.vmx.vmread)?;
        a.a.and(rax, !RFLAGS_IF)?;
        a.vmwrite(field::GUEST_RFLAGS)?;
        for field in [field::GUEST_INTERRUPTIBILITY, field::GUEST_ACTIVITY] {
            a.a.xor(eax, eax)?;
            a.vmwrite(field)?;
        }
        let state = qword_ptr(r9 + offset_of!(Record, state) as i32);
        a.a.mov(r9, qword_ptr(registers + saved::R9))?;
        a.a.lea(rcx, ptr(resume))?;
        a.a.cmp(rip, rcx)?;
        a.a.ja(again)?;
        a.a.jb(before)?;
        // In a loop it may still be behind the last round's HLT.
        a.a.cmp(state, Record::WOKEN as i32)?;
        a.a.je(again)?;
        a.a.mov(state, Record::WOKEN as i32)?;
        a.a.jmp(done)?;
        a.a.set_label(&mut before)?;
        a.a.lea(rcx, ptr(item.retry))?;
        a.a.cmp(rip, rcx)?;
        a.a.jb(again)?;
        // If L2 has opened a record it is void: it opens another one.
        a.a.cmp(qword_ptr(r9 + offset_of!(Record, site) as i32), item.site as i32)?;
        a.a.jne(not_open)?;
        a.a.cmp(state, Record::OPEN as i32)?;
        a.a.jne(not_open)?;
        a.a.mov(state, Record::VOID as i32)?;
        a.a.set_label(&mut not_open)?;
        a.set_l2_rip(guest, item.retry)?;
        a.a.jmp(again)?;
        a.a.set_label(&mut done)?;
        a.a.zero_bytes()
    }
}

impl Assembler<'_> {
    /// A site of an instruction of L1's own.
    fn vmx_site(&mut self, op: VmxOp) -> u32 {
        let op = Op::Vmx(op);
        let expected = vmx::expected(&op, None);
        self.site(Instruction::Op(op), None, expected)
    }

    /// VMXON, VMCLEAR or VMPTRLD of the address in a register.
    fn operand(&mut self, op: VmxOp, address: AsmRegister64) -> Emit {
        let operand = qword_ptr(self.slot(slot::OPERAND));
        self.a.mov(operand, address)?;
        let id = self.vmx_site(op);
        self.begin(Level::L1, id)?;
        self.place_instruction(id)?;
        match op {
            VmxOp::Vmxon => self.a.vmxon(operand)?,
            VmxOp::Vmclear => self.a.vmclear(operand)?,
            _ => self.a.vmptrld(operand)?,
        }
        self.place_resume(id)?;
        self.end(Level::L1)?;
        // Carry: no current VMCS; zero: an error with a number.
        self.a.jbe(self.vmx.failed)
    }

    /// Makes a guest's VMCS the current one.
    fn select(&mut self, guest: usize) -> Emit {
        self.records += 1;
        self.a.call(self.vmx.guests[guest].select)
    }

    /// Writes RAX to a field of the current VMCS.
    fn vmwrite(&mut self, field: u32) -> Emit {
        self.records += 1;
        self.a.mov(edx, field)?;
        self.a.call(self.vmx.vmwrite)
    }

    /// Operands of a step of the script: RSI, and RDI where there are two. Whatever L1 does with them does no harm.
    pub(super) fn vmx_operands(&mut self, level: Level, op: VmxOp) -> Emit {
        let layout = self.options.layout;
        let address = match op {
            VmxOp::Vmclear | VmxOp::Vmptrld => Some(layout.spare),
            VmxOp::Vmxon => Some(layout.host_save),
            _ => None,
        };
        if let Some(address) = address {
            self.a.mov(qword_ptr(self.slot(slot::OPERAND)), address as i32)?;
        }
        if level == Level::L1 && op == VmxOp::Vmptrld {
            self.a.mov(qword_ptr(self.slot(slot::CURRENT)), 0)?;
        }
        self.a.mov(
            rsi,
            match op {
                VmxOp::Vmclear | VmxOp::Vmptrld | VmxOp::Vmxon => self.slot(slot::OPERAND),
                VmxOp::Vmptrst | VmxOp::Vmread => layout.buffer,
                VmxOp::Vmwrite | VmxOp::Invept | VmxOp::Invvpid => self.slot(slot::DESCRIPTOR),
            },
        )?;
        match op {
            VmxOp::Vmread | VmxOp::Vmwrite => self.a.mov(edi, field::TSC_OFFSET),
            // All contexts.
            VmxOp::Invept | VmxOp::Invvpid => self.a.mov(edi, 2),
            _ => Ok(()),
        }
    }

    /// Makes a VMCS the current one that VMLAUNCH refuses.
    pub(super) fn select_invalid(&mut self, defect: VmcsDefect) -> Emit {
        let at = VmcsDefect::ALL.iter().position(|it| *it == defect).expect("it is one of all");
        self.records += 1;
        self.a.mov(rsi, self.options.layout.invalid[at])?;
        self.operand(VmxOp::Vmptrld, rsi)?;
        self.a.mov(qword_ptr(self.slot(slot::CURRENT)), 0)
    }

    /// VMLAUNCH of a VMCS that it refuses: a step of the script, whose record is open. Notes how it went.
    pub(super) fn vmlaunch_invalid(&mut self, id: u32) -> Emit {
        let mut noted = self.a.create_label();
        self.a.mov(qword_ptr(self.slot(slot::L1_RSP)), rsp)?;
        self.place_instruction(id)?;
        self.a.vmlaunch()?;
        self.place_resume(id)?;
        self.end(Level::L1)?;
        // A VM exit has cleared both flags.
        self.a.mov(rsi, Record::NOT_ENTERED)?;
        self.a.jbe(noted)?;
        self.a.mov(rsi, u64::from(ExitReason::INVALID_STATE.0) | 1 << 31)?;
        self.a.set_label(&mut noted)?;
        self.a.mov(qword_ptr(r8 + offset_of!(Record, exit_code) as i32), rsi)
    }
}

/// The subroutine of VMREAD or VMWRITE.
fn access_routine(a: &mut Assembler, op: VmxOp) -> Emit {
    let reads = op == VmxOp::Vmread;
    let mut label = if reads { a.vmx.vmread } else { a.vmx.vmwrite };
    let id = a.vmx_site(op);
    a.a.set_label(&mut label)?;
    a.begin(Level::L1, id)?;
    a.place_instruction(id)?;
    if reads {
        a.a.vmread(rax, rdx)?
    } else {
        a.a.vmwrite(rdx, rax)?
    }
    a.place_resume(id)?;
    a.end(Level::L1)?;
    a.a.jbe(a.vmx.failed)?;
    a.a.ret()
}

fn clear_routine(a: &mut Assembler) -> Emit {
    let mut label = a.vmx.clear;
    a.a.set_label(&mut label)?;
    a.operand(VmxOp::Vmclear, rbx)?;
    a.operand(VmxOp::Vmptrld, rbx)?;
    a.a.mov(qword_ptr(a.slot(slot::CURRENT)), 0)?;
    a.a.ret()
}

fn write_fields_routine(a: &mut Assembler) -> Emit {
    let mut label = a.vmx.write_fields;
    let mut end = a.a.create_label();
    a.a.set_label(&mut label)?;
    a.a.mov(rdx, qword_ptr(rsi))?;
    a.a.cmp(rdx, END_OF_FIELDS as i32)?;
    a.a.je(end)?;
    a.a.mov(rax, qword_ptr(rsi + 8))?;
    a.a.add(rsi, 16)?;
    a.a.call(a.vmx.vmwrite)?;
    a.a.jmp(label)?;
    a.a.set_label(&mut end)?;
    a.a.ret()
}

/// The open record is that of the instruction.
fn failed_routine(a: &mut Assembler) -> Emit {
    let mut label = a.vmx.failed;
    a.a.set_label(&mut label)?;
    a.a.mov(qword_ptr(a.failure(offset_of!(Failure, kind))), Failure::VMX_INSTRUCTION as i32)?;
    a.a.mov(rax, qword_ptr(r8 + offset_of!(Record, rip) as i32))?;
    a.a.mov(qword_ptr(a.failure(offset_of!(Failure, rip))), rax)?;
    a.a.mov(edx, field::INSTRUCTION_ERROR)?;
    a.a.xor(eax, eax)?;
    a.a.vmread(rax, rdx)?;
    a.a.mov(qword_ptr(a.failure(offset_of!(Failure, code))), rax)?;
    a.a.jmp(a.fail)
}

fn guest_routines(a: &mut Assembler, guest: usize) -> Emit {
    let GuestLayout { control: vmcs, registers, initial, .. } = *a.guest(guest);
    let GuestRoutines { mut select, mut reset, mut run, mut exit } = a.vmx.guests[guest];
    let current = qword_ptr(a.slot(slot::CURRENT));
    let launched = qword_ptr(registers + saved::LAUNCHED);

    let mut selected = a.a.create_label();
    a.a.set_label(&mut select)?;
    a.a.cmp(current, vmcs as i32)?;
    a.a.je(selected)?;
    a.a.mov(rcx, vmcs)?;
    a.operand(VmxOp::Vmptrld, rcx)?;
    a.a.mov(current, vmcs as i32)?;
    a.a.set_label(&mut selected)?;
    a.a.ret()?;

    a.a.set_label(&mut reset)?;
    a.a.mov(rbx, vmcs)?;
    a.a.call(a.vmx.clear)?;
    a.a.mov(current, vmcs as i32)?;
    a.a.mov(launched, 0)?;
    a.a.mov(rsi, initial)?;
    a.a.call(a.vmx.write_fields)?;
    a.a.lea(rax, ptr(exit))?;
    a.vmwrite(field::HOST_RIP)?;
    a.a.ret()?;

    let enters = |by, reason: ExitReason| {
        let expected = Expected { reason: Some(reason.0), exits: Exits::Once, handled: Some(Handled::L0) };
        (Instruction::Enter { guest, by }, expected)
    };
    let mut resume = a.a.create_label();
    a.a.set_label(&mut run)?;
    a.a.call(select)?;
    a.a.mov(qword_ptr(a.slot(slot::L1_RSP)), rsp)?;
    for (register, offset) in L2_REGISTERS {
        a.a.mov(register, qword_ptr(registers + offset))?;
    }
    a.a.cmp(launched, 0)?;
    a.a.jne(resume)?;
    for (by, reason) in
        [(Entering::Vmlaunch, ExitReason::VMLAUNCH), (Entering::Vmresume, ExitReason::VMRESUME)]
    {
        if by == Entering::Vmresume {
            a.a.set_label(&mut resume)?;
        }
        let (instruction, expected) = enters(by, reason);
        let id = a.site(instruction, None, expected);
        a.begin(Level::L1, id)?;
        a.a.mov(r13, qword_ptr(registers + saved::R13))?;
        a.place_instruction(id)?;
        match by {
            Entering::Vmlaunch => a.a.vmlaunch()?,
            _ => a.a.vmresume()?,
        }
        a.place_resume(id)?;
        a.a.jmp(a.vmx.failed)?;
    }

    a.a.set_label(&mut exit)?;
    a.a.mov(rsp, qword_ptr(a.slot(slot::L1_RSP)))?;
    for (register, offset) in L2_REGISTERS.into_iter().chain([(r13, saved::R13)]) {
        a.a.mov(qword_ptr(registers + offset), register)?;
    }
    a.end(Level::L1)?;
    a.a.mov(launched, 1)?;
    a.a.mov(rsi, r8)?;
    for (field, place) in [(field::EXIT_REASON, saved::EXIT_REASON), (field::GUEST_RIP, saved::RIP)] {
        a.a.mov(edx, field)?;
        a.a.call(a.vmx.vmread)?;
        a.a.mov(qword_ptr(registers + place), rax)?;
    }
    a.a.mov(rax, qword_ptr(registers + saved::EXIT_REASON))?;
    a.a.mov(qword_ptr(rsi + offset_of!(Record, exit_code) as i32), rax)?;
    a.a.ret()
}

/// Compares the exit of L2 with what is expected: RBX the reason, RCX the RIP, RDX the site.
fn check_routine(a: &mut Assembler, guest: usize) -> Emit {
    let registers = a.guest(guest).registers;
    let mut wrong = a.a.create_label();
    let mut label = a.check[guest];
    a.a.set_label(&mut label)?;
    a.a.mov(rax, qword_ptr(registers + saved::EXIT_REASON))?;
    a.a.cmp(eax, ebx)?;
    a.a.jne(wrong)?;
    a.a.cmp(Vmx.l2_rip(a, guest), rcx)?;
    a.a.jne(wrong)?;
    a.a.ret()?;
    a.a.set_label(&mut wrong)?;
    a.unexpected_exit()?;
    a.a.mov(rax, Vmx.l2_rip(a, guest))?;
    a.a.mov(qword_ptr(a.failure(offset_of!(Failure, rip))), rax)?;
    for (field, to) in [
        (field::EXIT_QUALIFICATION, offset_of!(Failure, info1)),
        (field::GUEST_PHYSICAL_ADDRESS, offset_of!(Failure, info2)),
    ] {
        a.a.mov(edx, field)?;
        a.a.vmread(rax, rdx)?;
        a.a.mov(qword_ptr(a.failure(to)), rax)?;
    }
    a.a.jmp(a.fail)
}
