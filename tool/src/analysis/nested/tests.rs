// SPDX-License-Identifier: MIT
//! Round trips by hand: the worked example of docs/nested.md, and what goes wrong.

use super::*;
use crate::analysis::pairing::Record;
use exitregs_common::event::{Exit, KvmExit};
use exitregs_common::svm::ExitCode;

const L2_STATE: u64 = 0x1000;

fn exit(level: u8, reason: ExitCode, time: u64, next_entry_time: u64, entry_time: u64) -> Exit {
    let exit = KvmExit {
        exit_reason: reason.0,
        isa: Isa::Svm as u32,
        is_nested: level - 1,
        rcx: 0x1b,
        rax: 1,
        ..KvmExit::default()
    };
    let nested_state = if level == 2 { L2_STATE } else { 0 };
    Exit { exit_time: time, next_entry_time, entry_time, nested_state, tgid: 1, exit, ..Exit::default() }
}

fn l1(reason: ExitCode, time: u64, entry: u64) -> Exit {
    exit(1, reason, time, entry, entry)
}

fn l2(reason: ExitCode, time: u64, next_entry: u64, entry: u64) -> Exit {
    exit(2, reason, time, next_entry, entry)
}

fn batch(exits: &[Exit], lost: u64) -> Batch {
    let records: Vec<_> = exits.iter().map(|exit| Record::Exit(*exit)).collect();
    Batch::new(&records, Nested::COLUMNS, lost)
}

/// The batches in turn; the one row that there is.
fn trips(batches: &[Batch]) -> Trips {
    let mut nested = Nested::default();
    batches.iter().for_each(|batch| nested.add(batch));
    nested.finish();
    assert_eq!(nested.rows.len(), 1, "{:?}", nested.rows);
    nested.rows.into_values().next().unwrap()
}

/// docs/nested.md: L2's RDMSR at 1000; L1 reads the MSR and runs L2 again.
fn worked_example() -> Vec<Exit> {
    vec![
        l2(ExitCode::MSR, 1_000, 1_300, 4_000),
        l1(ExitCode::MSR, 2_000, 2_400),
        l1(ExitCode::VMRUN, 3_100, 4_000),
    ]
}

#[test]
fn the_worked_example() {
    let mut exits = worked_example();
    exits[0].cause = Cause::Reflected as u8;
    let trips = trips(&[batch(&exits, 0)]);
    assert_eq!((trips.exits(), trips.reflected, trips.forced, trips.broken), (1, 1, 0, 0));
    assert_eq!(trips.times.total, 3_000);
    // L0: 300 until L1 was entered, and 400 for its RDMSR; L1: 700 twice; re-entry: 900.
    assert_eq!((trips.l0_time, trips.l1_time, trips.reentry_time), (700, 1_400, 900));
    assert_eq!((trips.multiplication(), trips.percentile(99.0)), (2.0, 2));
    let which: Vec<_> = trips.which.iter().map(|(what, count)| (what.exit_reason, *count)).collect();
    assert_eq!(which.len(), 2);
    assert!(which.contains(&(ExitCode::MSR.0, 1)) && which.contains(&(ExitCode::VMRUN.0, 1)));
}

/// Whatever order exits come in, and however they are divided into batches.
#[test]
fn order_does_not_matter() {
    let [rdmsr, read, vmrun] = worked_example().try_into().unwrap();
    let whole = trips(&[batch(&[rdmsr, read, vmrun], 0)]);
    for exits in [[read, vmrun, rdmsr], [rdmsr, read, vmrun], [read, rdmsr, vmrun]] {
        for at in 0..=3 {
            let found = trips(&[batch(&exits[..at], 0), batch(&exits[at..], 0)]);
            assert_eq!((found.broken, found.times.total), (0, 3_000), "{at}");
            assert_eq!((found.l0_time, found.l1_time), (whole.l0_time, whole.l1_time));
        }
    }
}

#[test]
fn l0_alone() {
    let trips = trips(&[batch(&[l2(ExitCode::NPF, 1_000, 1_500, 1_500)], 0)]);
    assert_eq!((trips.l0_alone, trips.exits(), trips.all_l1_exits()), (1, 1, 0));
    assert_eq!((trips.times.total, trips.l0_time, trips.l1_time, trips.reentry_time), (500, 500, 0, 0));
}

