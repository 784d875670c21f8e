// SPDX-License-Identifier: MIT
//! Answers against what a loop over records says.

use super::*;
use crate::analysis::pairing::Record;
use exitregs_common::event::Exit;
use exitregs_common::isa::Isa;
use proptest::prelude::*;

fn exit() -> impl Strategy<Value = Exit> {
    let place = (0u64..10_000, 0u32..3, 0u32..2, 0u8..2);
    let what = (prop::sample::select(vec![0x72u32, 0x7c, 0x81, 0x78]), 0u64..3, 0u64..4);
    (place, what, any::<bool>(), prop::option::of(0u64..5_000)).prop_map(|(place, what, is_known, took)| {
        let (exit_time, tgid, vcpu_id, is_nested) = place;
        let (exit_reason, rcx, guest_rip) = what;
        let isa = Isa::Svm as u32;
        Exit {
            exit_time,
            next_entry_time: took.map_or(0, |took| exit_time + took + 1),
            tgid,
            exit_unknown: if is_known { 0 } else { field_bit(KvmExit::FIELDS, "guest_rip") },
            exit: KvmExit { exit_reason, vcpu_id, is_nested, isa, rcx, guest_rip, ..KvmExit::default() },
            ..Exit::default()
        }
    })
}

fn question(by: &[&str], filter: Option<&str>, times: Range<u64>) -> Question {
    let by = by.iter().map(|name| name.parse().unwrap()).collect();
    let filter = filter.map(|text| Filter::parse(text, Isa::Svm).unwrap());
    Question { by, filter, vms: Vec::new(), times }
}

fn answer(question: &Question, exits: &[Exit]) -> Answer {
    let records: Vec<_> = exits.iter().map(|exit| Record::Exit(*exit)).collect();
    let mut answer = Answer::default();
    answer.add(question, &Batch::new(&records, question.columns(), 0));
    answer
}

proptest! {
    #[test]
    fn rows_are_what_a_loop_finds(exits in prop::collection::vec(exit(), 1..200), split in 0usize..200, from in 0u64..10_000) {
        for by in [&["vm", "level", "reason", "detail"][..], &["vcpu"], &["level", "rip"], &["rcx", "rip", "vm"], &["reason"]] {
            for filter in [None, Some("is_nested == 1"), Some("guest_rip > 1 && rcx != 2")] {
                let question = question(by, filter, from..u64::MAX);
                let split = split.min(exits.len());
                let mut found = answer(&question, &exits[..split]);
                found.merge(answer(&question, &exits[split..]));

                let reads_rip = filter.is_some_and(|text| text.contains("guest_rip"));
                let mut expected: HashMap<String, Times> = HashMap::new();
                let mut undecided = 0;
                for exit in exits.iter().filter(|exit| exit.exit_time >= from) {
                    if reads_rip && !exit.knows_exit("guest_rip") {
                        undecided += 1;
                        continue;
                    }
                    if question.filter.as_ref().is_some_and(|filter| !filter.selects(&exit.exit)) {
                        continue;
                    }
                    let of = by.iter().map(|name| match *name {
                        "vm" => exit.tgid.to_string(),
                        "vcpu" => format!("{}/{}", exit.tgid, exit.exit.vcpu_id),
                        "level" => exit.exit.is_nested.to_string(),
                        "reason" => exit.exit.exit_reason.to_string(),
                        "detail" => format!("{:?}", exitregs_common::detail::Detail::of(exit)),
                        "rip" if exit.knows_exit("guest_rip") => exit.exit.guest_rip.to_string(),
                        "rip" => "?".to_owned(),
                        _ => exit.exit.rcx.to_string(),
                    });
                    let times = expected.entry(of.collect::<Vec<_>>().join(" ")).or_default();
                    match exit.next_entry_time.checked_sub(exit.exit_time) {
                        Some(took) => times.record(took),
                        None => times.unended += 1,
                    }
                }
                let rows: HashMap<String, Times> = found.rows.iter().map(|(key, times)| {
                    let mut nth = 0..;
                    let of = by.iter().map(|name| match *name {
                        "vm" => key.class.vm.to_string(),
                        "vcpu" => format!("{}/{}", key.class.vm, key.class.vcpu),
                        "level" => key.class.is_nested.to_string(),
                        "reason" => key.class.exit_reason.to_string(),
                        "detail" => format!("{:?}", key.class.detail()),
                        _ => key.value(nth.next().unwrap()).map_or("?".to_owned(), |value| value.to_string()),
                    });
                    (of.collect::<Vec<_>>().join(" "), times.clone())
                }).collect();
                prop_assert_eq!(&rows, &expected, "by {:?} where {:?}", by, filter);
                prop_assert_eq!(found.undecided, undecided);
                let counted: u64 = expected.values().map(Times::exits).sum();
                prop_assert_eq!(found.exits(Level::L1) + found.exits(Level::L2), counted);
            }
        }
    }
}

#[test]
fn names_of_fields() {
    assert_eq!("rip".parse(), Ok(By::Field(1)));
    assert!("nonsense".parse::<By>().unwrap_err().contains("exit_reason"));
    let five = question(&["rip", "rax", "rbx", "rcx", "rdx"], None, 0..u64::MAX);
    assert!(five.check().is_err());
}
