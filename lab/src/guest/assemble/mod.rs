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
//! r12, r14 and r15 mean the same at both levels: VM entries and VM exits leave them alone.
//!
//! Parts: `l1`, what L1 does for the script; `extension`, what it does by `svm` or `vmx`, such as running an L2; `instruction`, how one is executed at either level;
//! `record`, what is noted about it; `handlers`, of exceptions and of the interrupt that ends a HLT.

mod extension;
mod handlers;
mod instruction;
mod l1;
mod record;
mod svm;
mod vmx;

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use exitregs_common::isa::Isa;

use crate::script::{Op, Script, Step, SvmOp};

use self::extension::Extension;
use self::vmx::Routines;

use super::layout::{GuestLayout, VcpuLayout, WAKE_VECTOR, slot};
use super::log::Record;
use super::signal::Signal;
use super::site::Site;

/// The selector that the guest's stack segment has.
pub const DATA_SELECTOR: u16 = 0x10;
/// The selector that the guest's code segment has.
pub const CODE_SELECTOR: u16 = 0x08;

/// RFLAGS.IF.
const RFLAGS_IF: i32 = 1 << 9;

/// What L2 puts into RAX for the hypercall that ends a block. KVM has no hypercall of this number.
pub const END_OF_BLOCK: u64 = 0x0065_6e64;

/// What the code is made for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What to do.
    pub script: &'a Script,
    /// The vCPU's index.
    pub vcpu: u32,
    /// The instruction set that guests run by.
    pub isa: Isa,
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
        gif_may_be_clear: options.isa == Isa::Svm && any_step(&options.script.steps, &clears_gif),
        extension: extension::of(options.isa),
        check: Vec::new(),
        vmx: Routines::default(),
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

fn clears_gif(step: &Step) -> bool {
    matches!(step.op, Op::L2 { .. } | Op::VmrunInvalid { .. } | Op::Svm(SvmOp::Clgi))
}

/// Whether a predicate holds for a step, or for one within it.
fn any_step(steps: &[Step], predicate: &impl Fn(&Step) -> bool) -> bool {
    steps.iter().any(|step| {
        let within = match &step.op {
            Op::L2 { steps, .. } => any_step(steps, predicate),
            _ => false,
        };
        let reaction = step.l1.as_ref().is_some_and(|reaction| any_step(&reaction.steps, predicate));
        predicate(step) || within || reaction
    })
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
    extension: &'static dyn Extension,
    /// By guest: checks its exit against RBX (code), RCX (RIP); RDX is the site.
    check: Vec<CodeLabel>,
    /// VMX's.
    vmx: Routines,
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
        self.extension.start(self)?;

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

        self.extension.routines(self)?;
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

/// What a page that L2 jumps to holds: `jmp rdi`.
pub const HOLE_CODE: [u8; 2] = [0xff, 0xe7];
