// SPDX-License-Identifier: MIT
//! Scripts made from a number: everything that the language has, mixed.

use std::collections::BTreeSet;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Access, Defect, Exception, Finish, Guest, Hole, Intercept, Number, Op, Reaction, Registers, Script,
    Selection, Step, SvmOp, Value, VmcsDefect, VmxOp,
};
use crate::guest::vendor;
use exitregs_common::isa::Isa;

/// MSRs that KVM handles, one that it may pass through, and some that do not exist.
const MSRS: [u64; 8] = [0x10, 0x1b, 0x200, 0x201, 0x277, 0xc000_0102, 0xc001_0015, 0xdead_0000];
/// MSRs that a script may write without harm, and what to write.
const WRITABLE: [(u64, u64, u64); 4] =
    [(0x200, 6, 0x1000), (0x202, 0, 0x1000), (0x200, u64::MAX, 0), (0xdead_0000, 0, 1)];
/// Ports of the interrupt controllers, which KVM has itself, and ports that user space has.
const PORTS: [u16; 6] = [0x21, 0x4d0, 0x60, 0x80, 0x3f8, 0xcf8];
/// The guest of the script's that has everything intercepted.
const ALL: usize = 1;

/// The script of this number for an instruction set, with about so many instructions: the same one each time.
///
/// Of its guests, the first has no exits but those that L1 always gets, the second has all, the third has some.
pub fn random(seed: u64, ops: u32, isa: Isa) -> Script {
    let mut random = Random { isa, rng: ChaCha8Rng::seed_from_u64(seed), left: i64::from(ops), holes: 0 };
    let guests = random.guests();
    let mut steps = Vec::new();
    while random.left > 0 {
        let step = random.l1_step(&guests, &mut Vec::new());
        steps.push(step);
    }
    Script {
        description: format!("made from the number {seed}, {ops} instructions"),
        guests,
        steps,
        repeat: 1,
    }
}

struct Random {
    isa: Isa,
    rng: ChaCha8Rng,
    /// Instructions still wanted.
    left: i64,
    holes: u32,
}

