// SPDX-License-Identifier: MIT
//! What L1 does for the script: its own steps, and the exits of its L2s.

use std::mem::offset_of;

use iced_x86::code_asm::*;

use super::super::layout::{PAGE, WAKE_VECTOR};
use super::super::log::Failure;
use super::super::signal::Signal;
use super::super::site::Next;
use super::super::vendor;
use super::{Assembler, Block, END_OF_BLOCK, Emit, L2Step, Level};
use crate::script::{Access, Finish, Hole, Op, Reaction, Registers, Step, SvmOp, Value};
use crate::truth::Handled;

pub(super) const X2APIC_EOI: u64 = 0x80b;
// x2APIC registers as MSRs. APM Vol. 2 section 16.11.1.
const X2APIC_LVT_TIMER: u64 = 0x832;
const X2APIC_INITIAL_COUNT: u64 = 0x838;
const X2APIC_DIVIDE: u64 = 0x83e;
pub(super) const X2APIC_SELF_IPI: u64 = 0x83f;

impl<'a> Assembler<'a> {
    pub(super) fn l1_steps(&mut self, steps: &'a [Step]) -> Emit {
        for step in steps {
            for _ in 0..step.times {
                match &step.op {
                    Op::L2 { guest, repeat, steps } => self.run_l2(*guest, *repeat, steps)?,
                    _ => self.l1_step(step)?,
                }
            }
        }
        Ok(())
    }

    pub(super) fn l1_step(&mut self, step: &Step) -> Emit {
        if self.dies_here() {
            let mut not_now = self.a.create_label();
            self.a.cmp(r12, (self.options.repeat / 2 + self.options.repeat % 2) as i32)?;
            self.a.jne(not_now)?;
            self.signal(Level::L1, Signal::Die, None)?;
            self.a.set_label(&mut not_now)?;
            self.a.zero_bytes()?;
        }
        if let Op::Hlt { sleep_us } = step.op {
            self.arm_wake_up(sleep_us)?;
            if self.gif_may_be_clear {
                self.glue(&Step::new(Op::Svm(SvmOp::Stgi)))?;
            }
        }
        let id = self.step_site(step, None);
        self.execute(Level::L1, &step.op, id, None, None)
    }

