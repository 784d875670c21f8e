// SPDX-License-Identifier: MIT
//! Traces and counts compared with the ground truth, see [`exitregs_lab::truth`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;

use anyhow::{Context, Result, anyhow, bail, ensure};
use exitregs_common::cpuid::has_subleaf;
use exitregs_common::isa::Isa;
use exitregs_common::svm::ExitCode;
use exitregs_common::vmx::ExitReason;
use exitregs_lab::truth::{Direction, Exits, Handled, Line, Outcome as Did, Registers};

use crate::record::{Detail, Exit, Outcome, Row};

/// The reasons of exits that a guest does not ask for: page faults while L0 builds its tables, and what comes from
/// outside. Every other exit is an instruction's and has its line in the truth.
const UNASKED: [ExitCode; 6] =
    [ExitCode::NPF, ExitCode::INTR, ExitCode::NMI, ExitCode::SMI, ExitCode::INIT, ExitCode::VINTR];
/// The same on VMX.
const UNASKED_VMX: [ExitReason; 8] = [
    ExitReason::EPT_VIOLATION,
    ExitReason::EPT_MISCONFIG,
    ExitReason::EXTERNAL_INTERRUPT,
    ExitReason::INTERRUPT_WINDOW,
    ExitReason::NMI_WINDOW,
    ExitReason::PREEMPTION_TIMER,
    ExitReason::PML_FULL,
    ExitReason::TPR_BELOW_THRESHOLD,
];

/// How much the truth tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything that the guest did.
    Whole,
    /// What it did until it wrote no more.
    Beginning,
}

/// What an instruction was about, as `trace` and `stat` say it.
pub fn detail(line: &Line) -> Option<Detail> {
    // VMX has a port in the exit qualification, which is known from the next entry on: here there is none.
    let is_last = line.outcome == Did::Left && line.handled == Some(Handled::L0);
    if is_last && line.exit_reason.as_deref() == ExitReason::IO_INSTRUCTION.name() {
        return Some(Detail::Unknown);
    }
    operation(line)
}

/// The same, for a source that knows the exit qualification from the exit on.
fn operation(line: &Line) -> Option<Detail> {
    let operands = &line.operands;
    Some(match line.instruction.as_str() {
        "rdmsr" | "wrmsr" => Detail::Msr { msr: operands.msr?, write: line.instruction == "wrmsr" },
        "cpuid" => {
            let leaf = operands.leaf?;
            let subleaf = operands.subleaf.filter(|_| has_subleaf(leaf as u32));
            Detail::Cpuid { leaf, subleaf }
        }
        "vmmcall" | "vmcall" => Detail::Hypercall { number: line.before.rax },
        "in" | "out" | "rep ins" | "rep outs" => {
            let string = line.instruction.starts_with("rep");
            let is_in = operands.direction? == Direction::In;
            Detail::Io { port: operands.port?, size: operands.size?, is_in, string, rep: string }
        }
        _ => return None,
    })
}

/// An L2's exit in place of a VM entry.
const FAILED_ENTRY: &str = "INVALID_STATE FAILED_VMENTRY";

fn is_unasked(reason: &str) -> bool {
    UNASKED.iter().any(|code| code.name() == Some(reason))
        || UNASKED_VMX.iter().any(|code| code.name() == Some(reason))
        // KVM leaves some checks of a nested VM entry to the processor.
        || reason == FAILED_ENTRY
}

fn array(Registers { rax, rbx, rcx, rdx }: Registers) -> [u64; 4] {
    [rax, rbx, rcx, rdx]
}

/// Whether an exit is at a line's address, as far as the source knows: on VMX it may know the level only.
fn is_at(exit: &Exit, line: &Line) -> bool {
    exit.exit.guest_rip.map_or(exit.level == line.level, |at| at == line.rip)
}

/// Compares the exits of a VM, by time, with what its guest did. Returns how many exits were found in the truth.
///
/// # Errors
/// The first exit of a vCPU that is not as the truth says, is missing, or should not be.
pub fn compare(truth: &[Line], exits: &[Exit], vm: u32, extent: Extent) -> Result<usize> {
    compare_as_known(truth, exits, vm, extent, true)
}

/// The same for a source that knows neither RIP nor the exit qualification of VMX, so that it does not see which instructions
/// are done. The registers at the entry are compared nevertheless.
///
/// # Errors
/// As [`compare`].
pub fn compare_without_rip(truth: &[Line], exits: &[Exit], vm: u32) -> Result<usize> {
    compare_as_known(truth, exits, vm, Extent::Whole, false)
}

