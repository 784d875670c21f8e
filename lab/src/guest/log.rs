// SPDX-License-Identifier: MIT
//! From the guest's log to lines of truth.

use std::collections::VecDeque;
use std::mem::size_of;

use anyhow::{Result, bail, ensure};
use exitregs_common::isa::Isa;
use vm_memory::ByteValued;

use crate::script::{Op, Value};
use crate::truth::{Handled, InjectedBy, Line, Outcome};

use super::layout::VcpuLayout;
use super::site::{Instruction, Next, Site};
use super::vendor;

/// What the guest stores around an instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// Index of the [`Site`].
    pub site: u64,
    /// [`Record::OPEN`] before the instruction, [`Record::CLOSED`] after it; [`Record::VOID`] if it was not executed;
    /// [`Record::WOKEN`] of a HLT that has ended, before its L2 goes on.
    pub state: u64,
    /// Turns done.
    pub turn: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// Where to go on after an exception.
    pub resume: u64,
    /// RAX, RBX, RCX, RDX before.
    pub before: [u64; 4],
    /// RAX, RBX, RCX, RDX after.
    pub after: [u64; 4],
    /// Of an exception: bit [`Record::FAULTED_BIT`], the error code in bits 39:8, the vector in bits 7:0.
    pub fault: u64,
    /// Of VMRUN: EXITCODE afterwards. Of VMLAUNCH and VMRESUME: the exit reason, or [`Record::NOT_ENTERED`].
    pub exit_code: u64,
}

// SAFETY: `repr(C)` of `u64` and arrays of them: no padding, and any bytes are a valid value.
unsafe impl ByteValued for Record {}

impl Record {
    /// Bytes of a record.
    pub const SIZE: u64 = size_of::<Self>() as u64;
    /// See [`Record::state`].
    pub const OPEN: u64 = 0;
    /// See [`Record::state`].
    pub const CLOSED: u64 = 1;
    /// See [`Record::state`].
    pub const VOID: u64 = 2;
    /// See [`Record::state`].
    pub const WOKEN: u64 = 3;
    /// See [`Record::exit_code`]: VMLAUNCH has failed without a VM exit.
    pub const NOT_ENTERED: u64 = 1 << 63;
    /// See [`Record::fault`].
    pub const FAULTED_BIT: u32 = 63;

    /// The vector of the exception that it raised.
    pub const fn vector(&self) -> Option<u8> {
        if self.fault >> Self::FAULTED_BIT == 0 { None } else { Some(self.fault as u8) }
    }
}

/// What the guest stores before it gives up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Failure {
    /// One of the constants.
    pub kind: u64,
    /// The site that L1 expected an exit of.
    pub site: u64,
    /// The expected EXITCODE.
    pub expected_code: u64,
    /// The expected RIP.
    pub expected_rip: u64,
    /// EXITCODE, VMX exit reason, vector of an exception, or VM-instruction error.
    pub code: u64,
    /// Where it happened.
    pub rip: u64,
    /// EXITINFO1, exit qualification, or the error code of an exception.
    pub info1: u64,
    /// EXITINFO2, guest-physical address, or CR2.
    pub info2: u64,
}

// SAFETY: as for `Record`.
unsafe impl ByteValued for Failure {}

impl Failure {
    /// L2 exited otherwise than the script says.
    pub const UNEXPECTED_EXIT: u64 = 1;
    /// An exception in L1, not at an instruction of the script.
    pub const L1_EXCEPTION: u64 = 2;
    /// The same in L2.
    pub const L2_EXCEPTION: u64 = 3;
    /// An instruction of VMX failed that should not.
    pub const VMX_INSTRUCTION: u64 = 4;

