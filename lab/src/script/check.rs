// SPDX-License-Identifier: MIT
//! What a script may not ask for, because it could not be done, or not be predicted.

use std::fmt;
use std::ops::RangeInclusive;

use crate::guest::layout::{LARGE_PAGE, MAPPED, MEMORY_LIMIT, PAGE, WAKE_VECTOR};
use crate::guest::vendor;

use exitregs_common::isa::Isa;

use super::{Access, Finish, Guest, Hole, Number, Op, Script, Selection, Step};

/// The ports that the guest signals its VMM by. L1 never intercepts them, and scripts do not use them.
pub const CONTROL_PORTS: RangeInclusive<u16> = 0xe0..=0xe3;

/// Bits of CR0 that a script may flip: MP, EM, TS, NE, WP, AM.
const CR0_FLIPS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 16 | 1 << 18;
/// Bits of CR4 that a script may flip: TSD, DE, PCE, PGE.
const CR4_FLIPS: u64 = 1 << 2 | 1 << 3 | 1 << 7 | 1 << 8;
/// Bits of CR8 that a script may flip: a higher priority would hold back the interrupt that ends a HLT.
const CR8_FLIPS: u64 = 3;
const _: () = assert!(CR8_FLIPS < WAKE_VECTOR as u64 >> 4);
/// More steps than this, copies counted, are refused: their code would not fit beside the logs.
const MAX_STEPS: u64 = 100_000;

/// Whether the guest signals its VMM by this port.
pub fn control_port(port: u16) -> bool {
    CONTROL_PORTS.contains(&port)
}

/// Why a script is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where: a guest by its index, or a step by the indices from the outermost on.
    pub place: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

impl std::error::Error for Invalid {}

impl Script {
    /// Checks that the guest can do all of it on a processor with this instruction set.
    ///
    /// # Errors
    /// For the first step that it cannot do.
    pub fn check(&self, isa: Isa) -> Result<(), Invalid> {
        for (index, guest) in self.guests.iter().enumerate() {
            let refuse = |why: String| Err(Invalid { place: format!("guest {index}"), why });
            if let Some(msr) = beyond(&guest.intercept_msrs, u32::MAX.into()) {
                return refuse(format!("{msr} is no MSR number: it has 32 bits"));
            }
            if let Some(port) = beyond(&guest.intercept_ports, u16::MAX.into()) {
                return refuse(format!("{port} is no port: the last one is 0xffff"));
            }
        }
        let mut check =
            Check { isa, script: self, path: Vec::new(), holes: 0, steps: 0, running: Vec::new() };
        check.steps(&self.steps, None, 1)
    }
}

/// The first number of a selection that is greater than `last`.
fn beyond(selection: &Selection, last: u64) -> Option<Number> {
    match selection {
        Selection::Only(numbers) => numbers.iter().copied().find(|number| number.0 > last),
        Selection::None | Selection::All => None,
    }
}

struct Check<'a> {
    isa: Isa,
    script: &'a Script,
    path: Vec<usize>,
    holes: u64,
    steps: u64,
    /// Guests that L1 deals with an exit of.
    running: Vec<usize>,
}

/// The block of L2 that a step is in.
#[derive(Clone, Copy)]
struct InBlock<'a> {
    guest: &'a Guest,
    index: usize,
    repeat: u32,
}

type Checked = Result<(), Invalid>;

impl<'a> Check<'a> {
    fn refuse<T>(&self, why: impl Into<String>) -> Result<T, Invalid> {
        let path: Vec<String> = self.path.iter().map(usize::to_string).collect();
        Err(Invalid { place: format!("step {}", path.join(".")), why: why.into() })
    }

    fn steps(&mut self, steps: &'a [Step], block: Option<InBlock<'a>>, copies: u64) -> Checked {
        for (index, step) in steps.iter().enumerate() {
            self.path.push(index);
            self.step(step, block, copies, index + 1 == steps.len())?;
            self.path.pop();
        }
        Ok(())
    }

