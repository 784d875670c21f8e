// SPDX-License-Identifier: MIT
//! Whether a tracer saw what the guest did.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{Exits, Line, Registers};

/// An exit that a tracer saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The reason, with the kernel's name.
    pub reason: String,
    /// RIP.
    pub rip: u64,
    /// 1 or 2, if the tracer knows.
    pub level: Option<u8>,
    /// RAX, RBX, RCX and RDX at the exit, if the tracer knows.
    pub registers: Option<Registers>,
}

/// Something that the tracer and the guest tell differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The guest caused an exit that the tracer did not see.
    Missing(Box<Line>),
    /// The tracer saw an exit of one of the guest's instructions that the guest did not execute.
    Unexpected(Seen),
    /// They do not agree on the level or on the registers.
    Wrong(Box<Line>, Seen),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exit = |f: &mut fmt::Formatter<'_>, line: &Line| {
            write!(
                f,
                "line {} (L{} {}, {} at {:#x})",
                line.seq,
                line.level,
                line.instruction,
                line.exit_reason.as_deref().unwrap_or("no exit"),
                line.rip
            )
        };
        match self {
            Self::Missing(line) => {
                exit(f, line)?;
                f.write_str(" was not seen")
            }
            Self::Unexpected(seen) => {
                write!(f, "{} at {:#x} was seen, but did not happen", seen.reason, seen.rip)
            }
            Self::Wrong(line, seen) => {
                exit(f, line)?;
                write!(
                    f,
                    " had {:x?}, but was seen at {:?} with {:x?}",
                    line.before, seen.level, seen.registers
                )
            }
        }
    }
}

/// How far to look for the end of a gap.
const WINDOW: usize = 256;

