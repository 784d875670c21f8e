// SPDX-License-Identifier: MIT
//! Handlers of exceptions, and of the interrupt that ends a HLT.

use std::mem::offset_of;

use iced_x86::code_asm::*;

use super::super::layout::{WAKE_VECTOR, slot};
use super::super::log::{Failure, Record};
use super::l1::{X2APIC_EOI, X2APIC_SELF_IPI, write_msr};
use super::record::open_record;
use super::{Assembler, Emit, Level, RFLAGS_IF};

/// Registers that the interrupt handler uses.
const INTERRUPTED: [AsmRegister64; 6] = [rax, rbx, rcx, rdx, r8, r13];

impl Assembler<'_> {
    /// Handlers of the 32 exceptions at a level: that of the open record's instruction is noted in the record, and the
    /// guest goes on after it. Any other is a failure.
    pub(super) fn exception_handlers(&mut self, level: Level) -> Emit<Vec<(u8, CodeLabel)>> {
        let record = open_record(level);
        let mut common = self.a.create_label();
        let mut foreign = self.a.create_label();
        let mut handlers = Vec::new();
        for vector in 0..32u8 {
            let mut label = self.a.create_label();
            self.a.set_label(&mut label)?;
            if !has_error_code(vector) {
                self.a.push(0)?;
            }
            self.a.push(i32::from(vector))?;
            self.a.jmp(common)?;
            handlers.push((vector, label));
        }
        // After PUSH RAX the stack is: RAX, vector, error code, RIP, CS, RFLAGS, RSP, SS.
        self.a.set_label(&mut common)?;
        self.a.push(rax)?;
        self.a.mov(rax, qword_ptr(rsp + 24))?;
        self.a.cmp(rax, qword_ptr(record + offset_of!(Record, rip) as i32))?;
        self.a.jne(foreign)?;
        self.a.mov(rax, qword_ptr(rsp + 16))?;
        self.a.shl(rax, 8)?;
        self.a.or(rax, qword_ptr(rsp + 8))?;
        self.a.bts(rax, Record::FAULTED_BIT)?;
        self.a.mov(qword_ptr(record + offset_of!(Record, fault) as i32), rax)?;
        self.a.mov(rax, qword_ptr(record + offset_of!(Record, resume) as i32))?;
        self.a.mov(qword_ptr(rsp + 24), rax)?;
        self.a.pop(rax)?;
        self.a.add(rsp, 16)?;
        self.a.iretq()?;

        self.a.set_label(&mut foreign)?;
        let kind = match level {
            Level::L1 => Failure::L1_EXCEPTION,
            Level::L2 => Failure::L2_EXCEPTION,
        };
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, kind))), kind as i32)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, rip))), rax)?;
        for (from, to) in [(8, offset_of!(Failure, code)), (16, offset_of!(Failure, info1))] {
            self.a.mov(rax, qword_ptr(rsp + from))?;
            self.a.mov(qword_ptr(self.failure(to)), rax)?;
        }
        self.a.mov(rax, cr2)?;
        self.a.mov(qword_ptr(self.failure(offset_of!(Failure, info2))), rax)?;
        self.a.jmp(self.fail)?;
        Ok(handlers)
    }

    /// L1's handler of [`WAKE_VECTOR`]: ends the interrupt, which is an exit like any other. If the HLT that it should end
    /// has not been executed yet, L1 begins again with that, and with another interrupt.
    pub(super) fn interrupt_handler(&mut self) -> Emit<CodeLabel> {
        let end_of_interrupt = write_msr(X2APIC_EOI, 0);
        let [rip, rflags] = [0, 2].map(|word| 8 * (INTERRUPTED.len() as i32 + word));
        let mut label = self.a.create_label();
        let mut after_hlt = self.a.create_label();
        let mut end = self.a.create_label();
        self.a.set_label(&mut label)?;
        for register in INTERRUPTED {
            self.a.push(register)?;
        }
        self.a.mov(rax, qword_ptr(rsp + rip))?;
        self.a.cmp(rax, qword_ptr(r8 + offset_of!(Record, rip) as i32))?;
        self.a.jne(after_hlt)?;
        self.a.mov(qword_ptr(r8 + offset_of!(Record, state) as i32), Record::VOID as i32)?;
        self.a.mov(rax, qword_ptr(self.slot(slot::RETRY)))?;
        self.a.mov(qword_ptr(rsp + rip), rax)?;
        self.a.and(qword_ptr(rsp + rflags), !RFLAGS_IF)?;
        self.glue(&end_of_interrupt)?;
        self.glue(&write_msr(X2APIC_SELF_IPI, WAKE_VECTOR.into()))?;
        self.a.jmp(end)?;
        self.a.set_label(&mut after_hlt)?;
        self.glue(&end_of_interrupt)?;
        self.a.set_label(&mut end)?;
        for register in INTERRUPTED.into_iter().rev() {
            self.a.pop(register)?;
        }
        self.a.iretq()?;
        Ok(label)
    }
}

/// Whether the processor pushes an error code. APM 8.2.
const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
