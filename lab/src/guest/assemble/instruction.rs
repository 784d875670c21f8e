// SPDX-License-Identifier: MIT
//! How an instruction of either level is executed, and the code of L2, which is nothing else.

use iced_x86::code_asm::*;

use super::super::layout::{PAGE, slot};
use super::super::signal::Signal;
use super::{Assembler, Block, END_OF_BLOCK, Emit, Level};
use crate::script::{Access, Op, SvmOp, Value, VmxOp};
use crate::truth::Handled;
use exitregs_common::isa::Isa;

impl<'a> Assembler<'a> {
    pub(super) fn l2_block(&mut self, block: &Block<'a>) -> Emit {
        let mut start = block.start;
        self.a.set_label(&mut start)?;
        self.a.mov(r11, u64::from(block.repeat))?;
        let mut turn = self.a.create_label();
        self.a.set_label(&mut turn)?;
        self.a.zero_bytes()?;
        for item in &block.steps {
            if let Some(id) = item.die {
                let mut not_now = self.a.create_label();
                self.a.cmp(r12, (self.options.repeat / 2 + self.options.repeat % 2) as i32)?;
                self.a.jne(not_now)?;
                self.emit_signal(Level::L2, Signal::Die, id)?;
                self.a.set_label(&mut not_now)?;
                self.a.zero_bytes()?;
            }
            let forced = self.pending(item.site).site.handled == Some(Handled::Forced);
            self.execute(Level::L2, &item.step.op, item.site, item.hole, forced.then_some(item.retry))?;
        }
        self.a.inc(r14)?;
        self.a.dec(r11)?;
        self.a.jne(turn)?;
        if let Some(id) = block.end {
            let op = Op::Hypercall { nr: Value::fixed(END_OF_BLOCK), args: Vec::new() };
            self.execute(Level::L2, &op, id, None, None)?;
        }
        self.a.ud2()
    }

    /// Executes an operation between two looks at the registers. `retry`: where to begin again L2's HLT that L1 does
    /// not intercept.
    pub(super) fn execute(
        &mut self,
        level: Level,
        op: &Op,
        id: u32,
        hole: Option<u64>,
        retry: Option<CodeLabel>,
    ) -> Emit {
        let layout = self.options.layout;
        if level == Level::L1 {
            self.records += 1;
        }
        self.load_registers(id)?;
        let (_, resume) = self.labels(id);
        match op {
            Op::Hypercall { args, .. } => {
                if let Some(fourth) = args.get(3) {
                    self.load(rsi, *fourth)?;
                }
            }
            Op::Ins { .. } => self.a.mov(rdi, layout.buffer)?,
            Op::Outs { .. } => self.a.mov(rsi, layout.buffer)?,
            Op::Invlpg => self.a.mov(rsi, layout.buffer)?,
            Op::Mmio { address, .. } => {
                self.a.mov(rsi, address.0)?;
                self.pending(id).site.gpa = Some(address.0);
            }
            Op::NestedPageFault { access, .. } => {
                let page = layout.holes + hole.expect("a page fault has a hole") * PAGE;
                match access {
                    Access::Execute => {
                        self.a.mov(rsi, page)?;
                        // The page holds `jmp rdi`.
                        self.a.lea(rdi, ptr(resume))?;
                    }
                    Access::Read | Access::Write => self.a.mov(rsi, page + PAGE / 2)?,
                }
            }
            Op::TripleFault => self.a.lidt(ptr(self.slot(slot::EMPTY_IDTR)))?,
            Op::Vmx(op) => self.vmx_operands(level, *op)?,
            Op::VmlaunchInvalid { defect } => self.select_invalid(*defect)?,
            _ => {}
        }
        // HLT with STI before it. An emulator that is interrupted itself in between may forget that STI holds interrupts
        // back for one instruction; the interrupt that should end the HLT then comes before it, and all is done again.
        let retry = match (level, op) {
            (Level::L1, Op::Hlt { .. }) => Some(self.a.create_label()),
            _ => retry,
        };
        if let Some(mut retry) = retry {
            self.a.set_label(&mut retry)?;
            if level == Level::L1 {
                self.a.lea(r13, ptr(retry))?;
                self.a.mov(qword_ptr(self.slot(slot::RETRY)), r13)?;
            }
        }
        self.begin(level, id)?;
        if let Op::VmlaunchInvalid { .. } = op {
            return self.vmlaunch_invalid(id);
        }
        if retry.is_some() {
            self.a.sti()?;
        }
        self.place_instruction(id)?;
        self.instruction(op)?;
        self.place_resume(id)?;
        if retry.is_some() {
            self.a.cli()?;
        }
        self.end(level)
    }

