// SPDX-License-Identifier: MIT
//! What the guest notes about each instruction.

use std::mem::offset_of;

use iced_x86::code_asm::*;

use super::super::layout::slot;
use super::super::log::Record;
use super::super::signal::Signal;
use super::super::site::{self, Instruction, Next, Site};
use super::super::vendor::{self, Expected};
use super::{Assembler, Emit, Level, Pending};
use crate::script::{Op, Step, Value};

/// The register that points to a level's open record.
pub(super) const fn open_record(level: Level) -> AsmRegister64 {
    match level {
        Level::L1 => r8,
        Level::L2 => r9,
    }
}

impl Assembler<'_> {
    pub(super) fn site(&mut self, instruction: Instruction, guest: Option<usize>, expected: Expected) -> u32 {
        let id = u32::try_from(self.sites.len()).expect("fewer than 2^32 instructions fit in memory");
        let pending = Pending {
            site: Site {
                isa: self.options.isa,
                instruction,
                guest,
                before: None,
                reason: expected.reason,
                exits: expected.exits,
                handled: expected.handled,
                next: Next::GoesOn,
                rip: 0,
                resume: 0,
                length: 0,
                gpa: None,
            },
            instruction: self.a.create_label(),
            resume: self.a.create_label(),
            elsewhere: None,
        };
        self.sites.push(pending);
        id
    }

    /// A site for a step, with its register values.
    pub(super) fn step_site(&mut self, step: &Step, guest: Option<usize>) -> u32 {
        let script = self.options.script;
        let expected = vendor::expected(self.options.isa, &step.op, guest.map(|guest| &script.guests[guest]));
        let id = self.site(Instruction::Op(step.op.clone()), guest, expected);
        let before = site::before(step, self.options.vcpu, id, self.options.layout, self.options.cr);
        self.pending(id).site.before = Some(before);
        id
    }

    pub(super) fn pending(&mut self, id: u32) -> &mut Pending {
        &mut self.sites[id as usize]
    }

    pub(super) fn labels(&mut self, id: u32) -> (CodeLabel, CodeLabel) {
        let pending = self.pending(id);
        (pending.instruction, pending.resume)
    }

    /// The next instruction is the site's.
    pub(super) fn place_instruction(&mut self, id: u32) -> Emit {
        // What the assembler notes in a label, it notes in this copy only.
        self.a.set_label(&mut self.sites[id as usize].instruction)
    }

    /// The next instruction is where the guest goes on after the site's.
    pub(super) fn place_resume(&mut self, id: u32) -> Emit {
        self.a.set_label(&mut self.sites[id as usize].resume)
    }

    pub(super) fn load(&mut self, register: AsmRegister64, value: Value) -> Emit {
        self.a.mov(register, value.base)?;
        if value.step != 0 {
            self.a.mov(r13, value.step)?;
            self.a.imul_2(r13, r14)?;
            self.a.add(register, r13)?;
        }
        Ok(())
    }

    pub(super) fn load_registers(&mut self, id: u32) -> Emit {
        let values = self.pending(id).site.before.expect("a step's registers are chosen");
        for (register, value) in [rax, rbx, rcx, rdx].into_iter().zip(values) {
            self.load(register, value)?;
        }
        Ok(())
    }

    pub(super) fn open(&mut self, level: Level, id: u32, at: AsmRegister64) -> Emit {
        let (instruction, resume) = {
            let pending = self.pending(id);
            (pending.instruction, pending.resume)
        };
        let field = |offset: usize| qword_ptr(at + offset as i32);
        self.a.mov(field(offset_of!(Record, site)), id as i32)?;
        self.a.mov(field(offset_of!(Record, state)), Record::OPEN as i32)?;
        self.a.mov(field(offset_of!(Record, turn)), r14)?;
        self.a.lea(r13, ptr(instruction))?;
        self.a.mov(field(offset_of!(Record, rip)), r13)?;
        self.a.lea(r13, ptr(resume))?;
        self.a.mov(field(offset_of!(Record, resume)), r13)?;
        for (n, register) in [rax, rbx, rcx, rdx].into_iter().enumerate() {
            self.a.mov(field(offset_of!(Record, before) + 8 * n), register)?;
        }
        self.a.mov(field(offset_of!(Record, fault)), 0)?;
        self.a.mov(field(offset_of!(Record, exit_code)), 0)?;
        self.a.mov(open_record(level), at)
    }

    /// Opens a record at the end of the log.
    pub(super) fn begin(&mut self, level: Level, id: u32) -> Emit {
        self.open(level, id, r15)?;
        self.a.add(r15, Record::SIZE as i32)
    }

    /// Closes it.
    pub(super) fn end(&mut self, level: Level) -> Emit {
        let at = open_record(level);
        for (n, register) in [rax, rbx, rcx, rdx].into_iter().enumerate() {
            self.a.mov(qword_ptr(at + (offset_of!(Record, after) + 8 * n) as i32), register)?;
        }
        self.a.mov(qword_ptr(at + offset_of!(Record, state) as i32), Record::CLOSED as i32)
    }

    /// Tells user space something by a port write, whose record is in a place of its own because user space reads the log
    /// before it is closed.
    pub(super) fn signal(&mut self, level: Level, signal: Signal, guest: Option<usize>) -> Emit {
        let op = Op::Out { port: signal.port(), size: 1, immediate: true };
        let id = self.step_site(&Step::new(op), guest);
        if signal != Signal::ReadLog {
            self.pending(id).site.next = Next::Leaves;
        }
        self.emit_signal(level, signal, id)
    }

    pub(super) fn emit_signal(&mut self, level: Level, signal: Signal, id: u32) -> Emit {
        self.load_registers(id)?;
        self.a.mov(qword_ptr(self.slot(slot::LOG_NOW)), r15)?;
        self.a.mov(r15, self.slot(slot::SIGNAL))?;
        self.open(level, id, r15)?;
        self.place_instruction(id)?;
        self.a.out(u32::from(signal.port()), al)?;
        self.place_resume(id)?;
        self.end(level)
    }
}
