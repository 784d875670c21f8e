// SPDX-License-Identifier: MIT
//! From a script to machine code.
//!
//! Registers:
//!
//! | | |
//! |---|---|
//! | rax, rbx, rcx, rdx | what the script chooses |
//! | rsi, rdi | addresses for the few instructions that need them |
//! | r8, r9 | the open record of L1, of L2 |
//! | r11 | L2: turns of its block still to do |
//! | r12 | L1: turns of the script still to do |
//! | r13 | scratch |
//! | r14 | turns done |
//! | r15 | the end of the log |
//!
//! r12, r14 and r15 mean the same at both levels: VMRUN and #VMEXIT leave them alone.

use std::mem::offset_of;

use exitregs_common::svm::ExitCode;
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use crate::script::{Access, Finish, Hole, Op, Reaction, Script, Step, SvmOp, Value};
use crate::truth::{Exits, Handled};

use super::layout::{GuestLayout, PAGE, VcpuLayout, WAKE_VECTOR, saved, slot};
use super::log::{Failure, Record};
use super::signal::Signal;
use super::site::{self, Instruction, Next, Site};
use super::svm::{self, Expected, Vmcb};

/// The selector that the guest's stack segment has.
pub const DATA_SELECTOR: u16 = 0x10;
/// The selector that the guest's code segment has.
pub const CODE_SELECTOR: u16 = 0x08;

/// RFLAGS.IF.
const RFLAGS_IF: i32 = 1 << 9;

const X2APIC_EOI: u64 = 0x80b;
const X2APIC_LVT_TIMER: u64 = 0x832;
const X2APIC_INITIAL_COUNT: u64 = 0x838;
const X2APIC_DIVIDE: u64 = 0x83e;
const X2APIC_SELF_IPI: u64 = 0x83f;
/// What L2 puts into RAX for the hypercall that ends a block. KVM has no hypercall of this number.
pub const END_OF_BLOCK: u64 = 0x0065_6e64;

/// What the code is made for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What to do.
    pub script: &'a Script,
    /// The vCPU's index.
    pub vcpu: u32,
    /// Its memory.
    pub layout: &'a VcpuLayout,
    /// The control registers at the start, by number.
    pub cr: [u64; 9],
    /// Turns of the script.
    pub repeat: u32,
    /// End the VM abruptly in the middle of the middle turn.
    pub die_midway: bool,
}

/// A vCPU's code.
#[derive(Clone, Debug)]
pub struct Code {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The address of the first byte.
    pub base: u64,
    /// The address of L1's first instruction.
    pub entry: u64,
    /// The instructions of interest; their index is the `step` of a line of truth.
    pub sites: Vec<Site>,
    /// L1's handlers by vector.
    pub l1_handlers: Vec<(u8, u64)>,
    /// L2's handlers by vector.
    pub l2_handlers: Vec<(u8, u64)>,
    /// More records than one turn can make, unless a HLT has to be tried again.
    pub records_per_turn: u64,
}

/// Makes a vCPU's code, to be put at `base`. The script must have passed [`Script::check`].
///
/// # Errors
/// If the assembler refuses an instruction, which would be a defect of this module.
pub fn assemble(options: Options<'_>, base: u64) -> Result<Code, IcedError> {
    let mut assembler = Assembler {
        a: CodeAssembler::new(64)?,
        options,
        sites: Vec::new(),
        blocks: Vec::new(),
        holes: 0,
        gif_may_be_clear: clears_gif(&options.script.steps),
        check: Vec::new(),
        fail: CodeLabel::default(),
        to_die: options.die_midway.then(|| count(&options.script.steps) / 2),
        records: 4,
    };
    assembler.program()?;
    assembler.finish(base)
}

/// Instructions of the script, at both levels.
fn count(steps: &[Step]) -> u64 {
    steps
        .iter()
        .map(|step| {
            let own = match &step.op {
                Op::L2 { steps, .. } => count(steps),
                _ => 1,
            };
            let reaction = step.l1.as_ref().map_or(0, |reaction| count(&reaction.steps));
            u64::from(step.times) * (own + reaction)
        })
        .sum()
}