#[test]
fn causes() {
    let mut forced = worked_example();
    forced[0].cause = Cause::Forced as u8;
    assert_eq!(trips(&[batch(&forced, 0)]).forced, 1);
    assert_eq!(trips(&[batch(&worked_example(), 0)]).reflected_or_forced, 1);
}

/// Percentiles are of the round trips: of 100, one with 40 exits, the others with 1.
#[test]
fn multiplication() {
    let mut exits = Vec::new();
    for number in 0..100 {
        let begin = number * 1_000_000;
        let count = if number == 50 { 40 } else { 1 };
        let end = begin + 1_000 * (count + 1);
        exits.push(l2(ExitCode::CPUID, begin, begin + 100, end));
        for nth in 1..=count {
            let time = begin + nth * 1_000;
            let (reason, entry) =
                if nth == count { (ExitCode::VMRUN, end) } else { (ExitCode::IOIO, time + 10) };
            exits.push(l1(reason, time, entry));
        }
    }
    let trips = trips(&[batch(&exits, 0)]);
    assert_eq!((trips.exits(), trips.broken, trips.all_l1_exits()), (100, 0, 139));
    assert_eq!((trips.percentile(50.0), trips.percentile(99.0), trips.percentile(100.0)), (1, 1, 40));
}

/// Two L2s in turn: each round trip has the other's exits of L1 as well, for L1 made them while it was away.
#[test]
fn another_l2_in_between() {
    let mut other = l2(ExitCode::HLT, 2_500, 2_600, 9_000);
    other.nested_state = 0x2000;
    let exits = [
        l2(ExitCode::CPUID, 1_000, 1_100, 5_000),
        l1(ExitCode::VMRUN, 2_000, 2_400),
        other,
        l1(ExitCode::VMRUN, 4_000, 5_000),
        l2(ExitCode::CPUID, 6_000, 6_100, 0),
        l1(ExitCode::VMRUN, 8_000, 9_000),
    ];
    let mut nested = Nested::default();
    nested.add(&batch(&exits, 0));
    nested.finish();
    let of = |code: ExitCode| nested.rows.iter().find(|(what, _)| what.exit_reason == code.0).unwrap().1;
    assert_eq!((of(ExitCode::CPUID).all_l1_exits(), of(ExitCode::CPUID).not_entered), (2, 1));
    assert_eq!((of(ExitCode::HLT).all_l1_exits(), of(ExitCode::HLT).broken), (2, 0));
}

/// What is missing is counted, not guessed.
#[test]
fn what_is_missing() {
    let [rdmsr, read, vmrun] = worked_example().try_into().unwrap();
    // L1's last exit was lost; L1's last exit never ended; L2 was not entered again.
    for exits in [&[rdmsr, read][..], &[rdmsr, read, l1(ExitCode::VMRUN, 3_100, 0)]] {
        let trips = trips(&[batch(exits, 0)]);
        assert_eq!((trips.broken, trips.exits(), trips.times.count), (1, 1, 0));
    }
    let gone = Exit { entry_time: 0, ..rdmsr };
    let trips_gone = trips(&[batch(&[gone, read], 0)]);
    assert_eq!((trips_gone.not_entered, trips_gone.exits()), (1, 1));
    // Events were lost while it was away; before and after it.
    let before = l1(ExitCode::CPUID, 100, 200);
    let lost = trips(&[batch(&[before], 0), batch(&[read], 3), batch(&[vmrun, rdmsr], 0)]);
    assert_eq!((lost.broken, lost.times.count), (1, 0));
    let earlier =
        [batch(&[before], 3), batch(&[l1(ExitCode::CPUID, 300, 400)], 0), batch(&[rdmsr, read, vmrun], 0)];
    assert_eq!(trips(&earlier).broken, 0);
}

/// A round trip that has more exits of L1 than are remembered.
#[test]
fn too_many_exits() {
    let count = MAX_L1_EXITS as u64 + 10;
    let end = 1_000 + (count + 1) * 10;
    let mut batches = Vec::new();
    let exits: Vec<_> =
        (0..count).map(|nth| l1(ExitCode::IOIO, 1_010 + nth * 10, 1_011 + nth * 10)).collect();
    batches.extend(exits.chunks(1 << 15).map(|exits| batch(exits, 0)));
    batches.push(batch(&[l1(ExitCode::VMRUN, end - 5, end), l2(ExitCode::CPUID, 1_000, 1_005, end)], 0));
    let trips = trips(&batches);
    assert_eq!((trips.broken, trips.exits()), (1, 1));
}