    fn step(&mut self, step: &'a Step, block: Option<InBlock<'a>>, copies: u64, last: bool) -> Checked {
        let copies = copies.saturating_mul(step.times.into());
        self.steps = self.steps.saturating_add(copies);
        if self.steps > MAX_STEPS {
            return self.refuse(format!("more than {MAX_STEPS} steps; use `repeat`"));
        }
        if step.times == 0 {
            return self.refuse("`times` is 0");
        }
        if let Some(register) = (0..4).find(|&n| step.set.array()[n].is_some() && is_used(&step.op)[n]) {
            let name = ["rax", "rbx", "rcx", "rdx"][register];
            return self.refuse(format!("the operation decides the value of {name}"));
        }
        self.operands(&step.op)?;
        let only = match step.op {
            Op::Svm(_) | Op::VmrunInvalid { .. } => Isa::Svm,
            Op::Vmx(_) | Op::VmlaunchInvalid { .. } => Isa::Vmx,
            _ => self.isa,
        };
        if only != self.isa {
            let name = only.to_string().to_uppercase();
            return self.refuse(format!("this needs a processor with {name}"));
        }
        match block {
            None => {
                if step.l1.is_some() {
                    return self.refuse("`l1` is for steps of an L2");
                }
                self.l1(&step.op, copies)
            }
            Some(block) => self.l2(step, block, copies, last),
        }
    }

