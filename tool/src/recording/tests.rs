// SPDX-License-Identifier: MIT

use super::*;
use crate::analysis::batch::{Columns, registers, told};
use crate::analysis::pairing::{NestedPageFault, Record};
use exitregs_common::event::{Exit, field_bit};
use proptest::prelude::*;

fn metadata() -> Metadata {
    Metadata {
        kernel: "6.12.1-test".to_owned(),
        isa: Isa::Svm,
        source: "a test".to_owned(),
        clock: "CLOCK_MONOTONIC".to_owned(),
        realtime_offset: 7,
    }
}

/// A recording with a batch for each of the slices.
fn recorded(batches: &[&[Record]]) -> Vec<u8> {
    let mut writer = Writer::new(&metadata()).unwrap();
    let mut bytes = writer.begin().unwrap();
    for records in batches {
        records.iter().for_each(|record| writer.push(*record));
        bytes.extend(writer.encode(|vm| format!("vm{vm}")).unwrap());
    }
    bytes.extend(Writer::end());
    bytes
}

/// The batches that can be read of a file, and what was wrong.
fn batches(bytes: &[u8]) -> (Vec<Encoded>, Vec<Damage>) {
    let (mut batches, mut damages) = (Vec::new(), Vec::new());
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(damage) => return (batches, vec![damage]),
    };
    loop {
        match reader.read() {
            Ok(None) => return (batches, damages),
            Ok(Some(encoded)) => batches.push(encoded),
            Err(damage) => {
                let goes_on = damage.goes_on;
                damages.push(damage);
                if !goes_on {
                    return (batches, damages);
                }
            }
        }
    }
}

/// What the batches have that can be read.
fn read(bytes: &[u8]) -> (Vec<Vec<Record>>, Vec<Damage>) {
    let (batches, mut damages) = batches(bytes);
    let decoded = batches.iter().map(Encoded::records);
    let records = decoded.filter_map(|records| records.map_err(|damage| damages.push(damage)).ok()).collect();
    (records, damages)
}

fn masked<E: Event>(event: E, unknown: u32) -> E {
    E::from_values(|field| if unknown & 1 << field == 0 { event.value(field).unwrap_or(0) } else { 0 })
}

fn event<E: Event + std::fmt::Debug>() -> impl Strategy<Value = E> {
    let values = prop::collection::vec(prop_oneof![Just(0u64), 0u64..300, any::<u64>()], E::FIELDS.len());
    values.prop_map(|values| {
        E::from_values(|field| {
            let is_bool = E::FIELDS[field].size == 1;
            if is_bool { values[field] & 1 } else { values[field] }
        })
    })
}