impl Random {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.rng).expect("not empty")
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    fn below(&mut self, end: u32) -> u32 {
        self.rng.random_range(0..end)
    }

    fn guests(&mut self) -> Vec<Guest> {
        let all = Guest {
            intercept: INTERCEPTS.into_iter().collect(),
            intercept_msrs: Selection::All,
            intercept_ports: Selection::All,
        };
        let some = Guest {
            intercept: INTERCEPTS.into_iter().filter(|_| self.chance(50)).collect(),
            intercept_msrs: self.selection(&MSRS),
            intercept_ports: self.selection(&PORTS.map(u64::from)),
        };
        vec![Guest::default(), all, some]
    }

    fn selection(&mut self, of: &[u64]) -> Selection {
        let set: BTreeSet<Number> = of.iter().filter(|_| self.chance(50)).map(|&n| Number(n)).collect();
        if set.is_empty() { Selection::None } else { Selection::Only(set) }
    }

    /// A step of L1. `running`: guests that L1 deals with an exit of.
    fn l1_step(&mut self, guests: &[Guest], running: &mut Vec<usize>) -> Step {
        let free: Vec<usize> = (0..guests.len()).filter(|guest| !running.contains(guest)).collect();
        if !free.is_empty() && self.chance(if running.is_empty() { 40 } else { 10 }) {
            let guest = self.one(&free);
            return self.block(guests, guest, running);
        }
        let op = match self.below(8) {
            0 if self.isa == Isa::Vmx => Op::Vmx(self.one(&VMX)),
            1 if self.isa == Isa::Vmx => Op::VmlaunchInvalid { defect: self.one(&VmcsDefect::ALL) },
            0 => Op::Svm(self.one(&[SvmOp::Vmload, SvmOp::Vmsave, SvmOp::Stgi, SvmOp::Clgi, SvmOp::Invlpga])),
            1 => Op::VmrunInvalid {
                defect: self.one(&[
                    Defect::AsidZero,
                    Defect::SvmeClear,
                    Defect::NoVmrunIntercept,
                    Defect::Unaligned,
                ]),
            },
            _ => self.op(),
        };
        self.step(op)
    }

    fn block(&mut self, guests: &[Guest], guest: usize, running: &mut Vec<usize>) -> Step {
        let repeat = if self.chance(30) { 2 + self.below(3) } else { 1 };
        let mut steps: Vec<Step> = Vec::new();
        running.push(guest);
        for _ in 0..=self.below(8) {
            let step = self.l2_step(guests, guest, repeat, running);
            steps.push(step);
        }
        running.pop();
        if repeat == 1 && self.chance(5) {
            steps.push(Step::new(Op::TripleFault));
        }
        Step::new(Op::L2 { guest, repeat, steps })
    }

    fn l2_step(&mut self, guests: &[Guest], guest: usize, repeat: u32, running: &mut Vec<usize>) -> Step {
        let op = match self.below(10) {
            0 if self.holes < 500 => {
                self.holes += 1;
                let (access, hole) = self.one(&FAULTS);
                Op::NestedPageFault { access, hole }
            }
            1 if self.isa == Isa::Vmx => Op::Vmx(self.one(&VMX)),
            1 if guest == ALL => {
                Op::Svm(self.one(&[SvmOp::Vmload, SvmOp::Vmsave, SvmOp::Stgi, SvmOp::Clgi, SvmOp::Invlpga]))
            }
            2 => {
                Op::Hypercall { nr: Value { base: self.below(20).into(), step: 1 << 32 }, args: self.args() }
            }
            _ => self.op(),
        };
        let op = match op {
            // QEMU's TCG (7.2) aborts on a write of CR8 while an interrupt window is open.
            Op::WriteCr { cr: 8, .. } if !vendor::is_intercepted(self.isa, &op, &guests[guest]) => {
                Op::ReadCr { cr: 8 }
            }
            op => op,
        };
        let intercepted = vendor::is_intercepted(self.isa, &op, &guests[guest]);
        let mut step = self.step(op);
        if intercepted && self.chance(70) {
            let own = match self.below(10) {
                0..=5 => 0,
                6..=7 => 1,
                8 => 3,
                _ => 7,
            };
            let steps = (0..own).map(|_| self.l1_step(guests, running)).collect();
            let finish = self.finish(&step.op, repeat);
            step.l1 = Some(Reaction { steps, finish });
        }
        step
    }

    fn finish(&mut self, op: &Op, repeat: u32) -> Finish {
        let fetches = matches!(op, Op::NestedPageFault { access: Access::Execute, .. });
        match op {
            Op::NestedPageFault { .. } if repeat == 1 && self.chance(50) => Finish::Map,
            _ if !fetches && self.chance(15) => Finish::Inject(self.one(&[Exception::Gp, Exception::Ud])),
            _ => {
                let mut value = |percent| self.chance(percent).then(|| self.value());
                Finish::Skip(Registers { rax: value(60), rbx: value(20), rcx: value(20), rdx: value(40) })
            }
        }
    }

    fn value(&mut self) -> Value {
        let base = self.rng.random();
        Value { base, step: if self.chance(50) { self.rng.random() } else { 0 } }
    }

    fn args(&mut self) -> Vec<Value> {
        (0..self.below(5)).map(|_| self.value()).collect()
    }

    /// A step with some of the registers chosen that the operation leaves free.
    fn step(&mut self, op: Op) -> Step {
        self.left -= 1;
        let used = super::check::is_used(&op);
        let mut free = |register: usize| (!used[register] && self.chance(25)).then(|| self.value());
        let set = Registers { rax: free(0), rbx: free(1), rcx: free(2), rdx: free(3) };
        let times = if self.chance(5) { 2 } else { 1 };
        Step { set, dirty: self.chance(30), times, ..Step::new(op) }
    }

    /// An operation of either level.
    fn op(&mut self) -> Op {
        let port = self.one(&PORTS);
        let size = self.one(&[1, 2, 4]);
        let immediate = port < 0x100 && self.chance(50);
        match self.below(24) {
            0..=2 => Op::Rdmsr { msr: Number(self.one(&MSRS)) },
            3..=4 => {
                let (msr, value, step) = self.one(&WRITABLE);
                Op::Wrmsr { msr: Number(msr), value: Number(value), step: Number(step) }
            }
            5..=6 => Op::Cpuid {
                leaf: Number(self.one(&[0, 1, 7, 0xd, 0x4000_0000, 0x8000_0008])),
                subleaf: Number(0),
            },
            // KVM_HC_VAPIC_POLL_IRQ, and numbers that KVM does not have.
            7..=8 => Op::Hypercall {
                nr: Value::fixed(self.one(&[1, 0x1000, 0xffff_ffff_ffff_fff0])),
                args: self.args(),
            },
            9..=10 => Op::In { port, size, immediate },
            11..=12 => Op::Out { port: self.one(&PORTS[3..]), size, immediate: false },
            13 => Op::Ins { port: 0x3f8, size, count: 1 + self.below(16) as u16 },
            14 => Op::Outs { port: 0x3f8, size, count: 1 + self.below(16) as u16 },
            15 => Op::Hlt { sleep_us: self.chance(30).then_some(20) },
            16 => Op::ReadCr { cr: self.one(&[0, 4, 8]) },
            17 => {
                let (cr, flip) =
                    self.one(&[(0, 0), (0, 1 << 18), (0, 2), (4, 0), (4, 4), (4, 0x100), (8, 0), (8, 3)]);
                Op::WriteCr { cr, flip: Number(flip) }
            }
            18 => self.one_of(&[Op::Rdtsc, Op::Rdpmc { counter: Number(0) }, Op::Pause]),
            19 => self.one_of(&[Op::Invlpg, Op::Wbinvd]),
            20 => self.one_of(&[Op::Monitor, Op::Mwait]),
            21 => Op::Ud2,
            _ => Op::Mmio {
                address: Number(
                    0xd000_0000 + 0x1000 * u64::from(self.below(64)) + 8 * u64::from(self.below(500)),
                ),
                size: self.one(&[1, 2, 4, 8]),
                write: self.chance(50),
            },
        }
    }

    fn one_of(&mut self, of: &[Op]) -> Op {
        of.choose(&mut self.rng).expect("not empty").clone()
    }
}