fn compare_as_known(
    truth: &[Line],
    exits: &[Exit],
    vm: u32,
    extent: Extent,
    knows_rip: bool,
) -> Result<usize> {
    let mut vcpus: BTreeMap<u32, (Vec<&Line>, Vec<&Exit>)> = BTreeMap::new();
    for line in truth {
        vcpus.entry(line.vcpu).or_default().0.push(line);
    }
    for exit in exits.iter().filter(|exit| exit.vm == vm) {
        vcpus.entry(exit.vcpu).or_default().1.push(exit);
    }
    ensure!(!truth.is_empty(), "the guest did nothing");
    let mut found = 0;
    for (vcpu, (lines, exits)) in vcpus {
        let vcpu = Vcpu { knows_rip, ..Vcpu::new(vcpu, lines, exits, extent) };
        found += vcpu.compare()?;
    }
    Ok(found)
}

struct Vcpu<'a> {
    vcpu: u32,
    lines: Vec<&'a Line>,
    exits: Vec<&'a Exit>,
    extent: Extent,
    /// The source knows RIP at some exits and entries.
    knows_rip: bool,
    /// By L2: the `seq` of the last VMRUN that entered it.
    last_vmrun: BTreeMap<usize, u64>,
}

impl<'a> Vcpu<'a> {
    fn new(vcpu: u32, mut lines: Vec<&'a Line>, exits: Vec<&'a Exit>, extent: Extent) -> Self {
        lines.sort_by_key(|line| line.seq);
        let mut last_vmrun = BTreeMap::new();
        for line in &lines {
            if let (Some(l2), true) = (line.operands.l2, line.outcome != Did::VmrunFailed) {
                last_vmrun.insert(l2, line.seq);
            }
        }
        Self { vcpu, lines, exits, extent, knows_rip: true, last_vmrun }
    }

    fn compare(&self) -> Result<usize> {
        for (number, line) in self.lines.iter().enumerate() {
            let (vcpu, seq) = (self.vcpu, line.seq);
            ensure!(seq == number as u64, "vCPU {vcpu}: line {number} of the truth has number {seq}");
        }
        for pair in self.exits.windows(2) {
            let (vcpu, time) = (self.vcpu, pair[0].time_ns);
            ensure!(time < pair[1].time_ns, "vCPU {vcpu}: two exits at {time} ns");
        }
        let sites: HashSet<(u64, &str)> =
            self.lines.iter().filter_map(|line| Some((line.rip, line.exit_reason.as_deref()?))).collect();
        let faults: HashSet<(&str, u8, [u64; 4])> = self
            .lines
            .iter()
            .filter_map(|line| Some((line.exit_reason.as_deref()?, line.level, array(line.before))))
            .collect();
        let in_truth = |exit: &&&Exit| match exit.exit.guest_rip {
            _ if !is_unasked(&exit.reason) => true,
            Some(rip) => sites.contains(&(rip, &*exit.reason)),
            None => faults.contains(&(&*exit.reason, exit.level, array(exit.exit.registers()))),
        };
        let traced: Vec<&Exit> = self.exits.iter().filter(in_truth).copied().collect();

        let mut next = 0;
        let mut again = Again::new();
        for (number, line) in self.lines.iter().enumerate() {
            let Some(reason) = line.exit_reason.as_deref() else { continue };
            while let Some(exit) = traced.get(next).copied() {
                let of_line = is_at(exit, line)
                    && exit.exit.registers() == line.before
                    && (exit.exit.guest_rip.is_some() || exit.reason == reason);
                let one_more = if of_line { Ok(false) } else { self.is_one_more(&mut again, exit) };
                if !one_more.map_err(|why| self.difference(&why, number, &traced, next))? {
                    break;
                }
                next += 1;
            }
            let first = traced.get(next).copied().filter(|exit| {
                let of_line = is_at(exit, line) && exit.reason == reason;
                of_line && (line.exits != Exits::HostDecides || exit.exit.registers() == line.before)
            });
            let Some(mut last) = first else {
                match line.exits {
                    Exits::Never | Exits::HostDecides => continue,
                    Exits::Once | Exits::AtLeastOnce => {
                        let why = anyhow!("no exit of this instruction here");
                        return Err(self.difference(&why, number, &traced, next));
                    }
                }
            };
            self.check_exit(line, last).map_err(|why| self.difference(&why, number, &traced, next))?;
            next += 1;
            let place = (line.level, line.l2);
            if again.remove(&place).is_some_and(|(line, last)| is_unfinished(line, last)) {
                let why = anyhow!("the string instruction before this one has not come to its end");
                return Err(self.difference(&why, number, &traced, next));
            }
            if line.exits == Exits::AtLeastOnce {
                while let Some(one_more) = traced.get(next).filter(|exit| is_repetition(line, last, exit)) {
                    if last.outcome != Outcome::Unknown {
                        let why = anyhow!("{:?}, and yet it exited again", last.outcome);
                        return Err(self.difference(&why, number, &traced, next));
                    }
                    last = one_more;
                    next += 1;
                }
                if is_unasked(reason) || is_unfinished(line, last) {
                    again.insert(place, (line, last));
                }
                if is_unfinished(line, last) {
                    continue;
                }
            }
            self.check_entry(line, last).map_err(|why| self.difference(&why, number, &traced, next - 1))?;
        }
        while let Some(exit) = traced.get(next).copied() {
            let one_more = self.is_one_more(&mut again, exit);
            if !one_more.map_err(|why| self.difference(&why, self.lines.len(), &traced, next))? {
                break;
            }
            next += 1;
        }
        if self.extent == Extent::Whole && next < traced.len() {
            let why = anyhow!("no instruction has this exit");
            return Err(self.difference(&why, self.lines.len(), &traced, next));
        }
        Ok(next)
    }