fn clears_gif(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step.op, Op::L2 { .. } | Op::VmrunInvalid { .. } | Op::Svm(SvmOp::Clgi)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    L1,
    L2,
}

/// A site whose addresses are not known yet.
struct Pending {
    site: Site,
    instruction: CodeLabel,
    resume: CodeLabel,
    /// Where the exit is, if that is not at the instruction.
    elsewhere: Option<u64>,
}

/// A block of L2, whose code comes after all of L1's.
struct Block<'a> {
    repeat: u32,
    start: CodeLabel,
    steps: Vec<L2Step<'a>>,
    /// The hypercall at its end; none after a triple fault.
    end: Option<u32>,
}

#[derive(Clone, Copy)]
struct L2Step<'a> {
    step: &'a Step,
    site: u32,
    /// Where to begin again a HLT that was interrupted before it.
    retry: CodeLabel,
    hole: Option<u64>,
    /// Die before it.
    die: Option<u32>,
}

struct Assembler<'a> {
    a: CodeAssembler,
    options: Options<'a>,
    sites: Vec<Pending>,
    blocks: Vec<Block<'a>>,
    /// Holes given out.
    holes: u64,
    /// Whether the global interrupt flag may be clear in L1.
    gif_may_be_clear: bool,
    /// By guest: checks its exit against RBX (code), RCX (RIP); RDX is the site.
    check: Vec<CodeLabel>,
    fail: CodeLabel,
    /// Instructions of the script until the VM is to end.
    to_die: Option<u64>,
    records: u64,
}

type Emit<T = ()> = Result<T, IcedError>;