prop_compose! {
    /// An exit as sources deliver them: what is unknown is 0, and so are a protected guest's registers.
    fn exit()(
        time in 1u64..1 << 60,
        next in prop::option::of(0u64..1 << 40),
        after in prop::option::of(prop_oneof![Just(0u64), 0u64..1 << 40]),
        unknown in prop_oneof![Just((0, 0)), (any::<u32>(), any::<u32>())],
        small in (0u8..4, 0u8..2, 0u8..3),
        parts in (0u8..16, 0u8..16),
        vm in prop_oneof![0u32..3, any::<u32>()],
        l2 in prop_oneof![Just(0u64), any::<u64>()],
        mut exit in event::<KvmExit>(),
        mut entry in event::<KvmEntry>(),
    ) -> Record {
        let has_reason = !exitregs_common::event::field_bit(KvmExit::FIELDS, "exit_reason");
        let protected = |is_protected, registers| if is_protected { registers } else { 0 };
        let exit_unknown = unknown.0 & ((1 << KvmExit::FIELDS.len()) - 1) & has_reason;
        // Of a register that is unknown as a whole, its event may tell the part that the instruction uses.
        let is_told = time % 3 == 0;
        let (operands, results) = if is_told && exit.is_protected == 0 { parts } else { (0, 0) };
        let exit_unknown = exit_unknown | told::<KvmExit>(operands);
        exit = masked(exit, exit_unknown & !told::<KvmExit>(operands));
        let of_exit = protected(exit.is_protected != 0, registers::<KvmExit>());
        exit = masked(exit, of_exit);
        let next_entry_time = next.map_or(0, |next| time + next);
        let entry_time = match (next, after) {
            (Some(next), Some(after)) => time + next + after,
            _ => 0,
        };
        let results = if entry_time == 0 || entry.is_protected != 0 { 0 } else { results };
        let entry_told = told::<KvmEntry>(results);
        let entry_unknown = if entry_time == 0 { 0 } else { unknown.1 & ((1 << KvmEntry::FIELDS.len()) - 1) };
        let entry_unknown = entry_unknown | entry_told;
        entry = if entry_time == 0 { KvmEntry::default() } else { masked(entry, entry_unknown & !entry_told) };
        let of_entry = protected(entry.is_protected != 0, registers::<KvmEntry>());
        entry = masked(entry, of_entry);
        Record::Exit(Exit {
            exit_time: time,
            next_entry_time,
            entry_time,
            nested_state: l2,
            tgid: vm,
            exit_unknown: exit_unknown & !of_exit,
            entry_unknown: entry_unknown & !of_entry,
            hypercall_abi: small.0,
            rip_written: small.1,
            cause: small.2,
            operands,
            results,
            exit,
            entry,
            ..Exit::default()
        })
    }
}

fn record() -> impl Strategy<Value = Record> {
    let unknown = prop_oneof![Just(0), any::<u32>()];
    let fault = (1u64..1 << 60, 0u32..9, any::<u64>(), event::<KvmNestedPageFault>(), unknown);
    let fault = fault.prop_map(|(time, tgid, nested_state, event, unknown)| {
        let registers = registers::<KvmNestedPageFault>();
        let is_protected = field_bit(KvmNestedPageFault::FIELDS, "is_protected");
        let unknown = unknown & ((1 << KvmNestedPageFault::FIELDS.len()) - 1) & !is_protected;
        let (unknown, zero) = match event.is_protected {
            0 => (unknown, unknown),
            _ => (unknown & !registers, unknown | registers),
        };
        let event = masked(event, zero);
        Record::NestedPageFault(NestedPageFault { time, tgid, nested_state, event, unknown })
    });
    prop_oneof![8 => exit(), 1 => fault]
}

fn columns() -> Columns {
    Columns {
        exit_time: true,
        next_entry: true,
        entry: true,
        exit_fields: (1 << KvmExit::FIELDS.len()) - 1,
        entry_fields: (1 << KvmEntry::FIELDS.len()) - 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_was_written_is_read(records in prop::collection::vec(record(), 1..30), split in 0usize..30) {
        let split = split.clamp(1, records.len());
        let parts: Vec<&[Record]> = [&records[..split], &records[split..]]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        let (batches, damages) = read(&recorded(&parts));
        prop_assert_eq!(damages, vec![]);
        prop_assert_eq!(batches, parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>());
    }

    /// The columns of a recording are those of the records that were recorded.
    #[test]
    fn columns_are_the_records(records in prop::collection::vec(record(), 1..30)) {
        let bytes = recorded(&[&records]);
        let mut reader = Reader::new(bytes.as_slice()).unwrap();
        let mut found = reader.read().unwrap().unwrap().batch(columns()).unwrap();
        let mut expected = Batch::new(&records, columns(), 0);
        // Classes may be numbered otherwise.
        for batch in [&mut found, &mut expected] {
            batch.names.clear();
            let of_rows: Vec<_> = batch.class.iter().map(|class| batch.classes[usize::from(*class)]).collect();
            (batch.classes, batch.class) = (of_rows, Vec::new());
            for column in batch.exit_fields.iter_mut().chain(&mut batch.entry_fields) {
                if !column.unknown.contains(&true) {
                    column.unknown.clear();
                }
                for (row, value) in column.values.iter_mut().enumerate() {
                    if column.unknown.get(row) == Some(&true) {
                        *value = 0;
                    }
                }
            }
        }
        prop_assert_eq!(found, expected);
    }

    /// Bits that flip make no panic; the batches before them are read as they were.
    #[test]
    fn flipped_bits_do_no_harm(records in prop::collection::vec(record(), 2..30), bits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4)) {
        let half = records.len() / 2;
        let mut bytes = recorded(&[&records[..half], &records[half..]]);
        let mut first = usize::MAX;
        for (index, bit) in bits {
            let place = index.index(bytes.len());
            bytes[place] ^= 1 << bit;
            first = first.min(place);
        }
        let (batches, _) = read(&bytes);
        if first >= recorded(&[&records[..half]]).len() - 8 {
            prop_assert_eq!(&batches[0], &records[..half]);
        }
        if let Ok(mut reader) = Reader::new(bytes.as_slice()) {
            while let Ok(Some(encoded)) = reader.read() {
                let _ = encoded.batch(columns());
            }
        }
    }
}