const VMX: [VmxOp; 8] = [
    VmxOp::Vmclear,
    VmxOp::Vmptrld,
    VmxOp::Vmptrst,
    VmxOp::Vmread,
    VmxOp::Vmwrite,
    VmxOp::Vmxon,
    VmxOp::Invept,
    VmxOp::Invvpid,
];

const FAULTS: [(Access, Hole); 5] = [
    (Access::Read, Hole::Absent),
    (Access::Write, Hole::Absent),
    (Access::Execute, Hole::Absent),
    (Access::Write, Hole::ReadOnly),
    (Access::Execute, Hole::NoExecute),
];

const INTERCEPTS: [Intercept; 21] = [
    Intercept::Cpuid,
    Intercept::Hlt,
    Intercept::Invlpg,
    Intercept::Invlpga,
    Intercept::Monitor,
    Intercept::Mwait,
    Intercept::Pause,
    Intercept::Rdpmc,
    Intercept::Rdtsc,
    Intercept::ReadCr0,
    Intercept::ReadCr4,
    Intercept::ReadCr8,
    Intercept::Stgi,
    Intercept::Clgi,
    Intercept::Ud,
    Intercept::Vmload,
    Intercept::Vmsave,
    Intercept::Wbinvd,
    Intercept::WriteCr0,
    Intercept::WriteCr4,
    Intercept::WriteCr8,
];
