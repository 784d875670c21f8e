// SPDX-License-Identifier: MIT
//! Writing recordings.

use super::{
    MAX_ROWS, Metadata, OWN_COLUMNS, Wide, base, class_members, class_type, exit_columns, fault_type, schema,
    wide_type,
};
use crate::analysis::batch::{CLASS_FIELDS, Class, protected, told};
use crate::analysis::pairing::{NestedPageFault, Record};
use arrow_array::types::UInt16Type;
use arrow_array::{
    ArrayRef, DictionaryArray, RecordBatch, StringArray, StructArray, UInt8Array, UInt16Array, UInt32Array,
    UInt64Array,
};
use arrow_buffer::NullBuffer;
use arrow_ipc::writer::{
    DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext, IpcWriteOptions, write_message,
};
use arrow_ipc::{CompressionType, MetadataVersion};
use arrow_schema::{ArrowError, Schema, SchemaRef};
use exitregs_common::detail;
use exitregs_common::event::{Event, Exit, Field, KvmEntry, KvmExit, KvmNestedPageFault, field_bit};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// zstd's; the next one takes twice the time for a tenth less.
const COMPRESSION_LEVEL: i32 = 3;
/// Bytes that parts of a batch are padded to: most are short.
const ALIGNMENT: usize = 8;
/// What ends a stream.
const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Makes a recording, batch by batch. Each batch stands alone, and is handed over whole.
#[derive(Debug)]
pub struct Writer {
    schema: SchemaRef,
    options: IpcWriteOptions,
    context: IpcWriteContext,
    records: Vec<Record>,
    lost: u64,
}