fn some_exits(count: u64) -> Vec<Record> {
    (0..count)
        .map(|number| {
            let exit = KvmExit { exit_reason: 0x72, isa: 2, rax: number % 3, ..KvmExit::default() };
            Record::Exit(Exit {
                exit_time: 1_000 + number * 100,
                next_entry_time: 1_050 + number * 100,
                entry_time: 1_050 + number * 100,
                tgid: 9,
                exit,
                entry: KvmEntry { rip: 2, ..KvmEntry::default() },
                ..Exit::default()
            })
        })
        .collect()
}

/// Wherever a file is cut off, all whole batches are read, and what is missing is said.
#[test]
fn truncated_at_every_byte() {
    let records = some_exits(20);
    let parts = [&records[..7], &records[7..15], &records[15..]];
    let ends: Vec<usize> = (0..=parts.len()).map(|count| recorded(&parts[..count]).len() - 8).collect();
    let bytes = recorded(&parts);
    for length in 0..bytes.len() {
        let (batches, damages) = batches(&bytes[..length]);
        let whole = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
        assert_eq!(batches.len(), whole, "{length} bytes of {}", bytes.len());
        // What a batch has does not depend on what follows it.
        let is_end = ends.contains(&length);
        assert!(!is_end || batches.iter().zip(parts).all(|(batch, part)| batch.records().unwrap() == part));
        assert_eq!(damages.len(), 1, "{length} bytes: {damages:?}");
        let begin = if length < ends[0] { 0 } else { ends[whole] };
        assert_eq!(damages[0].offset, begin as u64, "{length} bytes: {damages:?}");
    }
    assert_eq!(read(&bytes).1, []);
}

#[test]
fn lost_events_and_names_are_told() {
    let mut writer = Writer::new(&metadata()).unwrap();
    let mut bytes = writer.begin().unwrap();
    some_exits(3).into_iter().for_each(|record| writer.push(record));
    writer.lost(5);
    bytes.extend(writer.encode(|vm| format!("vm{vm}\u{1b}")).unwrap());
    let mut reader = Reader::new(bytes.as_slice()).unwrap();
    assert_eq!(reader.metadata(), &metadata());
    let batch = reader.read().unwrap().unwrap().batch(Columns::default()).unwrap();
    assert_eq!((batch.lost, batch.names), (5, vec![(9, "vm9?".to_owned())]));
    let end = reader.read().unwrap_err();
    assert!(end.what.contains("was not ended"), "{end}");
}

#[test]
fn other_files_are_refused() {
    for bytes in [&b""[..], b"ARROW1\0\0", b"tracing", &[0xff; 64]] {
        assert!(Reader::new(bytes).is_err());
    }
    let other = Metadata { kernel: String::new(), ..metadata() };
    let mut map = other.to_map();
    map.insert("exitregs.version".to_owned(), "0".to_owned());
    assert!(Metadata::from_map(&map).unwrap_err().contains("version 0"));
}