    /// Whether `exit` is one more of an instruction that came before; an error if it is and ended as it cannot have.
    fn is_one_more<'e>(&self, again: &mut Again<'a, 'e>, exit: &'e Exit) -> Result<bool> {
        let mut places = again.iter();
        let Some((&place, &(line, _))) = places.find(|(_, (line, last))| is_repetition(line, last, exit))
        else {
            return Ok(false);
        };
        if is_unfinished(line, exit) {
            again.insert(place, (line, exit));
        } else if is_string(line) {
            again.remove(&place);
            self.check_entry(line, exit)?;
        } else {
            ensure!(exit.outcome == Outcome::Unknown, "one more page fault ended as {:?}", exit.outcome);
        }
        Ok(true)
    }

    fn check_exit(&self, line: &Line, exit: &Exit) -> Result<()> {
        let differs = |what: &str, is: &dyn std::fmt::Debug, should: &dyn std::fmt::Debug| {
            anyhow!("{what} is {is:x?}, should be {should:x?}")
        };
        macro_rules! same {
            ($what:literal, $is:expr, $should:expr) => {
                let (is, should) = (&$is, &$should);
                ensure!(is == should, differs($what, is, should));
            };
        }
        same!("level", exit.level, line.level);
        same!("is_nested", exit.exit.is_nested, line.level - 1);
        same!("is_protected", exit.exit.is_protected, 0);
        same!("l2", exit.l2, line.vmcb12);
        same!("vcpu_id", exit.exit.vcpu_id, line.vcpu);
        let isa = [Isa::Svm, Isa::Vmx].into_iter().find(|isa| isa.to_string() == exit.isa);
        let isa = isa.with_context(|| format!("isa is {}", exit.isa))?;
        same!("isa's number", exit.exit.isa, isa as u32);
        if isa == Isa::Svm || exit.exit.guest_rip.is_some() {
            same!("guest_rip", exit.exit.guest_rip, Some(line.rip));
        }
        same!("registers", exit.exit.registers(), line.before);
        let expected = match operation(line) {
            operation if exit.exit.guest_rip.is_some() => operation,
            Some(Detail::Io { .. }) if !self.knows_rip => Some(Detail::Unknown),
            _ => detail(line),
        };
        same!("detail", exit.detail, expected);
        let name = isa.exit_reason(exit.exit.exit_reason as u32).to_string();
        same!("exit_reason's name", Some(name), line.exit_reason);
        Ok(())
    }

    fn check_entry(&self, line: &Line, exit: &Exit) -> Result<()> {
        let outcome = exit.outcome;
        let Some(entry) = &exit.entry else {
            ensure!(outcome == Outcome::NotEnded, "no entry, but {outcome:?}");
            ensure!(exit.took_ns.is_none(), "no entry, but a time");
            ensure!(self.may_not_end(line), "no entry ended it");
            return self.check_result(line, exit);
        };
        ensure!(exit.l0_ns.is_some() && exit.l0_ns <= exit.took_ns, "L0 took longer than the whole");
        ensure!(entry.vcpu_id == line.vcpu, "entered vCPU {}", entry.vcpu_id);
        let entered = 1 + entry.is_nested;
        // VMRUN of an L2 ends with the entry to that.
        let vmrun = line.operands.l2.is_some() && line.outcome != Did::VmrunFailed;
        let expected_level = if vmrun { 2 } else { line.level };
        let by_processor = line.outcome == Did::VmrunFailed && exit.isa == "vmx";
        ensure!(entered == expected_level || by_processor, "the entry is L{entered}'s");
        let goes_on = entry.rip == Some(line.rip + u64::from(line.length));
        // Without the exit's RIP it is known that an instruction is done if L0 alone has skipped it.
        let shows = exit.exit.guest_rip.is_some()
            || match detail(line) {
                Some(Detail::Io { string, .. }) => !string,
                other => other.is_some(),
            };
        let expected = match line.outcome {
            _ if vmrun || by_processor && entered == 2 => Outcome::Unknown,
            Did::Completed | Did::VmrunFailed if !shows || !self.knows_rip => Outcome::Unknown,
            Did::Completed | Did::VmrunFailed if goes_on => Outcome::Completed,
            // L1 filled the hole, or did what it likes about a fetch.
            Did::Completed if line.level == 2 && line.exit_reason.as_deref().is_some_and(is_unasked) => {
                Outcome::Unknown
            }
            Did::InvalidOpcode | Did::GeneralProtection => Outcome::Exception,
            // The same L2 was entered again, for something else.
            Did::Left | Did::Shutdown if self.is_entered_later(line) => Outcome::Unknown,
            did => bail!("{did}, but the entry goes on at {:x?}", entry.rip),
        };
        ensure!(outcome == expected, "{outcome:?}, should be {expected:?}");
        let done = !self.knows_rip
            && line.outcome == Did::Completed
            && !line.exit_reason.as_deref().is_some_and(is_unasked);
        if matches!(outcome, Outcome::Completed | Outcome::Exception) || done && !vmrun {
            let registers = entry.registers();
            let after = line.after;
            ensure!(
                Some(registers) == after,
                "registers at the entry are {registers:x?}, should be {after:x?}"
            );
        }
        if outcome == Outcome::Exception {
            ensure!(entry.rip.is_none_or(|rip| rip == line.rip), "an exception at {:x?}", entry.rip);
        }
        self.check_result(line, exit)
    }

    /// What is printed as the result.
    fn check_result(&self, line: &Line, exit: &Exit) -> Result<()> {
        let expected = match (exit.outcome, detail(line), line.after) {
            (Outcome::Exception, ..) => {
                let text = exit.result.as_deref().unwrap_or_default();
                let name = line.outcome.to_string();
                ensure!(text.starts_with(&name), "result {text:?}, should be {name}");
                return Ok(());
            }
            (_, None, _) => None,
            (Outcome::Unknown | Outcome::NotEnded, ..) | (_, _, None) => Some("?".to_owned()),
            (Outcome::Completed, Some(detail), Some(after)) => Some(match detail {
                Detail::Unknown => "?".to_owned(),
                Detail::Msr { write: false, .. } => {
                    format!("{:#x}", after.rdx << 32 | after.rax & 0xffff_ffff)
                }
                Detail::Msr { .. } => "ok".to_owned(),
                // KVM's own, of which only this error occurs in scripts: include/uapi/linux/kvm_para.h.
                Detail::Hypercall { .. } if line.level == 1 && after.rax as i64 == -1000 => {
                    "-KVM_ENOSYS".to_owned()
                }
                Detail::Hypercall { .. } => format!("{:#x}", after.rax),
                Detail::Cpuid { .. } => {
                    let [a, b, c, d] = [after.rax, after.rbx, after.rcx, after.rdx].map(|value| value as u32);
                    format!("eax {a:#x} ebx {b:#x} ecx {c:#x} edx {d:#x}")
                }
                Detail::Io { is_in: true, string: false, size, .. } => {
                    format!("{:#x}", after.rax & u64::MAX >> (64 - 8 * u32::from(size)))
                }
                Detail::Io { .. } => "ok".to_owned(),
            }),
        };
        ensure!(exit.result == expected, "result {:?}, should be {expected:?}", exit.result);
        Ok(())
    }

    /// Whether L1 enters the L2 of this line after it.
    fn is_entered_later(&self, line: &Line) -> bool {
        let later = line.l2.and_then(|l2| self.last_vmrun.get(&l2)).is_some_and(|seq| *seq > line.seq);
        later || (self.extent == Extent::Beginning && line.level == 2)
    }

    /// Whether no entry need have ended this line's exit: the guest did not go on, or the truth does not tell.
    fn may_not_end(&self, line: &Line) -> bool {
        let left = matches!(line.outcome, Did::Left | Did::Shutdown);
        let never_again = line.level == 1 || !self.is_entered_later(line);
        (left && never_again) || (self.extent == Extent::Beginning && line.after.is_none())
    }

    /// The error for a difference, with the truth and the trace around it.
    fn difference(&self, why: &anyhow::Error, line: usize, traced: &[&Exit], exit: usize) -> anyhow::Error {
        let mut text = String::new();
        let first = line.saturating_sub(3);
        for (number, shown) in self.lines.iter().enumerate().skip(first).take(6) {
            let mark = if number == line { '>' } else { ' ' };
            let _ = writeln!(
                text,
                "{mark} truth {number}: L{} {:#x} {} ({} {:?}) {:x?} -> {} {:x?}",
                shown.level,
                shown.rip,
                shown.instruction,
                shown.exit_reason.as_deref().unwrap_or("-"),
                shown.exits,
                shown.before,
                shown.outcome,
                shown.after
            );
        }
        let first = exit.saturating_sub(3);
        for (number, shown) in traced.iter().enumerate().skip(first).take(6) {
            let mark = if number == exit { '>' } else { ' ' };
            let _ = writeln!(
                text,
                "{mark} trace {number}: L{} {:x?} {} ({}) {:x?} -> {:?} at {:x?} {:x?}",
                shown.level,
                shown.exit.guest_rip,
                shown.operation,
                shown.reason,
                shown.exit.registers(),
                shown.outcome,
                shown.entry.and_then(|entry| entry.rip),
                shown.entry.map(|entry| entry.registers()),
            );
        }
        anyhow!("vCPU {}: {why:#}\n{text}", self.vcpu)
    }
}

