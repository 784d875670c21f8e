// SPDX-License-Identifier: MIT
//! Streams of a model that knows which entry ends which exit.

use super::*;
use exitregs_common::svm::ExitCode;
use proptest::prelude::*;

/// What a vCPU of the model does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// An exit that L0 handles alone.
    Handled,
    /// At L1: VMRUN of this L2. At L2: an exit that L0 gives to L1.
    Switch(u64),
}

const THREADS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![Just(Step::Handled), (1..=MAX_AWAY as u64).prop_map(Step::Switch)];
    prop::collection::vec((0..THREADS, step), 1..120)
}

/// The ends of an exit, by its time: which L2 it is of, the next entry's time and that of the entry that ended it.
type Ends = HashMap<u64, (u64, u64, u64)>;

/// The events of such steps, and the ends of the exits.
fn model(steps: &[(usize, Step)]) -> (Vec<Occurrence>, Ends) {
    let mut occurrences = Vec::new();
    let mut ends = Ends::new();
    // By thread: the L2 that runs, and the exits of those that are away.
    let mut running = [None::<u64>; THREADS];
    let mut away: [HashMap<u64, u64>; THREADS] = Default::default();
    for &(thread, step) in steps {
        let mut push = |what| {
            let time = 100 + 10 * occurrences.len() as u64;
            occurrences.push(Occurrence { time, thread: thread as u32, tgid: 7, unknown: 0, what });
            time
        };
        let nested = |l2: Option<u64>| u8::from(l2.is_some());
        let vcpu_id = thread as u32;
        let from = running[thread];
        let exit = push(What::Exit(KvmExit { vcpu_id, is_nested: nested(from), ..KvmExit::default() }));
        let to = match (step, from) {
            (Step::Handled, _) => from,
            (Step::Switch(_), Some(_)) => None,
            (Step::Switch(l2), None) => {
                push(What::NestedEntry { l2, event: EventInfo(0) });
                Some(l2)
            }
        };
        let entry = push(What::Entry(KvmEntry { vcpu_id, is_nested: nested(to), ..KvmEntry::default() }));
        ends.insert(exit, (from.unwrap_or(0), entry, entry));
        if from.is_some() && to.is_none() {
            ends.insert(exit, (from.unwrap_or(0), entry, 0));
            away[thread].insert(from.unwrap_or(0), exit);
        } else if from.is_none()
            && let Some(end) = to.and_then(|l2| away[thread].remove(&l2)).and_then(|exit| ends.get_mut(&exit))
        {
            end.2 = entry;
        }
        running[thread] = to;
    }
    (occurrences, ends)
}

fn pair(pairing: &mut Pairing, occurrences: &[Occurrence]) -> Vec<Exit> {
    occurrences.iter().for_each(|occurrence| pairing.take(occurrence));
    let exit = |record| match record {
        Record::Exit(exit) => exit,
        Record::NestedPageFault(_) => panic!("the model has none"),
    };
    pairing.finish().into_iter().map(exit).collect()
}

proptest! {
    #[test]
    fn every_exit_has_the_entry_that_ended_it(steps in steps()) {
        let (occurrences, ends) = model(&steps);
        let exits = pair(&mut Pairing::default(), &occurrences);
        prop_assert_eq!(exits.len(), ends.len());
        for exit in exits {
            let found = (exit.nested_state, exit.next_entry_time, exit.entry_time);
            prop_assert_eq!(Some(&found), ends.get(&exit.exit_time), "exit at {}", exit.exit_time);
        }
    }

    /// The last entry ends what the model says, or it is not known that it does; never something else.
    #[test]
    fn lost_events_make_no_wrong_pairs(steps in steps(), from in 1usize..300, length in 1usize..40) {
        let (mut occurrences, ends) = model(&steps);
        let from = from.min(occurrences.len());
        let to = (from + length).min(occurrences.len());
        let mut pairing = Pairing::default();
        pairing.gap(occurrences[from - 1].time, occurrences.get(to).map_or(u64::MAX, |next| next.time));
        occurrences.drain(from..to);
        let mut seen = std::collections::HashSet::new();
        for exit in pair(&mut pairing, &occurrences) {
            prop_assert!(seen.insert(exit.exit_time), "the exit at {} comes twice", exit.exit_time);
            let (l2, next, end) = ends[&exit.exit_time];
            prop_assert!([0, l2].contains(&exit.nested_state));
            prop_assert!([0, next].contains(&exit.next_entry_time));
            prop_assert!([0, end].contains(&exit.entry_time));
        }
        let exits = occurrences.iter().filter(|occurrence| matches!(occurrence.what, What::Exit(_)));
        prop_assert_eq!(seen.len(), exits.count(), "an exit that was not lost is missing");
    }

    /// As when the kernel filters exits: the entries all come.
    #[test]
    fn exits_that_are_left_out_do_not_change_the_others(steps in steps(), keep in prop::collection::vec(any::<bool>(), 300)) {
        let (mut occurrences, ends) = model(&steps);
        let mut keep = keep.into_iter().cycle();
        occurrences.retain(|occurrence| !matches!(occurrence.what, What::Exit(_)) || keep.next().unwrap_or(true));
        for exit in pair(&mut Pairing::default(), &occurrences) {
            let found = (exit.nested_state, exit.next_entry_time, exit.entry_time);
            prop_assert_eq!(Some(&found), ends.get(&exit.exit_time), "exit at {}", exit.exit_time);
        }
    }
}