impl Writer {
    /// A recording of a host.
    ///
    /// # Errors
    /// Arrow was built without zstd.
    pub fn new(metadata: &Metadata) -> io::Result<Self> {
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)
            .and_then(|options| options.try_with_compression(Some(CompressionType::ZSTD)))
            .and_then(|options| options.try_with_compression_level(Some(COMPRESSION_LEVEL)))
            .map_err(arrow)?;
        let Schema { fields, .. } = schema();
        Ok(Self {
            schema: Arc::new(Schema::new_with_metadata(fields, metadata.to_map())),
            options,
            context: IpcWriteContext::default(),
            records: Vec::with_capacity(MAX_ROWS),
            lost: 0,
        })
    }

    /// What a file begins with.
    ///
    /// # Errors
    /// Arrow's.
    pub fn begin(&self) -> io::Result<Vec<u8>> {
        let (_, schema) = self.tracker();
        self.messages([schema])
    }

    /// What a file ends with that was written to its end.
    pub const fn end() -> [u8; 8] {
        END
    }

    /// Takes a record, if there is room left: else the batch has to be [encoded](Self::encode) first.
    pub fn push(&mut self, record: Record) {
        debug_assert!(!self.is_full());
        self.records.push(record);
    }

    /// Events were lost since the batch began.
    pub fn lost(&mut self, lost: u64) {
        self.lost += lost;
    }

    /// Whether no record can be taken.
    pub fn is_full(&self) -> bool {
        self.records.len() >= MAX_ROWS
    }

    /// Whether there are no records, and none was lost.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The batch of the records taken so far, to be written at once, and begins another one. `name` tells VMs' names.
    ///
    /// # Errors
    /// Arrow's.
    pub fn encode(&mut self, name: impl FnMut(u32) -> String) -> io::Result<Vec<u8>> {
        let batch = self.batch(name).map_err(arrow)?;
        self.records.clear();
        self.lost = 0;
        // One that has not seen any dictionary: each batch has its own.
        let (mut tracker, _) = self.tracker();
        let generator = IpcDataGenerator::default();
        let (dictionaries, batch) =
            generator.encode(&batch, &mut tracker, &self.options, &mut self.context).map_err(arrow)?;
        self.messages(dictionaries.into_iter().chain([batch]))
    }

    fn tracker(&self) -> (DictionaryTracker, EncodedData) {
        let mut tracker = DictionaryTracker::new(false);
        let generator = IpcDataGenerator::default();
        let schema =
            generator.schema_to_bytes_with_dictionary_tracker(&self.schema, &mut tracker, &self.options);
        (tracker, schema)
    }

    fn messages(&self, messages: impl IntoIterator<Item = EncodedData>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for message in messages {
            write_message(&mut bytes, message, &self.options).map_err(arrow)?;
        }
        Ok(bytes)
    }

    fn batch(&self, name: impl FnMut(u32) -> String) -> Result<RecordBatch, ArrowError> {
        let rows: Vec<Exit> = self.records.iter().map(row).collect();
        let faults: Vec<Option<&NestedPageFault>> = self
            .records
            .iter()
            .map(|record| match record {
                Record::NestedPageFault(fault) => Some(fault),
                Record::Exit(_) => None,
            })
            .collect();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        let mut last = 0;
        columns.push(wide(rows.iter().map(|exit| {
            let before = std::mem::replace(&mut last, exit.exit_time);
            Some(exit.exit_time.wrapping_sub(before))
        })));
        columns.push(classes(&rows, name)?);
        let next_entry = |exit: &Exit| {
            (exit.next_entry_time != 0).then(|| exit.next_entry_time.wrapping_sub(exit.exit_time))
        };
        columns.push(wide(rows.iter().map(next_entry)));
        let entry =
            |exit: &Exit| (exit.entry_time != 0).then(|| exit.entry_time.wrapping_sub(exit.next_entry_time));
        columns.push(wide(rows.iter().map(entry)));
        let mut lost = self.lost;
        columns.push(Arc::new(UInt64Array::from_iter_values(rows.iter().map(|_| std::mem::take(&mut lost)))));
        columns.push(Arc::new(UInt8Array::from_iter_values(rows.iter().map(|exit| exit.rip_written))));
        columns.push(Arc::new(UInt8Array::from_iter_values(rows.iter().map(|exit| exit.operands))));
        columns.push(Arc::new(UInt8Array::from_iter_values(rows.iter().map(|exit| exit.results))));
        debug_assert_eq!(columns.len(), OWN_COLUMNS);

        for index in exit_columns() {
            let value = |exit: &Exit| exit.exit.value(index).unwrap_or(0);
            columns.push(column(&KvmExit::FIELDS[index], Wide::Parts, &rows, value, |exit| {
                let protected = protected::<KvmExit>(exit.exit.is_protected);
                let told = told::<KvmExit>(exit.operands);
                (exit.exit_unknown & !told | protected) & 1 << index == 0
            }));
        }
        for index in 0..KvmEntry::FIELDS.len() {
            let value = |exit: &Exit| {
                let base = base(index).and_then(|base| exit.exit.value(base)).unwrap_or(0);
                exit.entry.value(index).unwrap_or(0).wrapping_sub(base)
            };
            columns.push(column(&KvmEntry::FIELDS[index], Wide::Parts, &rows, value, |exit| {
                let protected = protected::<KvmEntry>(exit.entry.is_protected);
                let told = told::<KvmEntry>(exit.results);
                exit.entry_time != 0 && (exit.entry_unknown & !told | protected) & 1 << index == 0
            }));
        }
        columns.push(self.faults(&faults)?);
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }

    fn faults(&self, faults: &[Option<&NestedPageFault>]) -> Result<ArrayRef, ArrowError> {
        let members = KvmNestedPageFault::FIELDS.iter().enumerate().map(|(index, field)| {
            let value = |fault: &Option<&NestedPageFault>| {
                fault.and_then(|fault| fault.event.value(index)).unwrap_or(0)
            };
            column(field, Wide::Whole, faults, value, |fault| {
                fault.is_none_or(|NestedPageFault { event, unknown, .. }| {
                    let protected = protected::<KvmNestedPageFault>(event.is_protected);
                    (unknown | protected) & 1 << index == 0
                })
            })
        });
        let valid = NullBuffer::from_iter(faults.iter().map(Option::is_some));
        Ok(Arc::new(StructArray::try_new(fault_type(), members.collect(), Some(valid))?))
    }
}