/// By level and L2, until the next instruction there: the one whose page fault may come again, or the string instruction
/// that an interrupt to L1 took in the middle.
type Again<'a, 'e> = HashMap<(u8, Option<usize>), (&'a Line, &'e Exit)>;

fn is_string(line: &Line) -> bool {
    line.instruction.starts_with("rep ")
}

/// Whether a string instruction is to go on after this exit.
fn is_unfinished(line: &Line, exit: &Exit) -> bool {
    let goes_on = exit.entry.as_ref().is_some_and(|entry| entry.rip == Some(line.rip));
    is_string(line) && exit.outcome == Outcome::Unknown && goes_on
}

/// Whether `exit` is one more of an instruction that exits until it gets through: at the same place, with the same
/// registers, or with fewer repetitions left.
fn is_repetition(line: &Line, last: &Exit, exit: &Exit) -> bool {
    let (was, is) = (last.exit.registers(), exit.exit.registers());
    let less = is_string(line) && is.rcx < was.rcx;
    is_at(exit, line) && exit.reason == last.reason && (is == was || less)
}

/// What exits are counted by: vCPU (if each is counted apart), level, reason, detail.
pub type Key = (Option<u32>, u8, String, Option<Detail>);

/// How many exits a guest must and may have had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// At least.
    pub least: u64,
    /// At most; `u64::MAX` if some instruction may exit any number of times.
    pub most: u64,
}