fn exit(is_nested: u8) -> What {
    What::Exit(KvmExit { is_nested, ..KvmExit::default() })
}

fn entry(is_nested: u8) -> What {
    What::Entry(KvmEntry { is_nested, ..KvmEntry::default() })
}

fn run(unknown: Unknown, whats: &[What]) -> Vec<Record> {
    let mut pairing = Pairing::new(Some(Abi::Xen));
    for (time, what) in whats.iter().enumerate() {
        let (time, unknown) = (10 + time as u64, unknown.of(what));
        pairing.take(&Occurrence { time, thread: 5, tgid: 4, unknown, what: *what });
    }
    pairing.finish()
}

fn exits(unknown: Unknown, whats: &[What]) -> Vec<Exit> {
    let exit = |record| match record {
        Record::Exit(exit) => Some(exit),
        Record::NestedPageFault(_) => None,
    };
    run(unknown, whats).into_iter().filter_map(exit).collect()
}

fn older() -> Unknown {
    Unknown { entry: INTR_INFO | ERROR_CODE, ..Unknown::default() }
}

#[test]
fn an_injected_exception_is_the_next_entrys() {
    let general_protection = What::Exception { vector: 13, error_code: Some(0) };
    let whats = [exit(0), general_protection, entry(0), exit(0), entry(0)];
    let exits = exits(older(), &whats);
    assert!(exits[0].knows_entry("intr_info") && exits[0].knows_entry("error_code"));
    assert_eq!(EventInfo(exits[0].entry.intr_info).to_string(), "#GP");
    assert!(!exits[1].knows_entry("intr_info"), "there may be an interrupt");
}

#[test]
fn what_the_kernel_says_of_an_injection_stands() {
    let whats = [exit(0), What::Exception { vector: 13, error_code: None }, entry(0)];
    let exits = exits(Unknown::default(), &whats);
    assert_eq!((exits[0].entry.intr_info, exits[0].entry_unknown), (0, 0));
}

#[test]
fn what_l1_injects_is_l2s() {
    let event = EventInfo(EventInfo::VALID | EventInfo::TYPE_EXCEPTION | EventInfo::ERROR_CODE_VALID | 13);
    let enter = |event| What::NestedEntry { l2: 0x1000, event };
    let whats = [enter(EventInfo(0)), exit(1), entry(0), exit(0), enter(event), entry(1)];
    let exits = exits(older(), &whats);
    let l2 = exits.iter().find(|exit| exit.exit.is_nested == 1).unwrap();
    assert_eq!((l2.entry_time, l2.next_entry_time, l2.nested_state), (15, 12, 0x1000));
    assert_eq!(EventInfo(l2.entry.intr_info), event);
    assert!(!l2.knows_entry("error_code"), "the event does not have it");
}

#[test]
fn an_l2_of_which_nothing_is_known_ends_only_if_l1_did_not_run() {
    let whats = [
        exit(1),
        entry(1),
        exit(1),
        entry(0),
        exit(0),
        What::NestedEntry { l2: 1, event: EventInfo(0) },
        entry(1),
    ];
    let exits = exits(Unknown::default(), &whats);
    assert_eq!(exits.iter().map(|exit| exit.nested_state).collect::<Vec<_>>(), [0, 0, 0]);
    assert_eq!(exits.iter().map(|exit| exit.entry_time).collect::<Vec<_>>(), [11, 0, 16]);
}