    pub(super) fn dies_here(&mut self) -> bool {
        match &mut self.to_die {
            Some(0) => {
                self.to_die = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Makes sure that an interrupt is, or will be, pending. RFLAGS.IF is clear.
    pub(super) fn arm_wake_up(&mut self, sleep_us: Option<u32>) -> Emit {
        let vector = u64::from(WAKE_VECTOR);
        match sleep_us {
            None => self.glue(&write_msr(X2APIC_SELF_IPI, vector)),
            Some(microseconds) => {
                // One-shot, divided by 1: KVM's APIC timer counts nanoseconds.
                self.glue(&write_msr(X2APIC_DIVIDE, 0b1011))?;
                self.glue(&write_msr(X2APIC_LVT_TIMER, vector))?;
                self.glue(&write_msr(X2APIC_INITIAL_COUNT, u64::from(microseconds) * 1000))
            }
        }
    }

    /// An instruction of L1's own.
    pub(super) fn glue(&mut self, step: &Step) -> Emit {
        let id = self.step_site(step, None);
        self.execute(Level::L1, &step.op, id, None, None)
    }

    /// L1 runs an L2 until the end of a block.
    pub(super) fn run_l2(&mut self, guest: usize, repeat: u32, steps: &'a [Step]) -> Emit {
        let script = self.options.script;
        let outer_records = std::mem::replace(&mut self.records, 0);
        let block_start = self.a.create_label();
        let mut block = Block { repeat, start: block_start, steps: Vec::new(), end: None };
        for step in steps {
            for _ in 0..step.times {
                let item = self.l2_site(step, guest);
                block.steps.push(item);
            }
        }
        let shuts_down = steps.last().is_some_and(|step| step.op == Op::TripleFault);
        let end_step = Step {
            set: Registers { rax: Some(Value::fixed(END_OF_BLOCK)), ..Default::default() },
            ..Step::new(Op::Hypercall { nr: Value::fixed(END_OF_BLOCK), args: Vec::new() })
        };
        if !shuts_down {
            let id = self.step_site(&end_step, Some(guest));
            self.pending(id).site.next = Next::Leaves;
            block.end = Some(id);
        }

        // The holes that this block fills must be holes again.
        for item in &block.steps {
            let Op::NestedPageFault { hole, .. } = item.step.op else { continue };
            self.set_hole(guest, item.hole.expect("given out above"), Some(hole))?;
        }
        if block.steps.iter().any(|item| item.hole.is_some()) {
            self.extension.flush(self)?;
        }
        self.set_l2_rip(guest, block_start)?;

        let returns: Vec<L2Step<'a>> = block
            .steps
            .iter()
            .copied()
            .filter(|item| {
                vendor::expected(self.options.isa, &item.step.op, Some(&script.guests[guest])).reaches_l1()
            })
            .collect();
        self.records += block.steps.len() as u64;
        let end = block.end;
        let loops = repeat > 1 && !returns.is_empty();
        self.blocks.push(block);
        let mut again = self.a.create_label();
        if loops {
            self.a.mov(rax, u64::from(repeat))?;
            self.a.push(rax)?;
            self.a.set_label(&mut again)?;
            self.a.zero_bytes()?;
        }
        for item in returns {
            self.l2_return(guest, item)?;
        }
        if loops {
            self.a.dec(qword_ptr(rsp))?;
            self.a.jne(again)?;
            self.a.add(rsp, 8)?;
        }
        self.records = outer_records + self.records * u64::from(repeat) + 2;
        if let Some(end) = end {
            self.extension.enter(self, guest)?;
            self.expect(guest, end, vendor::hypercall(self.options.isa))?;
        }
        Ok(())
    }

    pub(super) fn l2_site(&mut self, step: &'a Step, guest: usize) -> L2Step<'a> {
        let die = self.dies_here().then(|| {
            let op = Op::Out { port: Signal::Die.port(), size: 1, immediate: true };
            let id = self.step_site(&Step::new(op), Some(guest));
            self.pending(id).site.next = Next::Leaves;
            id
        });
        let id = self.step_site(step, Some(guest));
        let holes = self.options.layout.holes;
        let hole = matches!(step.op, Op::NestedPageFault { .. }).then(|| {
            self.holes += 1;
            self.holes - 1
        });
        let pending = self.pending(id);
        if let (Some(hole), Op::NestedPageFault { access, .. }) = (hole, &step.op) {
            let page = holes + hole * PAGE;
            match access {
                Access::Execute => {
                    pending.elsewhere = Some(page);
                    pending.site.gpa = Some(page);
                }
                Access::Read | Access::Write => pending.site.gpa = Some(page + PAGE / 2),
            }
        }
        let reaches_l1 = matches!(pending.site.handled, Some(Handled::Reflected | Handled::Forced));
        if let (Some(Reaction { finish: Finish::Inject(_), .. }), true) = (&step.l1, reaches_l1) {
            pending.site.next = Next::L1Injects;
        }
        if step.op == Op::TripleFault {
            pending.site.next = Next::Leaves;
        }
        L2Step { step, site: id, retry: self.a.create_label(), hole, die }
    }

    /// Runs L2 up to a step that comes back to L1, and does what the script says about it.
    pub(super) fn l2_return(&mut self, guest: usize, item: L2Step<'a>) -> Emit {
        let script = self.options.script;
        let expected = vendor::expected(self.options.isa, &item.step.op, Some(&script.guests[guest]));
        if expected.handled == Some(Handled::Forced) {
            return self.extension.halt(self, guest, item);
        }
        self.extension.enter(self, guest)?;
        self.expect(guest, item.site, expected.reason.expect("what is reflected has a reason"))?;
        if item.step.op == Op::TripleFault {
            return self.extension.reset(self, guest);
        }
        let default = Reaction::default();
        let reaction = match &item.step.l1 {
            Some(reaction) => {
                self.l1_steps(&reaction.steps)?;
                reaction
            }
            None => &default,
        };
        match reaction.finish {
            Finish::Skip(registers) => {
                for (register, value) in registers.array().into_iter().enumerate() {
                    if let Some(value) = value {
                        self.extension.set_l2_register(self, guest, register, value)?;
                    }
                }
                let (_, resume) = self.labels(item.site);
                self.set_l2_rip(guest, resume)?;
            }
            Finish::Inject(exception) => self.extension.inject(self, guest, exception)?,
            Finish::Map => self.set_hole(guest, item.hole.expect("checked: only a page fault maps"), None)?,
        }
        Ok(())
    }

    /// The exit must be that of this site, for this reason.
    fn expect(&mut self, guest: usize, site: u32, reason: u32) -> Emit {
        self.a.mov(edx, site)?;
        self.a.mov(ebx, reason)?;
        let pending = self.pending(site);
        match (pending.elsewhere, pending.instruction) {
            (Some(address), _) => self.a.mov(rcx, address)?,
            (None, instruction) => self.a.lea(rcx, ptr(instruction))?,
        }
        self.a.call(self.check[guest])
    }

    /// Notes that an exit is not the expected one: RAX its reason, RBX the expected reason, RCX the RIP, RDX the site.
    pub(super) fn unexpected_exit(&mut self) -> Emit {
        let kind = qword_ptr(self.failure(offset_of!(Failure, kind)));
        self.a.mov(kind, Failure::UNEXPECTED_EXIT as i32)?;
        for (register, place) in [
            (rdx, offset_of!(Failure, site)),
            (rbx, offset_of!(Failure, expected_code)),
            (rcx, offset_of!(Failure, expected_rip)),
            (rax, offset_of!(Failure, code)),
        ] {
            self.a.mov(qword_ptr(self.failure(place)), register)?;
        }
        Ok(())
    }

    /// L2 goes on there.
    pub(super) fn set_l2_rip(&mut self, guest: usize, label: CodeLabel) -> Emit {
        self.a.lea(rax, ptr(label))?;
        self.extension.set_l2_rip(self, guest)
    }

    fn set_hole(&mut self, guest: usize, index: u64, hole: Option<Hole>) -> Emit {
        let address = self.options.layout.holes + index * PAGE;
        self.a.mov(rax, vendor::nested_entry(self.options.isa, address, hole))?;
        self.a.mov(qword_ptr(self.guest(guest).hole_entry(index)), rax)
    }
}

/// A step that writes an MSR.
pub(super) fn write_msr(msr: u64, value: u64) -> Step {
    Step::new(Op::Wrmsr { msr: msr.into(), value: value.into(), step: 0.into() })
}