/// How many exits of each kind the truth says that there were.
pub fn counts(truth: &[Line], per_vcpu: bool) -> BTreeMap<Key, Bounds> {
    let mut counts: BTreeMap<Key, Bounds> = BTreeMap::new();
    for line in truth {
        let Some(reason) = &line.exit_reason else { continue };
        let key = (per_vcpu.then_some(line.vcpu), line.level, reason.clone(), detail(line));
        let bounds = counts.entry(key).or_default();
        let (least, most) = match line.exits {
            Exits::Never => (0, 0),
            Exits::Once => (1, 1),
            Exits::AtLeastOnce => (1, u64::MAX),
            Exits::HostDecides => (0, 1),
        };
        bounds.least += least;
        bounds.most = bounds.most.saturating_add(most);
    }
    counts
}

/// Compares the counts of a VM with the truth. Returns how many exits had to be counted.
///
/// # Errors
/// What was counted too often, not often enough, or should not be there at all.
pub fn compare_counts(truth: &[Line], rows: &[Row], vm: u32) -> Result<u64> {
    let rows: Vec<_> = rows.iter().filter(|row| row.vm == vm).collect();
    ensure!(!rows.is_empty(), "nothing was counted");
    let per_vcpu = rows.iter().any(|row| row.vcpu.is_some());
    let expected = counts(truth, per_vcpu);
    let mut wrong = Vec::new();
    let mut counted = BTreeSet::new();
    for row in &rows {
        let key: Key = (row.vcpu, row.level, row.reason.clone(), row.detail.clone());
        match expected.get(&key) {
            Some(bounds) if (bounds.least..=bounds.most).contains(&row.exits) => {}
            Some(bounds) => wrong.push(format!("{key:?}: {} exits, should be {bounds:?}", row.exits)),
            None if is_unasked(&row.reason) => {}
            None => wrong.push(format!("{key:?}: {} exits that nobody caused", row.exits)),
        }
        if !counted.insert(key.clone()) {
            wrong.push(format!("{key:?} has two rows"));
        }
        if row.exits < row.not_ended
            || row.min_ns > row.mean_ns
            || row.mean_ns > row.max_ns
            || row.p50_ns > row.p99_ns
            || !(row.min_ns..=row.max_ns).contains(&row.p50_ns)
            || !(row.min_ns..=row.max_ns).contains(&row.p99_ns)
        {
            wrong.push(format!("{row:?} contradicts itself"));
        }
    }
    for (key, bounds) in &expected {
        if bounds.least > 0 && !counted.contains(key) {
            wrong.push(format!("{key:?} is missing, should be {bounds:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(expected.values().map(|bounds| bounds.least).sum())
}

/// Whether all of a script's exits reached L1 and L2, so that a comparison means something.
///
/// # Errors
/// Which level is missing.
pub fn covers_both_levels(truth: &[Line]) -> Result<()> {
    for level in [1, 2] {
        ensure!(truth.iter().any(|line| line.level == level), "the guest did nothing at L{level}");
    }
    let reflected = truth.iter().any(|line| line.handled == Some(Handled::Reflected));
    ensure!(reflected, "no exit of L2 went to L1");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntryFields, ExitFields};
    use exitregs_lab::truth::{InjectedBy, Operands, Registers};

    /// RDMSR 0x200 at L1, CPUID at L2 that L0 handles, HLT at L1, a hypercall after which the L2 is not entered again.
    fn truth() -> Vec<Line> {
        let line = |seq: u64, level: u8, instruction: &str, reason: &str, operands: Operands| {
            let before = [0xa0 + seq, 0xb0 + seq, 0xc0 + seq, 0xd0 + seq];
            Line {
                seq,
                vcpu: 0,
                level,
                l2: (level == 2).then_some(0),
                vmcb12: (level == 2).then_some(0x9000),
                instruction: instruction.to_owned(),
                exit_reason: Some(reason.to_owned()),
                exits: Exits::Once,
                handled: Some(Handled::L0),
                l1_exits: Vec::new(),
                rip: 0x1000 + 0x10 * seq,
                length: 2,
                before: before.into(),
                after: Some(before.map(|value| value + 0x100).into()),
                outcome: Did::Completed,
                injected_by: None,
                turn: 0,
                step: 0,
                operands,
            }
        };
        let mut rdmsr = line(0, 1, "rdmsr", "msr", Operands { msr: Some(0x200), ..Operands::default() });
        rdmsr.before.rcx = 0x200;
        let cpuid = Operands { leaf: Some(0x4000_0000), subleaf: Some(0), ..Operands::default() };
        let mut end = line(3, 2, "vmmcall", "hypercall", Operands { nr: Some(0xa3), ..Operands::default() });
        (end.outcome, end.after) = (Did::Left, None);
        vec![rdmsr, line(1, 2, "cpuid", "cpuid", cpuid), line(2, 1, "hlt", "hlt", Operands::default()), end]
    }

    /// What a faithful tracer makes of a line.
    fn exit(line: &Line) -> Exit {
        let code = match line.instruction.as_str() {
            "rdmsr" => ExitCode::MSR,
            "cpuid" => ExitCode::CPUID,
            "hlt" => ExitCode::HLT,
            _ => ExitCode::VMMCALL,
        };
        let (outcome, rip) = match line.outcome {
            Did::Completed => (Outcome::Completed, line.rip + 2),
            Did::GeneralProtection => (Outcome::Exception, line.rip),
            _ => (Outcome::NotEnded, 0),
        };
        let Registers { rax, rbx, rcx, rdx } = line.before;
        let detail = detail(line);
        let after = line.after.unwrap_or_default();
        let result = match (&detail, outcome) {
            (_, Outcome::Exception) => Some("#GP(0x0)".to_owned()),
            (None, _) => None,
            (Some(_), Outcome::NotEnded) => Some("?".to_owned()),
            (Some(Detail::Msr { .. }), _) => Some(format!("{:#x}", after.rdx << 32 | after.rax)),
            _ => {
                let Registers { rax, rbx, rcx, rdx } = after;
                Some(format!("eax {rax:#x} ebx {rbx:#x} ecx {rcx:#x} edx {rdx:#x}"))
            }
        };
        let ended = outcome != Outcome::NotEnded;
        Exit {
            time_ns: 1_000 * (1 + line.seq),
            vm: 7,
            vm_name: "guest".to_owned(),
            vcpu: line.vcpu,
            level: line.level,
            l2: line.vmcb12,
            isa: "svm".to_owned(),
            reason: line.exit_reason.clone().unwrap_or_default(),
            operation: String::new(),
            detail,
            outcome,
            result,
            took_ns: ended.then_some(500),
            l0_ns: ended.then_some(500),
            exit: ExitFields {
                exit_reason: code.0.into(),
                guest_rip: Some(line.rip),
                isa: 2,
                info1: Some(0),
                info2: 0,
                intr_info: Some(0),
                error_code: Some(0),
                vcpu_id: line.vcpu,
                requests: None,
                is_nested: line.level - 1,
                is_protected: 0,
                rax,
                rbx,
                rcx,
                rdx,
            },
            entry: ended.then_some(EntryFields {
                vcpu_id: line.vcpu,
                rip: Some(rip),
                immediate_exit: None,
                intr_info: None,
                error_code: None,
                is_nested: line.level - 1,
                is_protected: 0,
                rax: after.rax,
                rbx: after.rbx,
                rcx: after.rcx,
                rdx: after.rdx,
            }),
        }
    }

    fn faithful(truth: &[Line]) -> Vec<Exit> {
        truth.iter().map(exit).collect()
    }

    /// The error for the exits of [`truth`], changed by `change`.
    fn error(change: impl FnOnce(&mut Vec<Exit>)) -> String {
        let truth = truth();
        let mut exits = faithful(&truth);
        change(&mut exits);
        compare(&truth, &exits, 7, Extent::Whole).expect_err("this difference was not found").to_string()
    }

    #[test]
    fn a_faithful_trace_is_the_truth() {
        let truth = truth();
        assert_eq!(compare(&truth, &faithful(&truth), 7, Extent::Whole).unwrap(), 4);
        assert!(compare(&truth, &faithful(&truth), 8, Extent::Whole).is_err(), "another VM's");
        assert!(compare(&[], &[], 7, Extent::Whole).is_err(), "nothing is no truth");
    }

    #[test]
    fn what_the_guest_did_not_ask_for_does_not_count() {
        let truth = truth();
        let mut exits = faithful(&truth);
        let mut fault = exits[1].clone();
        (fault.reason, fault.time_ns) = ("npf".to_owned(), 1_500);
        exits.insert(1, fault);
        assert_eq!(compare(&truth, &exits, 7, Extent::Whole).unwrap(), 4);
    }

    #[test]
    fn a_lost_exit_is_found() {
        for lost in 0..4 {
            let error = error(|exits| drop(exits.remove(lost)));
            assert!(error.contains("no exit of this instruction"), "{error}");
        }
    }

    #[test]
    fn an_invented_exit_is_found() {
        for number in 0..4 {
            error(|exits| {
                let again = Exit { time_ns: exits[number].time_ns + 1, ..exits[number].clone() };
                exits.insert(number + 1, again);
            });
            // Elsewhere, too, an instruction's exit must have its instruction.
            error(|exits| {
                let mut other = Exit { time_ns: exits[number].time_ns + 1, ..exits[number].clone() };
                other.exit.guest_rip = Some(0x9999);
                exits.insert(number + 1, other);
            });
        }
    }

    #[test]
    fn exits_in_another_order_are_found() {
        error(|exits| {
            let time = exits[0].time_ns;
            exits[0].time_ns = exits[1].time_ns;
            exits[1].time_ns = time;
            exits.swap(0, 1);
        });
        let error = error(|exits| exits[0].time_ns = exits[1].time_ns);
        assert!(error.contains("two exits at"), "{error}");
    }

    #[test]
    fn every_wrong_member_is_found() {
        let changes: [fn(&mut Exit); 17] = [
            |exit| exit.level = 3 - exit.level,
            |exit| exit.exit.is_nested ^= 1,
            |exit| exit.l2 = Some(0x1),
            |exit| exit.exit.rax ^= 1 << 63,
            |exit| exit.exit.rbx += 1,
            |exit| exit.exit.rcx ^= 1 << 40,
            |exit| exit.exit.rdx = 0,
            |exit| exit.exit.exit_reason += 1,
            |exit| exit.exit.vcpu_id += 1,
            |exit| exit.detail = Some(Detail::Unknown),
            |exit| exit.result = Some("0x1".to_owned()),
            |exit| exit.outcome = Outcome::Unknown,
            |exit| exit.outcome = Outcome::Exception,
            |exit| exit.entry = None,
            |exit| exit.entry.iter_mut().for_each(|entry| entry.rip = entry.rip.map(|rip| rip + 1)),
            |exit| exit.entry.iter_mut().for_each(|entry| entry.rax ^= 1),
            |exit| exit.entry.iter_mut().for_each(|entry| entry.is_nested ^= 1),
        ];
        for change in changes {
            for number in 0..3 {
                error(|exits| change(&mut exits[number]));
            }
        }
    }

    #[test]
    fn an_end_that_never_was_is_found() {
        error(|exits| {
            let entry = exits[1].entry;
            (exits[3].entry, exits[3].outcome) = (entry, Outcome::Unknown);
            (exits[3].took_ns, exits[3].l0_ns) = (Some(1), Some(1));
        });
    }

    #[test]
    fn an_exception_is_one_only_if_the_guest_took_it() {
        let mut truth = truth();
        truth[0].outcome = Did::GeneralProtection;
        truth[0].injected_by = Some(InjectedBy::L0);
        let mut exits = faithful(&truth);
        assert_eq!(compare(&truth, &exits, 7, Extent::Whole).unwrap(), 4);
        exits[0].outcome = Outcome::Unknown;
        assert!(compare(&truth, &exits, 7, Extent::Whole).is_err());
    }

    #[test]
    fn the_beginning_of_a_truth_says_nothing_of_later_exits() {
        let truth = truth();
        let exits = faithful(&truth);
        assert_eq!(compare(&truth[..2], &exits, 7, Extent::Beginning).unwrap(), 2);
        assert!(compare(&truth[..2], &exits, 7, Extent::Whole).is_err());
    }

    #[test]
    fn an_interrupted_string_is_followed_to_its_end() {
        let mut truth = truth();
        let string = &mut truth[1];
        (string.instruction, string.exit_reason) = ("rep outs".to_owned(), Some("io".to_owned()));
        string.exits = Exits::AtLeastOnce;
        let direction = Some(Direction::Out);
        string.operands = Operands { port: Some(0x3f8), size: Some(1), direction, ..Operands::default() };
        let after = Registers { rcx: string.before.rcx - 2, ..string.before };
        string.after = Some(after);

        let mut exits = faithful(&truth);
        let mut rest = exits[1].clone();
        for part in [&mut exits[1], &mut rest] {
            (part.exit.exit_reason, part.result) = (ExitCode::IOIO.0.into(), Some("ok".to_owned()));
        }
        rest.time_ns = exits[2].time_ns + 1;
        rest.exit.rcx -= 1;
        // The first part ends where it was; then comes L1's HLT, and then the rest.
        let first = &mut exits[1];
        (first.outcome, first.result) = (Outcome::Unknown, Some("?".to_owned()));
        first.entry.iter_mut().for_each(|entry| (entry.rip, entry.rcx) = (Some(truth[1].rip), after.rcx + 1));
        let unfinished = exits.clone();
        exits.insert(3, rest);
        assert_eq!(compare(&truth, &exits, 7, Extent::Whole).unwrap(), 5);

        assert!(compare(&truth, &unfinished, 7, Extent::Whole).is_err(), "it never came to its end");
        exits[3].entry.iter_mut().for_each(|entry| entry.rcx += 1);
        assert!(compare(&truth, &exits, 7, Extent::Whole).is_err(), "it ended otherwise");
    }

    fn row(exit: &Exit) -> Row {
        Row {
            vm: exit.vm,
            vm_name: exit.vm_name.clone(),
            vcpu: None,
            level: exit.level,
            isa: exit.isa.clone(),
            exit_reason: exit.exit.exit_reason,
            reason: exit.reason.clone(),
            detail: exit.detail.clone(),
            detail_text: String::new(),
            exits: 1,
            not_ended: 0,
            total_ns: 5,
            min_ns: 5,
            mean_ns: 5,
            p50_ns: 5,
            p99_ns: 5,
            max_ns: 5,
        }
    }

    #[test]
    fn every_wrong_count_is_found() {
        let truth = truth();
        let rows: Vec<Row> = faithful(&truth).iter().map(row).collect();
        assert_eq!(compare_counts(&truth, &rows, 7).unwrap(), 4);
        let changes: [fn(&mut Vec<Row>); 7] = [
            |rows| rows[0].exits = 2,
            |rows| rows[1].exits = 0,
            |rows| drop(rows.remove(2)),
            |rows| rows.push(rows[3].clone()),
            |rows| rows[1].level = 1,
            |rows| rows[0].detail = Some(Detail::Msr { msr: 0x200, write: true }),
            |rows| rows[2].p99_ns = 6,
        ];
        for change in changes {
            let mut rows = rows.clone();
            change(&mut rows);
            assert!(compare_counts(&truth, &rows, 7).is_err(), "{rows:?}");
        }
        assert!(compare_counts(&truth, &rows, 8).is_err(), "another VM's");
    }
}