#[test]
fn of_five_l2s_the_longest_away_ends_without_an_entry() {
    let mut whats = Vec::new();
    for l2 in 1..=MAX_AWAY as u64 + 1 {
        whats.extend([What::NestedEntry { l2, event: EventInfo(0) }, entry(1), exit(1), entry(0)]);
    }
    for l2 in 1..=MAX_AWAY as u64 + 1 {
        whats.extend([What::NestedEntry { l2, event: EventInfo(0) }, entry(1)]);
    }
    let exits = exits(Unknown::default(), &whats);
    let ended: Vec<_> = exits.iter().map(|exit| (exit.nested_state, exit.entry_time != 0)).collect();
    assert_eq!(ended, [(1, false), (2, true), (3, true), (4, true), (5, true)]);
}

#[test]
fn hypercalls_are_whose_event_tells() {
    let hypercall = |is_nested| {
        let (isa, exit_reason) = (Isa::Svm as u32, ExitCode::VMMCALL.0);
        What::Exit(KvmExit { is_nested, isa, exit_reason, ..KvmExit::default() })
    };
    let told = What::Hypercall(Abi::HyperV, Operands::default());
    let whats = [hypercall(0), told, entry(0), hypercall(0), entry(1), hypercall(1), entry(1)];
    let abis: Vec<_> = exits(Unknown::default(), &whats).iter().map(Exit::hypercall_abi).collect();
    assert_eq!(abis, [Some(Abi::HyperV), None, Some(Abi::Xen)]);
}

#[test]
fn a_thread_may_run_several_vcpus() {
    let exit = |vcpu_id| What::Exit(KvmExit { vcpu_id, ..KvmExit::default() });
    let entry = |vcpu_id| What::Entry(KvmEntry { vcpu_id, ..KvmEntry::default() });
    let exits = exits(Unknown::default(), &[exit(0), exit(1), entry(0), entry(1), exit(1)]);
    let ends: Vec<_> = exits.iter().map(|exit| (exit.exit.vcpu_id, exit.entry_time)).collect();
    assert_eq!(ends, [(0, 12), (1, 13), (1, 0)]);
}

#[test]
fn nested_page_faults_come_in_their_place() {
    let fault = What::NestedPageFault(KvmNestedPageFault { gpa: 0x1000, is_nested: 1, ..Default::default() });
    let whats = [What::NestedEntry { l2: 3, event: EventInfo(0) }, entry(1), exit(1), fault, entry(0)];
    let records = run(Unknown::default(), &whats);
    assert_eq!(records.iter().map(Record::time).collect::<Vec<_>>(), [12, 13]);
    let Record::NestedPageFault(fault) = records[1] else { panic!("{records:?}") };
    assert_eq!((fault.nested_state, fault.event.gpa, fault.tgid), (3, 0x1000, 4));
}

#[test]
fn what_l1_is_told_of_a_nested_page_fault_is_told_next() {
    let guest = field_bit(KvmNestedPageFault::FIELDS, "guest_error_code");
    let unknown = Unknown { nested_page_fault: guest, ..Unknown::default() };
    let fault = What::NestedPageFault(KvmNestedPageFault { is_nested: 1, ..Default::default() });
    let told =
        |exit_reason: ExitReason| What::NestedExitInject { exit_reason: exit_reason.0, info1: Some(7) };
    let found = |next: &[What]| {
        let records = run(unknown, &[&[exit(1), fault], next, &[entry(0)]].concat());
        records.into_iter().find_map(|record| match record {
            Record::NestedPageFault(fault) => Some((fault.event.guest_error_code, fault.unknown)),
            Record::Exit(_) => None,
        })
    };
    assert_eq!(found(&[told(ExitReason::EPT_VIOLATION)]), Some((7, 0)));
    assert_eq!(found(&[told(ExitReason::PML_FULL)]), None);
    assert_eq!(found(&[]), Some((0, guest)));
    assert_eq!(found(&[exit(0), told(ExitReason::EPT_VIOLATION)]), Some((0, guest)), "another exit's");
    let records = run(unknown, &[exit(1), fault]);
    assert!(records.iter().any(|record| matches!(record, Record::NestedPageFault(_))), "{records:?}");
}

#[test]
fn forgotten_gaps_are_gaps() {
    let mut gaps = Gaps::default();
    for gap in 0..2 * MAX_GAPS as u64 {
        gaps.add(10 * gap, 10 * gap + 1);
    }
    assert!(!gaps.none_in(2, 3) && !gaps.none_in(20_465, 20_480));
    assert!(gaps.none_in(20_472, 20_479));
    assert!(gaps.gaps.len() <= MAX_GAPS);
}