    pub(super) fn instruction(&mut self, op: &Op) -> Emit {
        let a = &mut self.a;
        match op {
            Op::Rdmsr { .. } => a.rdmsr(),
            Op::Wrmsr { .. } => a.wrmsr(),
            Op::Cpuid { .. } => a.cpuid(),
            Op::Hypercall { .. } => match self.options.isa {
                Isa::Svm => a.vmmcall(),
                Isa::Vmx => a.vmcall(),
            },
            Op::In { port, size, immediate } => match (size, immediate) {
                (1, true) => a.in_(al, u32::from(*port)),
                (2, true) => a.in_(ax, u32::from(*port)),
                (_, true) => a.in_(eax, u32::from(*port)),
                (1, false) => a.in_(al, dx),
                (2, false) => a.in_(ax, dx),
                (_, false) => a.in_(eax, dx),
            },
            Op::Out { port, size, immediate } => match (size, immediate) {
                (1, true) => a.out(u32::from(*port), al),
                (2, true) => a.out(u32::from(*port), ax),
                (_, true) => a.out(u32::from(*port), eax),
                (1, false) => a.out(dx, al),
                (2, false) => a.out(dx, ax),
                (_, false) => a.out(dx, eax),
            },
            Op::Ins { size, .. } => match size {
                1 => a.rep().insb(),
                2 => a.rep().insw(),
                _ => a.rep().insd(),
            },
            Op::Outs { size, .. } => match size {
                1 => a.rep().outsb(),
                2 => a.rep().outsw(),
                _ => a.rep().outsd(),
            },
            Op::Hlt { .. } => a.hlt(),
            Op::ReadCr { cr: 0 } => a.mov(rax, cr0),
            Op::ReadCr { cr: 4 } => a.mov(rax, cr4),
            Op::ReadCr { .. } => a.mov(rax, cr8),
            Op::WriteCr { cr: 0, .. } => a.mov(cr0, rax),
            Op::WriteCr { cr: 4, .. } => a.mov(cr4, rax),
            Op::WriteCr { .. } => a.mov(cr8, rax),
            Op::Rdtsc => a.rdtsc(),
            Op::Rdpmc { .. } => a.rdpmc(),
            Op::Invlpg => a.invlpg(byte_ptr(rsi)),
            Op::Wbinvd => a.wbinvd(),
            Op::Pause => a.pause(),
            Op::Monitor => a.monitor(),
            Op::Mwait => a.mwait(),
            Op::Ud2 => a.ud2(),
            Op::Mmio { size, write: false, .. } => match size {
                1 => a.mov(al, byte_ptr(rsi)),
                2 => a.mov(ax, word_ptr(rsi)),
                4 => a.mov(eax, dword_ptr(rsi)),
                _ => a.mov(rax, qword_ptr(rsi)),
            },
            Op::Mmio { size, write: true, .. } => match size {
                1 => a.mov(byte_ptr(rsi), al),
                2 => a.mov(word_ptr(rsi), ax),
                4 => a.mov(dword_ptr(rsi), eax),
                _ => a.mov(qword_ptr(rsi), rax),
            },
            Op::NestedPageFault { access, .. } => match access {
                Access::Read => a.mov(rax, qword_ptr(rsi)),
                Access::Write => a.mov(qword_ptr(rsi), rax),
                Access::Execute => a.jmp(rsi),
            },
            Op::TripleFault => a.int3(),
            Op::Svm(op) => match op {
                SvmOp::Vmload => a.vmload(),
                SvmOp::Vmsave => a.vmsave(),
                SvmOp::Stgi => a.stgi(),
                SvmOp::Clgi => a.clgi(),
                SvmOp::Invlpga => a.invlpga(),
                SvmOp::Skinit => a.skinit(),
            },
            Op::VmrunInvalid { .. } => a.vmrun(),
            Op::Vmx(op) => match op {
                VmxOp::Vmclear => a.vmclear(qword_ptr(rsi)),
                VmxOp::Vmptrld => a.vmptrld(qword_ptr(rsi)),
                VmxOp::Vmptrst => a.vmptrst(qword_ptr(rsi)),
                VmxOp::Vmread => a.vmread(qword_ptr(rsi), rdi),
                VmxOp::Vmwrite => a.vmwrite(rdi, qword_ptr(rsi)),
                VmxOp::Vmxon => a.vmxon(qword_ptr(rsi)),
                VmxOp::Invept => a.invept(rdi, xmmword_ptr(rsi)),
                VmxOp::Invvpid => a.invvpid(rdi, xmmword_ptr(rsi)),
            },
            Op::VmlaunchInvalid { .. } => unreachable!("it has code around it"),
            Op::L2 { .. } => unreachable!("a block is no instruction"),
        }
    }
}