    fn operands(&self, op: &Op) -> Checked {
        let port_size = |size: u8| match size {
            1 | 2 | 4 => Ok(()),
            _ => self.refuse("a port access has 1, 2 or 4 bytes"),
        };
        let port_range =
            |port: u16, size: u8| match (0..u16::from(size)).any(|n| control_port(port.wrapping_add(n))) {
                false => Ok(()),
                true => self.refuse(format!(
                    "ports {:#x} to {:#x} are the guest's own",
                    CONTROL_PORTS.start(),
                    CONTROL_PORTS.end()
                )),
            };
        match *op {
            Op::Rdmsr { msr } | Op::Wrmsr { msr, .. } if u32::try_from(msr.0).is_err() => {
                self.refuse("an MSR number has 32 bits")
            }
            Op::Cpuid { leaf, subleaf } if u32::try_from(leaf.0 | subleaf.0).is_err() => {
                self.refuse("CPUID leaf and subleaf have 32 bits")
            }
            Op::Rdpmc { counter } if u32::try_from(counter.0).is_err() => {
                self.refuse("a counter has 32 bits")
            }
            Op::Hypercall { ref args, .. } if args.len() > 4 => {
                self.refuse("a hypercall has at most 4 arguments")
            }
            Op::In { port, size, immediate } | Op::Out { port, size, immediate } => {
                if immediate && port > 0xff {
                    return self.refuse("an immediate port has 8 bits");
                }
                port_size(size)?;
                port_range(port, size)
            }
            Op::Ins { port, size, count } | Op::Outs { port, size, count } => {
                port_size(size)?;
                if !(1..=1024).contains(&count) {
                    return self.refuse("`count` is 1 to 1024");
                }
                port_range(port, size)
            }
            Op::Hlt { sleep_us: Some(time) } if time > 4_000_000 => {
                self.refuse("an APIC timer runs for at most 4 seconds")
            }
            Op::ReadCr { cr } if !matches!(cr, 0 | 4 | 8) => self.refuse("CR0, CR4 and CR8 only"),
            Op::WriteCr { cr, flip } => {
                let may = match cr {
                    0 => CR0_FLIPS,
                    4 => CR4_FLIPS,
                    8 => CR8_FLIPS,
                    _ => return self.refuse("CR0, CR4 and CR8 only"),
                };
                match flip.0 & !may {
                    0 => Ok(()),
                    bits => {
                        self.refuse(format!("bits {bits:#x} of CR{cr} are not to be flipped (only {may:#x})"))
                    }
                }
            }
            Op::Mmio { address, size, .. } => {
                if !matches!(size, 1 | 2 | 4 | 8) {
                    return self.refuse("a memory access has 1, 2, 4 or 8 bytes");
                }
                // Above it KVM has its own pages, the IOAPIC and the local APIC.
                const MMIO: RangeInclusive<u64> = MEMORY_LIMIT..=0xfebf_ffff;
                const _: () = assert!(*MMIO.end() < MAPPED);
                if !MMIO.contains(&address.0) || address.0 % PAGE > PAGE - 8 {
                    return self.refuse(format!(
                        "an MMIO address is within a page, from {:#x} to {:#x}",
                        MMIO.start(),
                        MMIO.end()
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn l1(&mut self, op: &'a Op, copies: u64) -> Checked {
        match op {
            Op::NestedPageFault { .. } => self.refuse("only an L2 has nested page faults"),
            Op::TripleFault => self.refuse("a triple fault of L1 is the end of the VM"),
            Op::L2 { guest: index, repeat, steps } => {
                let Some(guest) = self.script.guests.get(*index) else {
                    return self.refuse(format!("there is no guest {index}"));
                };
                if *repeat == 0 {
                    return self.refuse("`repeat` is 0");
                }
                if self.running.contains(index) {
                    return self.refuse(format!("L1 is handling an exit of guest {index}"));
                }
                self.running.push(*index);
                let block = InBlock { guest, index: *index, repeat: *repeat };
                self.steps(steps, Some(block), copies)?;
                self.running.pop();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn l2(&mut self, step: &'a Step, block: InBlock<'a>, copies: u64, last: bool) -> Checked {
        let intercepted = vendor::is_intercepted(self.isa, &step.op, block.guest);
        match step.op {
            Op::L2 { .. } => return self.refuse("L2 has no guests"),
            Op::VmrunInvalid { .. } => return self.refuse("only L1 executes VMRUN"),
            Op::VmlaunchInvalid { .. } => return self.refuse("only L1 executes VMLAUNCH"),
            Op::Svm(_) if !intercepted => {
                return self.refuse(format!(
                    "guest {} has SVM instructions only if L1 intercepts them",
                    block.index
                ));
            }
            Op::TripleFault if !last || block.repeat > 1 || step.times > 1 => {
                return self.refuse("a triple fault is the last step of a block that is not repeated");
            }
            Op::NestedPageFault { access, hole } => {
                self.holes += copies;
                if self.holes > LARGE_PAGE / PAGE {
                    return self.refuse(format!("more than {} nested page faults", LARGE_PAGE / PAGE));
                }
                if matches!(
                    (access, hole),
                    (Access::Read, Hole::ReadOnly | Hole::NoExecute)
                        | (Access::Write, Hole::NoExecute)
                        | (Access::Execute, Hole::ReadOnly)
                ) {
                    return self.refuse("that access does not fault");
                }
            }
            _ => {}
        }
        let Some(reaction) = &step.l1 else { return Ok(()) };
        // What L1 can intercept by SVM, it may not be able to by VMX: then L2 has no such exit there.
        let intercepts = intercepted || vendor::is_intercepted(Isa::Svm, &step.op, block.guest);
        if !intercepts {
            return self.refuse(format!("L1 does not intercept that of guest {}", block.index));
        }
        if step.op == Op::TripleFault {
            return self.refuse("L2 does not go on after a triple fault");
        }
        let maps = reaction.finish == Finish::Map;
        if maps && !matches!(step.op, Op::NestedPageFault { .. }) {
            return self.refuse("`map` is for nested page faults");
        }
        if maps && block.repeat > 1 {
            return self.refuse("in a repeated block the hole would be filled from the second turn on");
        }
        if matches!(step.op, Op::NestedPageFault { access: Access::Execute, .. })
            && matches!(reaction.finish, Finish::Inject(_))
        {
            return self
                .refuse("an exception at an address that L2 cannot fetch from is not the instruction's");
        }
        self.steps(&reaction.steps, None, copies)
    }
}

/// Which of RAX, RBX, RCX and RDX an operation decides.
pub(super) fn is_used(op: &Op) -> [bool; 4] {
    match op {
        Op::Rdmsr { .. } | Op::Rdpmc { .. } => [false, false, true, false],
        Op::Wrmsr { .. } | Op::Monitor => [true, false, true, true],
        Op::Cpuid { .. } | Op::Mwait | Op::Svm(super::SvmOp::Invlpga) => [true, false, true, false],
        Op::Hypercall { args, .. } => [true, !args.is_empty(), args.len() > 1, args.len() > 2],
        Op::In { immediate, .. } | Op::Out { immediate, .. } => [false, false, false, !immediate],
        Op::Ins { .. } | Op::Outs { .. } => [false, false, true, true],
        Op::WriteCr { .. } | Op::VmrunInvalid { .. } => [true, false, false, false],
        Op::Svm(super::SvmOp::Vmload | super::SvmOp::Vmsave | super::SvmOp::Skinit) => {
            [true, false, false, false]
        }
        Op::L2 { .. } => [true; 4],
        _ => [false; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guests: &str, steps: &str) -> Result<(), String> {
        let text = format!(r#"{{"description": "", "guests": [{guests}], "steps": [{steps}]}}"#);
        let script: Script = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        script.check(Isa::Svm).map_err(|invalid| invalid.to_string())
    }

    fn l2(steps: &str) -> String {
        format!(r#"{{"op": {{"l2": {{"guest": 0, "steps": [{steps}]}}}}}}"#)
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = [
            (r#"{"op": {"rdmsr": {"msr": "0x100000000"}}}"#, "step 0: an MSR number has 32 bits"),
            (r#"{"op": {"rdmsr": {"msr": 1}}, "set": {"rcx": 2}}"#, "decides the value of rcx"),
            (r#"{"op": {"rdmsr": {"msr": 1}}, "times": 0}"#, "`times` is 0"),
            (r#"{"op": {"rdmsr": {"msr": 1}}, "times": 100001}"#, "more than 100000 steps"),
            (r#"{"op": {"rdmsr": {"msr": 1}}, "l1": {}}"#, "`l1` is for steps of an L2"),
            (r#"{"op": {"out": {"port": "0xdf", "size": 2}}}"#, "the guest's own"),
            (r#"{"op": {"out": {"port": "0x3f8", "size": 1, "immediate": true}}}"#, "8 bits"),
            (r#"{"op": {"in": {"port": "0x3f8", "size": 8}}}"#, "1, 2 or 4 bytes"),
            (r#"{"op": {"ins": {"port": "0x3f8", "size": 1, "count": 0}}}"#, "`count`"),
            (r#"{"op": {"hypercall": {"nr": 1, "args": [1, 2, 3, 4, 5]}}}"#, "at most 4"),
            (r#"{"op": {"hlt": {"sleep_us": 5000000}}}"#, "4 seconds"),
            (r#"{"op": {"read_cr": {"cr": 3}}}"#, "CR0, CR4 and CR8 only"),
            (r#"{"op": {"write_cr": {"cr": 0, "flip": "0x80000000"}}}"#, "0x80000000"),
            (r#"{"op": {"write_cr": {"cr": 8, "flip": 4}}}"#, "not to be flipped"),
            (r#"{"op": {"mmio": {"address": "0x1000", "size": 4}}}"#, "MMIO"),
            (r#"{"op": {"mmio": {"address": "0xd0000ffc", "size": 8}}}"#, "within a page"),
            (r#"{"op": {"nested_page_fault": {"access": "read", "hole": "absent"}}}"#, "only an L2"),
            (r#"{"op": "triple_fault"}"#, "the end of the VM"),
            (r#"{"op": {"l2": {"guest": 1, "steps": []}}}"#, "no guest 1"),
            (r#"{"op": {"l2": {"guest": 0, "repeat": 0, "steps": []}}}"#, "`repeat` is 0"),
            (&l2(r#"{"op": {"l2": {"guest": 0, "steps": []}}}"#), "step 0.0: L2 has no guests"),
            (&l2(r#"{"op": {"svm": "vmload"}}"#), "only if L1 intercepts"),
            (&l2(r#"{"op": {"vmrun_invalid": {"defect": "asid_zero"}}}"#), "only L1"),
            (&l2(r#"{"op": "triple_fault"}, {"op": "pause"}"#), "the last step"),
            (&l2(r#"{"op": {"cpuid": {"leaf": 0}}, "l1": {}}"#), "does not intercept"),
            (&l2(r#"{"op": {"hypercall": {"nr": 0}}, "l1": {"finish": "map"}}"#), "`map`"),
            (
                &l2(r#"{"op": {"nested_page_fault": {"access": "read", "hole": "read_only"}}}"#),
                "does not fault",
            ),
            (
                &l2(
                    r#"{"op": {"hypercall": {"nr": 0}}, "l1": {"steps": [{"op": {"l2": {"guest": 0, "steps": []}}}]}}"#,
                ),
                "step 0.0.0: L1 is handling an exit of guest 0",
            ),
        ];
        for (steps, why) in refused {
            let error = check("{}", steps).expect_err(steps);
            assert!(error.contains(why), "{steps}: {error}");
        }
        let error = check(r#"{"intercept_ports": {"only": ["0x10000"]}}"#, "").unwrap_err();
        assert!(error.starts_with("guest 0: 0x10000 is no port"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for steps in [
            r#"{"op": {"rdmsr": {"msr": 1, "value": 2}}}"#,
            r#"{"op": {"rdmsr": {"msr": 1}}, "time": 2}"#,
            r#"{"op": {"rdmsr": {"msr": "0xgg"}}}"#,
            r#"{"op": {"rdmsr": {"msr": -1}}}"#,
            r#"{"op": {"out": {"port": 65536, "size": 1}}}"#,
            r#"{"op": "rdmsr"}"#,
        ] {
            check("", steps).expect_err(steps);
        }
    }
}