    /// What happened, for people.
    pub fn describe(&self, sites: &[Site]) -> String {
        let near = |rip: u64| {
            sites
                .iter()
                .enumerate()
                .filter(|(_, site)| site.rip <= rip)
                .max_by_key(|(_, site)| site.rip)
                .map_or_else(String::new, |(n, site)| {
                    format!(" (step {n}, {}, is at {:#x})", site.mnemonic(), site.rip)
                })
        };
        match self.kind {
            Self::UNEXPECTED_EXIT => {
                let isa = sites.first().map_or(Isa::Svm, |site| site.isa);
                let name = |code: u64| format!("`{}`", isa.exit_reason(code as u32));
                let instruction = sites.get(self.site as usize).map_or_else(String::new, Site::mnemonic);
                format!(
                    "L1 expected L2 to exit for {} at {:#x} (step {}, {instruction}), but it exited for {} at {:#x}, \
                     {} {:#x}, {} {:#x}",
                    name(self.expected_code),
                    self.expected_rip,
                    self.site,
                    name(self.code),
                    self.rip,
                    if isa == Isa::Svm { "EXITINFO1" } else { "exit qualification" },
                    self.info1,
                    if isa == Isa::Svm { "EXITINFO2" } else { "guest-physical address" },
                    self.info2
                )
            }
            Self::VMX_INSTRUCTION => {
                format!(
                    "an instruction of VMX at {:#x}{} failed with error {}",
                    self.rip,
                    near(self.rip),
                    self.code
                )
            }
            Self::L1_EXCEPTION | Self::L2_EXCEPTION => format!(
                "L{} took exception {} at {:#x}{}, error code {:#x}, CR2 {:#x}",
                self.kind - 1,
                self.code,
                self.rip,
                near(self.rip),
                self.info1,
                self.info2
            ),
            kind => format!("the guest gave up for a reason that is not known ({kind})"),
        }
    }
}

/// Makes lines of a vCPU's records.
#[derive(Debug)]
pub struct Reader {
    vcpu: u32,
    sites: Vec<Site>,
    controls: Vec<u64>,
    seq: u64,
    turn: u64,
    /// Lines that wait for the end of an L2 exit before them.
    waiting: VecDeque<Waiting>,
    /// The sequence number of the first of them.
    first: u64,
    /// By guest: its exit that L1 deals with now.
    open: Vec<Option<u64>>,
    /// The guest that runs.
    running: Option<usize>,
}

#[derive(Debug)]
struct Waiting {
    line: Line,
    complete: bool,
}

impl Reader {
    /// A reader of the log of this vCPU.
    pub fn new(vcpu: u32, sites: Vec<Site>, layout: &VcpuLayout) -> Self {
        let controls: Vec<u64> = layout.guests.iter().map(|guest| guest.control).collect();
        let open = vec![None; controls.len()];
        Self {
            vcpu,
            sites,
            controls,
            seq: 0,
            turn: 0,
            waiting: VecDeque::new(),
            first: 0,
            open,
            running: None,
        }
    }