/// Compares the lines of one vCPU with all the exits of that vCPU, both in order. An exit counts if a line has its RIP
/// and its reason; others are none of the guest's doing.
pub fn compare(truth: &[Line], seen: &[Seen]) -> Vec<Difference> {
    let lines: Vec<(&Line, Key<'_>)> = truth
        .iter()
        .filter(|line| line.exits != Exits::Never)
        .filter_map(|line| Some((line, (line.exit_reason.as_deref()?, line.rip))))
        .collect();
    let known: HashSet<Key<'_>> = lines.iter().map(|(_, key)| *key).collect();
    let mut exits = seen.iter().filter(|seen| known.contains(&key(seen))).peekable();
    let mut differences = Vec::new();
    // By level and guest: whose exit may be seen again, until the next instruction there.
    let mut again: HashMap<(u8, Option<usize>), &Line> = HashMap::new();
    let mut compared = 0;

    for (n, &(line, expected)) in lines.iter().enumerate() {
        if n < compared {
            continue;
        }
        let run = indefinite_run(&lines[n..]);
        let of_run: Vec<_> =
            exits.clone().take_while(|exit| run.iter().any(|(_, expected)| key(exit) == *expected)).collect();
        if run.len() > 1 && explains(run, &of_run) {
            compared = n + run.len();
            exits.nth(of_run.len() - 1);
            let last = run.iter().rev().find(|(line, _)| line.exits == Exits::AtLeastOnce);
            again.extend(last.map(|(line, _)| (place(line), *line)));
            continue;
        }
        let found = loop {
            let Some(&exit) = exits.peek() else { break false };
            if key(exit) == expected && fits(line, exit) {
                exits.next();
                break true;
            }
            if again.values().any(|line| repeats(line, exit)) {
                // They may as well be those of the next time that it is executed, if this line is none of the exits.
                let next = exits.clone().find(|exit| !again.values().any(|line| repeats(line, exit)));
                let comes = next.is_some_and(|exit| key(exit) == expected && fits(line, exit));
                if line.exits == Exits::HostDecides && !comes {
                    break false;
                }
                exits.next();
                continue;
            }
            let of_later_line =
                |&(line, expected): &(&Line, Key<'_>)| key(exit) == expected && fits(line, exit);
            if lines[n + 1..].iter().take(WINDOW).any(of_later_line) {
                break false;
            }
            if key(exit) == expected {
                differences.push(Difference::Wrong(Box::new(line.clone()), exit.clone()));
                exits.next();
                break true;
            }
            if line.exits == Exits::HostDecides {
                break false;
            }
            differences.push(Difference::Unexpected(exit.clone()));
            exits.next();
        };
        if !found && line.exits != Exits::HostDecides {
            differences.push(Difference::Missing(Box::new(line.clone())));
        }
        match line.exits {
            Exits::AtLeastOnce => again.insert(place(line), line),
            Exits::HostDecides if !found => None,
            _ => again.remove(&place(line)),
        };
    }
    let rest = exits.filter(|exit| !again.values().any(|line| repeats(line, exit)));
    differences.extend(rest.cloned().map(Difference::Unexpected));
    differences
}

/// The longest run whose exits are looked at together.
const RUN: usize = 64;

/// The lines at the start, of one level and guest, of which none says how many exits it is.
fn indefinite_run<'a, 'b>(lines: &'b [(&'a Line, Key<'a>)]) -> &'b [(&'a Line, Key<'a>)] {
    let here = lines.first().map(|(line, _)| place(line));
    let indefinite = |line: &Line| line.exits != Exits::Once && Some(place(line)) == here;
    let length = lines.iter().take(RUN + 1).take_while(|(line, _)| indefinite(line)).count();
    if length > RUN { &[] } else { &lines[..length] }
}

/// Whether the exits are those of the lines, each of which has as many as it may: a tracer that tells no registers shows the
/// same for an instruction that exits twice and for two executions of it, so that only all of them together make sense.
fn explains(lines: &[(&Line, Key<'_>)], exits: &[&Seen]) -> bool {
    // Whether the first so many exits are those of the lines so far.
    let mut reached = vec![false; exits.len() + 1];
    reached[0] = true;
    for (line, expected) in lines {
        let mut next = vec![false; exits.len() + 1];
        for (n, exit) in exits.iter().enumerate() {
            let first = reached[n] && key(exit) == *expected && fits(line, exit);
            let once_more = line.exits == Exits::AtLeastOnce && next[n] && repeats(line, exit);
            next[n + 1] |= first || once_more;
        }
        if line.exits == Exits::HostDecides {
            next.iter_mut().zip(&reached).for_each(|(next, reached)| *next |= reached);
        }
        reached = next;
    }
    !exits.is_empty() && reached[exits.len()]
}

/// Where an instruction is executed.
fn place(line: &Line) -> (u8, Option<usize>) {
    (line.level, line.l2)
}

type Key<'a> = (&'a str, u64);

fn key(seen: &Seen) -> Key<'_> {
    (&seen.reason, seen.rip)
}

fn fits(line: &Line, seen: &Seen) -> bool {
    seen.level.is_none_or(|level| level == line.level)
        && seen.registers.is_none_or(|registers| registers == line.before)
}

/// Whether this is one more exit of an instruction that may have several. A string instruction counts RCX down.
fn repeats(line: &Line, seen: &Seen) -> bool {
    let counted_down = |now: Registers| {
        now.rcx <= line.before.rcx && Registers { rcx: line.before.rcx, ..now } == line.before
    };
    line.exit_reason.as_ref() == Some(&seen.reason)
        && line.rip == seen.rip
        && seen.registers.is_none_or(counted_down)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::{Handled, Operands, Outcome};

    /// A line of L1, or of L2 0 if `level` is 2, whose RAX is the sequence number.
    fn line(seq: u64, level: u8, rip: u64, exits: Exits) -> Line {
        Line {
            seq,
            vcpu: 0,
            level,
            l2: (level == 2).then_some(0),
            vmcb12: None,
            instruction: "rdmsr".to_owned(),
            exit_reason: Some("msr".to_owned()),
            exits,
            handled: Some(Handled::L0),
            l1_exits: Vec::new(),
            rip,
            length: 2,
            before: Registers { rax: seq, ..Registers::default() },
            after: None,
            outcome: Outcome::Completed,
            injected_by: None,
            turn: 0,
            step: 0,
            operands: Operands::default(),
        }
    }

    fn seen(line: &Line) -> Seen {
        Seen {
            reason: "msr".to_owned(),
            rip: line.rip,
            level: Some(line.level),
            registers: Some(line.before),
        }
    }

    fn blind(line: &Line) -> Seen {
        Seen { level: None, registers: None, ..seen(line) }
    }

    fn three() -> Vec<Line> {
        (0..3).map(|seq| line(seq, 1, 0x1000 + seq, Exits::Once)).collect()
    }

    #[test]
    fn the_same_is_no_difference() {
        let truth = three();
        let exits: Vec<Seen> = truth.iter().map(seen).collect();
        assert_eq!(compare(&truth, &exits), []);
        let exits: Vec<Seen> = truth.iter().map(blind).collect();
        assert_eq!(compare(&truth, &exits), []);
        assert_eq!(compare(&[], &[]), []);
    }

    #[test]
    fn exits_elsewhere_or_for_another_reason_do_not_count() {
        let truth = three();
        let mut exits: Vec<Seen> = truth.iter().map(seen).collect();
        exits.insert(1, Seen { rip: 0x9999, ..exits[1].clone() });
        exits.insert(1, Seen { reason: "npf".to_owned(), ..exits[2].clone() });
        assert_eq!(compare(&truth, &exits), []);
    }

    #[test]
    fn a_lost_exit_is_missing_and_nothing_else() {
        let truth = three();
        for lost in 0..3 {
            let mut exits: Vec<Seen> = truth.iter().map(seen).collect();
            exits.remove(lost);
            assert_eq!(compare(&truth, &exits), [Difference::Missing(Box::new(truth[lost].clone()))]);
        }
    }

    #[test]
    fn an_exit_seen_twice_is_unexpected() {
        let truth = three();
        for twice in 0..3 {
            let mut exits: Vec<Seen> = truth.iter().map(seen).collect();
            exits.insert(twice, exits[twice].clone());
            assert_eq!(compare(&truth, &exits), [Difference::Unexpected(exits[twice].clone())]);
        }
    }

    #[test]
    fn other_registers_and_another_level_are_wrong() {
        let truth = three();
        let mut exits: Vec<Seen> = truth.iter().map(seen).collect();
        exits[1].registers = Some(Registers { rdx: 1, ..truth[1].before });
        exits[2].level = Some(2);
        assert_eq!(
            compare(&truth, &exits),
            [1, 2].map(|n| Difference::Wrong(Box::new(truth[n].clone()), exits[n].clone()))
        );
    }

    #[test]
    fn what_the_host_decides_may_be_there_or_not() {
        let mut truth = three();
        truth[1].exits = Exits::HostDecides;
        let mut exits: Vec<Seen> = truth.iter().map(seen).collect();
        assert_eq!(compare(&truth, &exits), []);
        exits.remove(1);
        assert_eq!(compare(&truth, &exits), []);
    }

    #[test]
    fn several_attempts_of_l2_around_its_vmrun_are_one_instruction() {
        let truth = [
            line(0, 2, 0x1000, Exits::AtLeastOnce),
            line(1, 1, 0x2000, Exits::Once),
            line(2, 2, 0x3000, Exits::HostDecides),
            line(3, 2, 0x4000, Exits::Once),
        ];
        for see in [seen, blind] {
            let [fault, vmrun, maybe, last] = &truth.each_ref().map(see);
            let exits = [fault, fault, vmrun, fault, fault, maybe, last].map(Seen::clone);
            assert_eq!(compare(&truth, &exits), []);
            // Not after the guest has gone on.
            let exits = [fault, vmrun, maybe, last, fault].map(Seen::clone);
            assert_eq!(compare(&truth, &exits), [Difference::Unexpected(fault.clone())]);
            let exits = [vmrun, maybe, last].map(Seen::clone);
            assert_eq!(compare(&truth, &exits), [Difference::Missing(Box::new(truth[0].clone()))]);
        }
    }

    #[test]
    fn what_did_not_exit_does_not_part_the_same_instruction_before_and_after_it() {
        let truth = [
            line(0, 2, 0x1000, Exits::AtLeastOnce),
            line(1, 2, 0x2000, Exits::HostDecides),
            line(2, 2, 0x1000, Exits::AtLeastOnce),
        ];
        for see in [seen, blind] {
            let [first, maybe, second] = &truth.each_ref().map(see);
            let exits = [first, first, second, second].map(Seen::clone);
            assert_eq!(compare(&truth, &exits), []);
            let exits = [first, first, maybe, second, second].map(Seen::clone);
            assert_eq!(compare(&truth, &exits), []);
            let exits = [first, first, maybe].map(Seen::clone);
            assert_eq!(compare(&truth, &exits), [Difference::Missing(Box::new(truth[2].clone()))]);
        }
    }

    #[test]
    fn a_loop_of_two_that_may_exit_or_not_is_looked_at_as_a_whole() {
        let turn =
            |seq| [line(seq, 2, 0x1000, Exits::AtLeastOnce), line(seq + 1, 2, 0x2000, Exits::HostDecides)];
        let truth: Vec<Line> = (0..4).flat_map(|n| turn(2 * n)).collect();
        let [string, maybe] = [&truth[0], &truth[1]].map(blind);
        // The second of the first turn did not exit.
        let exits: Vec<Seen> = [&string, &string, &string, &string, &maybe, &string, &maybe, &string, &maybe]
            .map(Seen::clone)
            .into();
        assert_eq!(compare(&truth, &exits), []);
        let exits: Vec<Seen> = [&string, &maybe, &string, &maybe, &string, &maybe].map(Seen::clone).into();
        assert_eq!(compare(&truth, &exits).len(), 1);
    }

    #[test]
    fn the_same_instruction_in_a_loop_is_told_apart_by_its_registers() {
        let truth: Vec<Line> = (0..3).map(|seq| line(seq, 2, 0x1000, Exits::AtLeastOnce)).collect();
        let mut exits: Vec<Seen> = truth.iter().flat_map(|line| [seen(line), seen(line)]).collect();
        assert_eq!(compare(&truth, &exits), []);
        exits.drain(2..4);
        assert_eq!(compare(&truth, &exits), [Difference::Missing(Box::new(truth[1].clone()))]);
    }
}
