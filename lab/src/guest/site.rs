// SPDX-License-Identifier: MIT
//! An instruction's place in the code, and what is known of it before it runs.

use exitregs_common::isa::Isa;

use crate::script::{Access, Defect, Op, Step, SvmOp, Value, VmxOp};
use crate::truth::{Direction, Exits, Handled, Operands};

use super::layout::{PAGE, VcpuLayout};

/// What is executed at a site: a script's operation, or one that runs an L2 guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// An operation of the script, or one like it that the guest executes for itself.
    Op(Op),
    /// VMRUN, VMLAUNCH or VMRESUME.
    Enter {
        /// Index of the L2 guest.
        guest: usize,
        /// Which of them.
        by: Entering,
    },
}

/// An instruction that runs an L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the instruction of that name")]
pub enum Entering {
    Vmrun,
    Vmlaunch,
    Vmresume,
}

/// What is to come after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The guest goes on.
    GoesOn,
    /// It does not.
    Leaves,
    /// L1 injects an exception.
    L1Injects,
}

/// An instruction in the code.
#[derive(Clone, Debug)]
pub struct Site {
    /// The instruction set that [`Site::reason`] is of.
    pub isa: Isa,
    /// What it is.
    pub instruction: Instruction,
    /// At L2: the index of the guest.
    pub guest: Option<usize>,
    /// RAX, RBX, RCX and RDX before it; `None` if they are whatever L1 or L2 has.
    pub before: Option<[Value; 4]>,
    /// The reason of its exit.
    pub reason: Option<u32>,
    /// Whether it exits for that reason.
    pub exits: Exits,
    /// Who handles that.
    pub handled: Option<Handled>,
    /// What is to come after it.
    pub next: Next,
    /// RIP at its exit.
    pub rip: u64,
    /// Where the guest goes on.
    pub resume: u64,
    /// Bytes of the instruction at [`Site::rip`].
    pub length: u8,
    /// The address that it uses, if it uses memory.
    pub gpa: Option<u64>,
}

impl Site {
    /// The mnemonic.
    pub fn mnemonic(&self) -> String {
        let text = match &self.instruction {
            Instruction::Enter { by: Entering::Vmrun, .. } => "vmrun",
            Instruction::Enter { by: Entering::Vmlaunch, .. } => "vmlaunch",
            Instruction::Enter { by: Entering::Vmresume, .. } => "vmresume",
            Instruction::Op(op) => match op {
                Op::Rdmsr { .. } => "rdmsr",
                Op::Wrmsr { .. } => "wrmsr",
                Op::Cpuid { .. } => "cpuid",
                Op::Hypercall { .. } => match self.isa {
                    Isa::Svm => "vmmcall",
                    Isa::Vmx => "vmcall",
                },
                Op::In { .. } => "in",
                Op::Out { .. } => "out",
                Op::Ins { .. } => "rep ins",
                Op::Outs { .. } => "rep outs",
                Op::Hlt { .. } => "hlt",
                Op::ReadCr { cr } => return format!("mov from cr{cr}"),
                Op::WriteCr { cr, .. } => return format!("mov to cr{cr}"),
                Op::Rdtsc => "rdtsc",
                Op::Rdpmc { .. } => "rdpmc",
                Op::Invlpg => "invlpg",
                Op::Wbinvd => "wbinvd",
                Op::Pause => "pause",
                Op::Monitor => "monitor",
                Op::Mwait => "mwait",
                Op::Ud2 => "ud2",
                Op::Mmio { write: false, .. } | Op::NestedPageFault { access: Access::Read, .. } => "load",
                Op::Mmio { write: true, .. } | Op::NestedPageFault { access: Access::Write, .. } => "store",
                Op::NestedPageFault { access: Access::Execute, .. } => "fetch",
                Op::TripleFault => "int3",
                Op::Svm(op) => match op {
                    SvmOp::Vmload => "vmload",
                    SvmOp::Vmsave => "vmsave",
                    SvmOp::Stgi => "stgi",
                    SvmOp::Clgi => "clgi",
                    SvmOp::Invlpga => "invlpga",
                    SvmOp::Skinit => "skinit",
                },
                Op::VmrunInvalid { .. } => "vmrun",
                Op::Vmx(op) => match op {
                    VmxOp::Vmclear => "vmclear",
                    VmxOp::Vmptrld => "vmptrld",
                    VmxOp::Vmptrst => "vmptrst",
                    VmxOp::Vmread => "vmread",
                    VmxOp::Vmwrite => "vmwrite",
                    VmxOp::Vmxon => "vmxon",
                    VmxOp::Invept => "invept",
                    VmxOp::Invvpid => "invvpid",
                },
                Op::VmlaunchInvalid { .. } => "vmlaunch",
                Op::L2 { .. } => unreachable!("a block is no instruction"),
            },
        };
        text.to_owned()
    }

    /// The kernel's name of the reason of its exit.
    pub fn reason_name(&self) -> Option<String> {
        self.reason.map(|reason| self.isa.exit_reason(reason).to_string())
    }