    /// The instructions of interest.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Takes the next record. `may_be_open`: the VM ended, perhaps before the instruction did.
    ///
    /// # Errors
    /// If the guest did not do what its code says: registers that are not those of the script, another instruction, an
    /// instruction that it did not come back from.
    pub fn record(&mut self, record: &Record, may_be_open: bool) -> Result<()> {
        let Some(site) = self.sites.get(record.site as usize) else {
            bail!(
                "record {} of vCPU {} is of step {}, which does not exist",
                self.seq,
                self.vcpu,
                record.site
            );
        };
        if record.state == Record::VOID {
            return Ok(());
        }
        let here = || {
            format!("record {} of vCPU {}, step {} ({})", self.seq, self.vcpu, record.site, site.mnemonic())
        };
        ensure!(record.turn >= self.turn, "{}: turn {} after turn {}", here(), record.turn, self.turn);
        if let Some(values) = site.before {
            let expected = values.map(|value: Value| value.at(record.turn));
            ensure!(
                record.before == expected,
                "{}: registers {:#x?} before it, where the script has {expected:#x?}",
                here(),
                record.before
            );
        }
        if let Some(guest) = site.guest {
            ensure!(self.running == Some(guest), "{}: L1 does not run L2 {guest}", here());
        }
        let closed = record.state == Record::CLOSED;
        let outcome = match record.vector() {
            Some(6) => Outcome::InvalidOpcode,
            Some(13) => Outcome::GeneralProtection,
            Some(vector) => bail!("{}: exception {vector}", here()),
            None if !closed => match &site.instruction {
                Instruction::Op(Op::TripleFault) => Outcome::Shutdown,
                _ if site.next == Next::Leaves || may_be_open => Outcome::Left,
                _ => bail!("{}: the guest did not come back from it", here()),
            },
            None => match &site.instruction {
                Instruction::Enter { .. }
                | Instruction::Op(Op::VmrunInvalid { .. } | Op::VmlaunchInvalid { .. })
                    if vendor::entry_failed(site.isa, record.exit_code) =>
                {
                    Outcome::VmrunFailed
                }
                _ => Outcome::Completed,
            },
        };
        let raised = matches!(outcome, Outcome::InvalidOpcode | Outcome::GeneralProtection);
        let enters = matches!(site.instruction, Instruction::Enter { .. });
        let mut operands = site.operands();
        if enters && closed {
            operands.exit_code = Some(site.isa.exit_reason(record.exit_code as u32).to_string());
        }
        let line = Line {
            seq: self.seq,
            vcpu: self.vcpu,
            level: if site.guest.is_some() { 2 } else { 1 },
            l2: site.guest,
            vmcb12: site.guest.map(|guest| self.controls[guest]),
            instruction: site.mnemonic(),
            exit_reason: site.reason_name(),
            exits: site.exits,
            handled: site.handled,
            l1_exits: Vec::new(),
            rip: site.rip,
            length: site.length,
            before: record.before.into(),
            after: closed.then(|| record.after.into()),
            outcome,
            injected_by: raised.then_some(match site.next {
                Next::L1Injects => InjectedBy::L1,
                _ => InjectedBy::L0,
            }),
            turn: record.turn,
            step: record.site as u32,
            operands,
        };
        let runs = match site.instruction {
            Instruction::Enter { guest, .. } => Some(guest),
            Instruction::Op(_) => None,
        };
        let exits_to_l1 = matches!(site.handled, Some(Handled::Reflected | Handled::Forced));
        let guest = site.guest;
        self.turn = record.turn;
        self.running = match guest {
            // Until the next instruction of L1, or for ever if L1 does not see its exit.
            Some(guest) if !exits_to_l1 => Some(guest),
            Some(_) => None,
            None => runs.filter(|_| !raised && outcome != Outcome::VmrunFailed),
        };
        self.push(line, runs, guest.filter(|_| exits_to_l1));
        Ok(())
    }

    fn push(&mut self, line: Line, runs: Option<usize>, exits: Option<usize>) {
        if line.level == 1 && line.exit_reason.is_some() {
            for seq in self.open.iter().flatten() {
                self.waiting[(seq - self.first) as usize].line.l1_exits.push(line.instruction.clone());
            }
        }
        if let Some(seq) = runs.and_then(|guest| self.open[guest].take()) {
            self.waiting[(seq - self.first) as usize].complete = true;
        }
        if let Some(guest) = exits {
            self.open[guest] = Some(line.seq);
        }
        self.waiting.push_back(Waiting { line, complete: exits.is_none() });
        self.seq += 1;
    }

    /// The next line that is complete.
    pub fn next_line(&mut self) -> Option<Line> {
        if !self.waiting.front()?.complete {
            return None;
        }
        self.first += 1;
        self.waiting.pop_front().map(|waiting| waiting.line)
    }

    /// The lines that are left at the end of the VM.
    pub fn finish(&mut self) -> impl Iterator<Item = Line> {
        self.waiting.drain(..).map(|waiting| waiting.line)
    }
}
