// SPDX-License-Identifier: MIT
//! Recordings: exits in a file, an Apache Arrow IPC stream. docs/recording.md describes the format.
//!
//! Columns and their types are those of the field tables in common/src/event.rs.

mod read;
mod write;

pub use read::{Damage, Encoded, MAGIC, Reader};
pub use write::Writer;

use crate::analysis::batch::{Batch, CLASS_FIELDS};
use arrow_schema::{DataType, Field, Fields, Schema};
use exitregs_common::event::{self, Event, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::Isa;
use std::collections::HashMap;

/// The version of the format; a reader refuses others.
const VERSION: &str = "2";
/// The most rows of a batch: a row's class is a number of 16 bits.
pub const MAX_ROWS: usize = Batch::MAX;

/// What a recording tells of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The kernel's release.
    pub kernel: String,
    /// The instruction set of its guests.
    pub isa: Isa,
    /// Where the exits came from, in a few words.
    pub source: String,
    /// The clock of the times.
    pub clock: String,
    /// CLOCK_REALTIME minus the clock of the times when the recording began, in nanoseconds.
    pub realtime_offset: u64,
}

impl Metadata {
    fn to_map(&self) -> HashMap<String, String> {
        let Self { kernel, isa, source, clock, realtime_offset } = self;
        let entries = [
            ("exitregs.version", VERSION.to_owned()),
            ("exitregs.kernel", kernel.clone()),
            ("exitregs.isa", isa.to_string()),
            ("exitregs.source", source.clone()),
            ("exitregs.clock", clock.clone()),
            ("exitregs.realtime_offset_ns", realtime_offset.to_string()),
        ];
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn from_map(map: &HashMap<String, String>) -> Result<Self, String> {
        let get = |name: &str| map.get(name).cloned().ok_or_else(|| format!("its schema has no {name}"));
        let version = get("exitregs.version")?;
        if version != VERSION {
            return Err(format!("it is a recording of version {version}, this exitregs reads {VERSION}"));
        }
        let name = get("exitregs.isa")?;
        let isa = [Isa::Vmx, Isa::Svm].into_iter().find(|isa| isa.to_string() == name);
        Ok(Self {
            kernel: get("exitregs.kernel")?,
            isa: isa.ok_or_else(|| format!("there is no instruction set `{name}`"))?,
            source: get("exitregs.source")?,
            clock: get("exitregs.clock")?,
            realtime_offset: get("exitregs.realtime_offset_ns")?.parse().unwrap_or(0),
        })
    }
}

/// The columns that are of no event, before those that are.
const OWN_COLUMNS: usize = 8;
const TIME: usize = 0;
const CLASS: usize = 1;
const NEXT_ENTRY: usize = 2;
const ENTRY: usize = 3;
const LOST: usize = 4;
const RIP_WRITTEN: usize = 5;
const OPERANDS: usize = 6;
const RESULTS: usize = 7;

/// The members of a class that are of no event, before those that are.
const OWN_MEMBERS: usize = 6;
const VM: usize = 0;
const VM_NAME: usize = 1;
const L2: usize = 2;
const HYPERCALL_ABI: usize = 3;
const CAUSE: usize = 4;
const DETAIL: usize = 5;

/// The places in `KvmExit::FIELDS` of the fields that are columns of their own, not members of the class.
fn exit_columns() -> impl Iterator<Item = usize> {
    let is_column = |index: &usize| !CLASS_FIELDS.contains(&KvmExit::FIELDS[*index].name);
    (0..KvmExit::FIELDS.len()).filter(is_column)
}

/// The places in `KvmExit::FIELDS` of the fields that are members of the class.
fn class_members() -> impl Iterator<Item = usize> {
    CLASS_FIELDS.into_iter().filter_map(KvmExit::index)
}

/// The field of `kvm_exit` from which a field of `kvm_entry` is stored as the difference: what the guest goes on with is
/// mostly what it stopped with.
fn base(entry_field: usize) -> Option<usize> {
    let field = &KvmEntry::FIELDS[entry_field];
    match field.name {
        "rip" => KvmExit::index("guest_rip"),
        name if field.is_common() || name == "vcpu_id" => KvmExit::index(name),
        _ => None,
    }
}

/// How the numbers of 64 bits are stored that a column of a batch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wide {
    /// In [parts](wide_type).
    Parts,
    /// As they are: there are few of them.
    Whole,
}

fn data_type(field: &event::Field, wide: Wide) -> DataType {
    match (field.size, wide) {
        (1, _) => DataType::UInt8,
        (4, _) => DataType::UInt32,
        (_, Wide::Parts) => DataType::Struct(wide_type()),
        (_, Wide::Whole) => DataType::UInt64,
    }
}

/// A number of 64 bits in parts: bits 0 to 7, 8 to 15, 16 to 31, and 32 to 63. What varies is mostly in the lower ones, and
/// zstd packs and unpacks each by itself in a fraction of the room and the time that it takes for whole numbers.
fn wide_type() -> Fields {
    let part = |name, data_type| Field::new(name, data_type, false);
    vec![
        part("byte0", DataType::UInt8),
        part("byte1", DataType::UInt8),
        part("word1", DataType::UInt16),
        part("dword1", DataType::UInt32),
    ]
    .into()
}

fn event_fields<E: Event>(prefix: &str, indices: impl Iterator<Item = usize>, wide: Wide) -> Vec<Field> {
    let named =
        |field: &event::Field| Field::new(format!("{prefix}{}", field.name), data_type(field, wide), true);
    indices.map(|index| named(&E::FIELDS[index])).collect()
}

fn class_type() -> Fields {
    let mut members = vec![
        Field::new("vm", DataType::UInt32, true),
        Field::new("vm_name", DataType::Utf8, true),
        Field::new("l2", DataType::UInt64, true),
        Field::new("hypercall_abi", DataType::UInt8, false),
        Field::new("cause", DataType::UInt8, false),
        Field::new("detail", DataType::UInt64, true),
    ];
    debug_assert_eq!(members.len(), OWN_MEMBERS);
    members.extend(event_fields::<KvmExit>("", class_members(), Wide::Whole));
    members.into()
}

fn fault_type() -> Fields {
    event_fields::<KvmNestedPageFault>("", 0..KvmNestedPageFault::FIELDS.len(), Wide::Whole).into()
}

fn schema() -> Schema {
    let class = DataType::Dictionary(Box::new(DataType::UInt16), Box::new(DataType::Struct(class_type())));
    let wide = |name, nullable| Field::new(name, DataType::Struct(wide_type()), nullable);
    let mut fields = vec![
        wide("time", false),
        Field::new("class", class, false),
        wide("next_entry", true),
        wide("entry", true),
        Field::new("lost", DataType::UInt64, false),
        Field::new("rip_written", DataType::UInt8, false),
        Field::new("operands", DataType::UInt8, false),
        Field::new("results", DataType::UInt8, false),
    ];
    debug_assert_eq!(fields.len(), OWN_COLUMNS);
    fields.extend(event_fields::<KvmExit>("exit.", exit_columns(), Wide::Parts));
    fields.extend(event_fields::<KvmEntry>("entry.", 0..KvmEntry::FIELDS.len(), Wide::Parts));
    fields.push(Field::new(KvmNestedPageFault::NAME, DataType::Struct(fault_type()), true));
    Schema::new(fields)
}

#[cfg(test)]
mod tests;