    /// What it is about.
    pub fn operands(&self) -> Operands {
        let mut operands = Operands { gpa: self.gpa, ..Operands::default() };
        match &self.instruction {
            Instruction::Enter { guest, .. } => operands.l2 = Some(*guest),
            Instruction::Op(op) => match op {
                Op::Rdmsr { msr } | Op::Wrmsr { msr, .. } => operands.msr = Some(msr.0),
                Op::Cpuid { leaf, subleaf } => {
                    operands.leaf = Some(leaf.0);
                    operands.subleaf = Some(subleaf.0);
                }
                Op::Hypercall { nr, .. } => operands.nr = Some(nr.base),
                Op::In { port, size, .. } | Op::Ins { port, size, .. } => {
                    operands.port = Some((*port).into());
                    operands.size = Some(*size);
                    operands.direction = Some(Direction::In);
                }
                Op::Out { port, size, .. } | Op::Outs { port, size, .. } => {
                    operands.port = Some((*port).into());
                    operands.size = Some(*size);
                    operands.direction = Some(Direction::Out);
                }
                Op::ReadCr { cr } | Op::WriteCr { cr, .. } => operands.cr = Some(*cr),
                Op::Mmio { size, .. } => operands.size = Some(*size),
                Op::NestedPageFault { access: Access::Read | Access::Write, .. } => operands.size = Some(8),
                _ => {}
            },
        }
        if let Instruction::Op(Op::Ins { count, .. } | Op::Outs { count, .. }) = &self.instruction {
            operands.count = Some(*count);
        }
        operands
    }
}

/// The value that a register has unless something else is asked for: which register, vCPU and step it is, and the turn.
/// For RBX at step 0x2a of vCPU 1 in turn 3: `0xb001_002a_0000_0003`.
pub fn pattern(register: usize, vcpu: u32, site: u32) -> Value {
    Value { base: tag(register, vcpu, site) << 32, step: 1 }
}

fn tag(register: usize, vcpu: u32, site: u32) -> u64 {
    (0xa0 + 0x10 * register as u64) << 24 | u64::from(vcpu & 0xff) << 16 | u64::from(site & 0xffff)
}

/// RAX, RBX, RCX and RDX before a step. `cr` are the control registers at the start, by number.
pub fn before(step: &Step, vcpu: u32, site: u32, layout: &VcpuLayout, cr: [u64; 9]) -> [Value; 4] {
    const RAX: usize = 0;
    const RCX: usize = 2;
    const RDX: usize = 3;
    let mut values: [Value; 4] = std::array::from_fn(|register| {
        step.set.array()[register].unwrap_or_else(|| pattern(register, vcpu, site))
    });
    // A register whose lower half alone counts.
    let low = |register: usize, value: u64, each_turn: u64| {
        let value = value & 0xffff_ffff;
        match step.dirty {
            false => Value { base: value, step: each_turn },
            true => {
                Value { base: tag(register, vcpu, site) << 32 | value, step: each_turn.wrapping_add(1 << 32) }
            }
        }
    };
    // QEMU's TCG (7.2) finds an MSR's bits in the permission map by RCX * 2, all 64 bits of it, and with other upper halves
    // than 0 and 0x80000000 looks somewhere else.
    let msr_number = |msr: u64| Value::fixed(if step.dirty { msr | 1 << 63 } else { msr });
    match &step.op {
        Op::Rdmsr { msr } => values[RCX] = msr_number(msr.0),
        Op::Wrmsr { msr, value, step } => {
            values[RCX] = msr_number(msr.0);
            values[RAX] = low(RAX, value.0, step.0);
            values[RDX] = low(RDX, value.0 >> 32, 0);
        }
        Op::Cpuid { leaf, subleaf } => {
            values[RAX] = low(RAX, leaf.0, 0);
            values[RCX] = low(RCX, subleaf.0, 0);
        }
        Op::Hypercall { nr, args } => {
            values[RAX] = *nr;
            for (register, arg) in values[1..].iter_mut().zip(args) {
                *register = *arg;
            }
        }
        Op::In { port, immediate: false, .. } | Op::Out { port, immediate: false, .. } => {
            values[RDX] = low(RDX, (*port).into(), 0);
        }
        Op::Ins { port, count, .. } | Op::Outs { port, count, .. } => {
            values[RCX] = Value::fixed((*count).into());
            values[RDX] = low(RDX, (*port).into(), 0);
        }
        Op::WriteCr { cr: number, flip } => values[RAX] = Value::fixed(cr[usize::from(*number)] ^ flip.0),
        Op::Rdpmc { counter } => values[RCX] = low(RCX, counter.0, 0),
        Op::Monitor => {
            values[RAX] = Value::fixed(layout.buffer);
            values[RCX] = low(RCX, 0, 0);
            values[RDX] = low(RDX, 0, 0);
        }
        Op::Mwait => {
            values[RAX] = low(RAX, 0, 0);
            values[RCX] = low(RCX, 0, 0);
        }
        Op::Svm(SvmOp::Vmload | SvmOp::Vmsave) => values[RAX] = Value::fixed(layout.spare),
        Op::Svm(SvmOp::Invlpga) => {
            values[RAX] = Value::fixed(layout.buffer);
            values[RCX] = low(RCX, 1, 0);
        }
        Op::Svm(SvmOp::Skinit) => values[RAX] = low(RAX, layout.holes, 0),
        Op::VmrunInvalid { defect } => {
            let [asid, svme, intercept] = layout.invalid;
            values[RAX] = Value::fixed(match defect {
                Defect::AsidZero => asid,
                Defect::SvmeClear => svme,
                Defect::NoVmrunIntercept => intercept,
                Defect::Unaligned => asid + PAGE / 2,
            });
        }
        _ => {}
    }
    values
}