impl<'a> Assembler<'a> {
    fn guest(&self, guest: usize) -> &'a GuestLayout {
        &self.options.layout.guests[guest]
    }

    fn slot(&self, offset: u64) -> u64 {
        self.options.layout.slots + offset
    }

    fn failure(&self, offset: usize) -> u64 {
        self.slot(slot::FAILURE) + offset as u64
    }

    // --- The program -------------------------------------------------------------------------------------------------

    fn program(&mut self) -> Emit {
        self.fail = self.a.create_label();
        for _ in &self.options.script.guests {
            let label = self.a.create_label();
            self.check.push(label);
        }
        let layout = self.options.layout;

        self.a.mov(r8, self.slot(slot::UNUSED))?;
        self.a.mov(r9, r8)?;
        self.a.mov(r15, layout.log)?;
        self.a.xor(r14, r14)?;
        self.a.mov(r12, u64::from(self.options.repeat))?;

        let mut turn = self.a.create_label();
        self.a.set_label(&mut turn)?;
        let script = self.options.script;
        self.l1_steps(&script.steps)?;
        self.a.inc(r14)?;

        // Is there room for one more turn?
        let mut room = self.a.create_label();
        let turn_bytes = self.records * Record::SIZE;
        self.a.mov(r13, layout.log_end.saturating_sub(turn_bytes))?;
        self.a.cmp(r15, r13)?;
        self.a.jbe(room)?;
        self.signal(Level::L1, Signal::ReadLog, None)?;
        // Its record is the first of the new log.
        self.a.cld()?;
        self.a.mov(rsi, self.slot(slot::SIGNAL))?;
        self.a.mov(rdi, layout.log)?;
        self.a.mov(ecx, (Record::SIZE / 8) as u32)?;
        self.a.rep().movsq()?;
        self.a.mov(r15, rdi)?;
        self.a.set_label(&mut room)?;
        self.a.dec(r12)?;
        self.a.jne(turn)?;

        self.signal(Level::L1, Signal::Done, None)?;
        self.halt()?;

        for guest in 0..self.check.len() {
            self.check_routine(guest)?;
        }
        let mut fail = self.fail;
        self.a.set_label(&mut fail)?;
        self.fail = fail;
        self.a.mov(qword_ptr(self.slot(slot::LOG_NOW)), r15)?;
        self.a.out(u32::from(Signal::Failed.port()), al)?;
        self.halt()?;

        for block in std::mem::take(&mut self.blocks) {
            self.l2_block(&block)?;
        }
        Ok(())
    }

    fn halt(&mut self) -> Emit {
        let mut here = self.a.create_label();
        self.a.set_label(&mut here)?;
        self.a.cli()?;
        self.a.hlt()?;
        self.a.jmp(here)
    }

    /// Compares the exit of L2 with what is expected: RBX the code, RCX the RIP, RDX the site.
    fn check_routine(&mut self, guest: usize) -> Emit {
        let vmcb = self.guest(guest).vmcb;
        let mut wrong = self.a.create_label();
        let mut label = self.check[guest];
        self.a.set_label(&mut label)?;
        self.a.mov(rax, qword_ptr(vmcb + offset_of!(Vmcb, control.exit_code) as u64))?;
        self.a.cmp(eax, ebx)?;
        self.a.jne(wrong)?;
        self.a.cmp(qword_ptr(vmcb + offset_of!(Vmcb, save.rip) as u64), rcx)?;
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

    // --- Sites and records -------------------------------------------------------------------------------------------

    fn site(&mut self, instruction: Instruction, guest: Option<usize>, expected: Expected) -> u32 {
        let id = u32::try_from(self.sites.len()).expect("fewer than 2^32 instructions fit in memory");
        let pending = Pending {
            site: Site {
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
    fn step_site(&mut self, step: &Step, guest: Option<usize>) -> u32 {
        let script = self.options.script;
        let expected = svm::expected(&step.op, guest.map(|guest| &script.guests[guest]));
        let id = self.site(Instruction::Op(step.op.clone()), guest, expected);
        let before = site::before(step, self.options.vcpu, id, self.options.layout, self.options.cr);
        self.pending(id).site.before = Some(before);
        id
    }

    fn pending(&mut self, id: u32) -> &mut Pending {
        &mut self.sites[id as usize]
    }

    fn load(&mut self, register: AsmRegister64, value: Value) -> Emit {
        self.a.mov(register, value.base)?;
        if value.step != 0 {
            self.a.mov(r13, value.step)?;
            self.a.imul_2(r13, r14)?;
            self.a.add(register, r13)?;
        }
        Ok(())
    }

    fn open(&mut self, level: Level, id: u32, at: AsmRegister64) -> Emit {
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
    fn begin(&mut self, level: Level, id: u32) -> Emit {
        self.open(level, id, r15)?;
        self.a.add(r15, Record::SIZE as i32)
    }

    /// Closes it.
    fn end(&mut self, level: Level) -> Emit {
        let at = open_record(level);
        for (n, register) in [rax, rbx, rcx, rdx].into_iter().enumerate() {
            self.a.mov(qword_ptr(at + (offset_of!(Record, after) + 8 * n) as i32), register)?;
        }
        self.a.mov(qword_ptr(at + offset_of!(Record, state) as i32), Record::CLOSED as i32)
    }

    /// Tells user space something by a port write, whose record is in a place of its own because user space reads the log
    /// before it is closed.
    fn signal(&mut self, level: Level, signal: Signal, guest: Option<usize>) -> Emit {
        let op = Op::Out { port: signal.port(), size: 1, immediate: true };
        let id = self.step_site(&Step::new(op), guest);
        if signal != Signal::ReadLog {
            self.pending(id).site.next = Next::Leaves;
        }
        self.emit_signal(level, signal, id)
    }

    fn emit_signal(&mut self, level: Level, signal: Signal, id: u32) -> Emit {
        self.load_registers(id)?;
        self.a.mov(qword_ptr(self.slot(slot::LOG_NOW)), r15)?;
        self.a.mov(r15, self.slot(slot::SIGNAL))?;
        self.open(level, id, r15)?;
        self.place_instruction(id)?;
        self.a.out(u32::from(signal.port()), al)?;
        self.place_resume(id)?;
        self.end(level)
    }

    fn labels(&mut self, id: u32) -> (CodeLabel, CodeLabel) {
        let pending = self.pending(id);
        (pending.instruction, pending.resume)
    }

    /// The next instruction is the site's.
    fn place_instruction(&mut self, id: u32) -> Emit {
        // What the assembler notes in a label, it notes in this copy only.
        self.a.set_label(&mut self.sites[id as usize].instruction)
    }

    /// The next instruction is where the guest goes on after the site's.
    fn place_resume(&mut self, id: u32) -> Emit {
        self.a.set_label(&mut self.sites[id as usize].resume)
    }

    fn load_registers(&mut self, id: u32) -> Emit {
        let values = self.pending(id).site.before.expect("a step's registers are chosen");
        for (register, value) in [rax, rbx, rcx, rdx].into_iter().zip(values) {
            self.load(register, value)?;
        }
        Ok(())
    }

    // --- L1 ----------------------------------------------------------------------------------------------------------

    fn l1_steps(&mut self, steps: &'a [Step]) -> Emit {
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

    fn l1_step(&mut self, step: &Step) -> Emit {
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
                self.l1_step(&Step::new(Op::Svm(SvmOp::Stgi)))?;
            }
        }
        let id = self.step_site(step, None);
        self.execute(Level::L1, &step.op, id, None, None)
    }

    fn dies_here(&mut self) -> bool {
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
    fn arm_wake_up(&mut self, sleep_us: Option<u32>) -> Emit {
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
    fn glue(&mut self, step: &Step) -> Emit {
        let id = self.step_site(step, None);
        self.execute(Level::L1, &step.op, id, None, None)
    }

    /// L1 runs an L2 until the end of a block.
    fn run_l2(&mut self, guest: usize, repeat: u32, steps: &'a [Step]) -> Emit {
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
            set: crate::script::Registers { rax: Some(Value::fixed(END_OF_BLOCK)), ..Default::default() },
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
        let vmcb = self.guest(guest).vmcb;
        self.a.lea(rax, ptr(block_start))?;
        self.a.mov(qword_ptr(vmcb + offset_of!(Vmcb, save.rip) as u64), rax)?;

        let returns: Vec<L2Step<'a>> = block
            .steps
            .iter()
            .copied()
            .filter(|item| svm::expected(&item.step.op, Some(&script.guests[guest])).reaches_l1())
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
            self.enter(guest)?;
            self.expect(guest, end, ExitCode::VMMCALL)?;
        }
        Ok(())
    }

    fn l2_site(&mut self, step: &'a Step, guest: usize) -> L2Step<'a> {
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
        if let Some(Reaction { finish: Finish::Inject(_), .. }) = step.l1 {
            pending.site.next = Next::L1Injects;
        }
        if step.op == Op::TripleFault {
            pending.site.next = Next::Leaves;
        }
        L2Step { step, site: id, retry: self.a.create_label(), hole, die }
    }

    /// Runs L2 up to a step that comes back to L1, and does what the script says about it.
    fn l2_return(&mut self, guest: usize, item: L2Step<'a>) -> Emit {
        let script = self.options.script;
        let vmcb = self.guest(guest).vmcb;
        let expected = svm::expected(&item.step.op, Some(&script.guests[guest]));
        if expected.handled == Some(Handled::Forced) {
            return self.l2_halt(guest, item);
        }
        self.enter(guest)?;
        self.expect(guest, item.site, expected.reason.expect("what is reflected has a reason"))?;
        if item.step.op == Op::TripleFault {
            return self.reset_l2(guest);
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
                let keep = self.guest(guest).registers;
                let places = [
                    vmcb + offset_of!(Vmcb, save.rax) as u64,
                    keep + saved::RBX,
                    keep + saved::RCX,
                    keep + saved::RDX,
                ];
                for (value, place) in registers.array().into_iter().zip(places) {
                    if let Some(value) = value {
                        self.load(rax, value)?;
                        self.a.mov(qword_ptr(place), rax)?;
                    }
                }
                let (_, resume) = self.labels(item.site);
                self.a.lea(rax, ptr(resume))?;
                self.a.mov(qword_ptr(vmcb + offset_of!(Vmcb, save.rip) as u64), rax)?;
            }
            Finish::Inject(exception) => {
                self.a.mov(rax, svm::event_injection(exception))?;
                self.a.mov(qword_ptr(vmcb + offset_of!(Vmcb, control.event_inj) as u64), rax)?;
            }
            Finish::Map => self.set_hole(guest, item.hole.expect("checked: only a page fault maps"), None)?,
        }
        Ok(())
    }

    /// L2 halts without L1 intercepting that; an interrupt, pending since before VMRUN, brings it back to L1. It may do so
    /// before the HLT, if L0 was interrupted itself right after L2's STI: then once more.
    fn l2_halt(&mut self, guest: usize, item: L2Step<'a>) -> Emit {
        let Op::Hlt { sleep_us } = item.step.op else { unreachable!("only HLT is left by force") };
        let vmcb = self.guest(guest).vmcb;
        let rip = qword_ptr(vmcb + offset_of!(Vmcb, save.rip) as u64);
        let (instruction, resume) = self.labels(item.site);
        let mut again = self.a.create_label();
        let mut done = self.a.create_label();
        let mut fine = self.a.create_label();

        self.a.set_label(&mut again)?;
        self.arm_wake_up(sleep_us)?;
        self.enter(guest)?;
        // At the HLT or after it; whatever else is a failure.
        self.a.mov(edx, item.site)?;
        self.a.mov(ebx, ExitCode::INTR.0)?;
        self.a.lea(rcx, ptr(instruction))?;
        self.a.cmp(rip, rcx)?;
        self.a.je(fine)?;
        self.a.lea(rcx, ptr(resume))?;
        self.a.set_label(&mut fine)?;
        self.a.call(self.check[guest])?;
        self.glue(&Step::new(Op::Svm(SvmOp::Stgi)))?;
        self.a.sti()?;
        self.a.nop()?;
        self.a.cli()?;
        // L2 goes on with interrupts disabled: the next one may be pending when it does.
        let rflags = offset_of!(Vmcb, save.rflags) as u64;
        self.a.and(dword_ptr(vmcb + rflags), !RFLAGS_IF)?;
        self.a.lea(rcx, ptr(resume))?;
        self.a.cmp(rip, rcx)?;
        self.a.je(done)?;
        // The record that L2 opened is void: it opens another one.
        self.a.mov(r9, qword_ptr(self.guest(guest).registers + saved::R9))?;
        self.a.mov(qword_ptr(r9 + offset_of!(Record, state) as i32), Record::VOID as i32)?;
        self.a.lea(rcx, ptr(item.retry))?;
        self.a.mov(rip, rcx)?;
        self.a.jmp(again)?;
        self.a.set_label(&mut done)?;
        self.a.zero_bytes()
    }

    /// Puts the VMCB back into its first state.
    fn reset_l2(&mut self, guest: usize) -> Emit {
        let layout = self.guest(guest);
        self.a.cld()?;
        self.a.mov(rsi, layout.pristine_vmcb)?;
        self.a.mov(rdi, layout.vmcb)?;
        self.a.mov(ecx, (PAGE / 8) as u32)?;
        self.a.rep().movsq()
    }

    fn set_hole(&mut self, guest: usize, index: u64, hole: Option<Hole>) -> Emit {
        let address = self.options.layout.holes + index * PAGE;
        self.a.mov(rax, svm::nested_entry(address, hole))?;
        self.a.mov(qword_ptr(self.guest(guest).hole_entry(index)), rax)
    }

    /// VMRUN, with L2's registers before and after it.
    fn enter(&mut self, guest: usize) -> Emit {
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
    fn expect(&mut self, guest: usize, site: u32, code: ExitCode) -> Emit {
        self.a.mov(edx, site)?;
        self.a.mov(ebx, code.0)?;
        let pending = self.pending(site);
        match (pending.elsewhere, pending.instruction) {
            (Some(address), _) => self.a.mov(rcx, address)?,
            (None, instruction) => self.a.lea(rcx, ptr(instruction))?,
        }
        self.a.call(self.check[guest])
    }

    // --- L2 ----------------------------------------------------------------------------------------------------------

    fn l2_block(&mut self, block: &Block<'a>) -> Emit {
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

    // --- Both --------------------------------------------------------------------------------------------------------

    /// Executes an operation between two looks at the registers. `retry`: where to begin again L2's HLT that L1 does
    /// not intercept.
    fn execute(
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

    fn instruction(&mut self, op: &Op) -> Emit {
        let a = &mut self.a;
        match op {
            Op::Rdmsr { .. } => a.rdmsr(),
            Op::Wrmsr { .. } => a.wrmsr(),
            Op::Cpuid { .. } => a.cpuid(),
            Op::Hypercall { .. } => a.vmmcall(),
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
            Op::L2 { .. } => unreachable!("a block is no instruction"),
        }
    }

    // --- Handlers ----------------------------------------------------------------------------------------------------

    /// Handlers of the 32 exceptions at a level: that of the open record's instruction is noted in the record, and the
    /// guest goes on after it. Any other is a failure.
    fn exception_handlers(&mut self, level: Level) -> Emit<Vec<(u8, CodeLabel)>> {
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
    fn interrupt_handler(&mut self) -> Emit<CodeLabel> {
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

    fn finish(mut self, base: u64) -> Emit<Code> {
        let l1 = self.exception_handlers(Level::L1)?;
        let l2 = self.exception_handlers(Level::L2)?;
        let wake = self.interrupt_handler()?;
        let result = self.a.assemble_options(base, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let resolve = |labels: Vec<(u8, CodeLabel)>| {
            labels
                .into_iter()
                .map(|(vector, label)| Ok((vector, result.label_ip(&label)?)))
                .collect::<Emit<Vec<_>>>()
        };
        let mut l1_handlers = resolve(l1)?;
        l1_handlers.push((WAKE_VECTOR, result.label_ip(&wake)?));
        let l2_handlers = resolve(l2)?;
        let records_per_turn = self.records;
        let mut sites = Vec::with_capacity(self.sites.len());
        for Pending { mut site, instruction, resume, elsewhere } in self.sites {
            let at = result.label_ip(&instruction)?;
            site.resume = result.label_ip(&resume)?;
            site.rip = elsewhere.unwrap_or(at);
            site.length = u8::try_from(match elsewhere {
                Some(_) => HOLE_CODE.len() as u64,
                None => site.resume - at,
            })
            .expect("an instruction has at most 15 bytes");
            sites.push(site);
        }
        Ok(Code {
            bytes: result.inner.code_buffer,
            base,
            entry: base,
            sites,
            l1_handlers,
            l2_handlers,
            records_per_turn,
        })
    }
}

fn write_msr(msr: u64, value: u64) -> Step {
    Step::new(Op::Wrmsr { msr: msr.into(), value: value.into(), step: 0.into() })
}

/// What a page that L2 jumps to holds: `jmp rdi`.
pub const HOLE_CODE: [u8; 2] = [0xff, 0xe7];

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

/// Registers that the interrupt handler uses.
const INTERRUPTED: [AsmRegister64; 6] = [rax, rbx, rcx, rdx, r8, r13];

const fn open_record(level: Level) -> AsmRegister64 {
    match level {
        Level::L1 => r8,
        Level::L2 => r9,
    }
}

/// Whether the processor pushes an error code. APM 8.2.
const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