/// A record's row: of a nested page fault, an exit that has only what they have in common.
fn row(record: &Record) -> Exit {
    match *record {
        Record::Exit(exit) => exit,
        Record::NestedPageFault(NestedPageFault { time, tgid, nested_state, event, .. }) => {
            let KvmNestedPageFault { vcpu_id, is_nested, is_protected, .. } = event;
            Exit {
                exit_time: time,
                tgid,
                nested_state,
                exit_unknown: !["vcpu_id", "is_nested", "is_protected"]
                    .into_iter()
                    .map(|name| field_bit(KvmExit::FIELDS, name))
                    .fold(0, |mask, bit| mask | bit),
                exit: KvmExit { vcpu_id, is_nested, is_protected, ..KvmExit::default() },
                ..Exit::default()
            }
        }
    }
}

/// An array of the field's type, null where it is not known.
fn column<T>(
    field: &Field,
    stored: Wide,
    rows: &[T],
    value: impl Fn(&T) -> u64,
    known: impl Fn(&T) -> bool,
) -> ArrayRef {
    // What is unknown is 0 as well, which takes no room.
    let values = rows.iter().map(|row| known(row).then(|| value(row)));
    match (field.size, stored) {
        (1, _) => Arc::new(UInt8Array::from_iter(values.map(|value| value.map(|value| value as u8)))),
        (4, _) => Arc::new(UInt32Array::from_iter(values.map(|value| value.map(|value| value as u32)))),
        (_, Wide::Parts) => wide(values),
        (_, Wide::Whole) => Arc::new(UInt64Array::from_iter(values)),
    }
}

/// Numbers of 64 bits in their parts.
fn wide(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    let values: Vec<Option<u64>> = values.collect();
    let of = |shift: u32| values.iter().map(move |value| value.unwrap_or(0) >> shift);
    let parts: Vec<ArrayRef> = vec![
        Arc::new(UInt8Array::from_iter_values(of(0).map(|part| part as u8))),
        Arc::new(UInt8Array::from_iter_values(of(8).map(|part| part as u8))),
        Arc::new(UInt16Array::from_iter_values(of(16).map(|part| part as u16))),
        Arc::new(UInt32Array::from_iter_values(of(32).map(|part| part as u32))),
    ];
    let valid = NullBuffer::from_iter(values.iter().map(Option::is_some));
    Arc::new(StructArray::new(wide_type(), parts, Some(valid).filter(|valid| valid.null_count() > 0)))
}

fn classes(rows: &[Exit], mut name: impl FnMut(u32) -> String) -> Result<ArrayRef, ArrowError> {
    let mut classes: Vec<Class> = Vec::new();
    let mut known: HashMap<Class, u16> = HashMap::new();
    let keys: UInt16Array = rows
        .iter()
        .map(|exit| {
            let class = Class::of(exit);
            let place = *known.entry(class).or_insert_with(|| {
                classes.push(class);
                (classes.len() - 1) as u16
            });
            Some(place)
        })
        .collect();
    let each = |value: &dyn Fn(&Class) -> Option<u64>| classes.iter().map(value).collect::<Vec<_>>();
    let mut members: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter(classes.iter().map(|class| (class.vm != 0).then_some(class.vm)))),
        Arc::new(StringArray::from_iter(classes.iter().map(|class| (class.vm != 0).then(|| name(class.vm))))),
        Arc::new(UInt64Array::from(each(&|class| (class.l2 != 0).then_some(class.l2)))),
        Arc::new(UInt8Array::from_iter_values(classes.iter().map(|class| class.hypercall_abi))),
        Arc::new(UInt8Array::from_iter_values(classes.iter().map(|class| class.cause))),
        Arc::new(UInt64Array::from(each(&|class| (class.detail != detail::UNKNOWN).then_some(class.detail)))),
    ];
    debug_assert_eq!(class_members().count(), CLASS_FIELDS.len());
    for index in class_members() {
        let value = |class: &Class| class.event().value(index).unwrap_or(0);
        members.push(column(&KvmExit::FIELDS[index], Wide::Whole, &classes, value, |class| {
            class.unknown & 1 << index == 0
        }));
    }
    let values = StructArray::try_new(class_type(), members, None)?;
    Ok(Arc::new(DictionaryArray::<UInt16Type>::try_new(keys, Arc::new(values))?))
}

fn arrow(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        error => io::Error::other(error),
    }
}
