// SPDX-License-Identifier: MIT
//! Reading recordings, damaged ones too: nothing in a file is believed before it was checked.

use super::{
    CAUSE, CLASS, DETAIL, ENTRY, HYPERCALL_ABI, L2, LOST, MAX_ROWS, Metadata, NEXT_ENTRY, OPERANDS,
    OWN_COLUMNS, OWN_MEMBERS, RESULTS, RIP_WRITTEN, TIME, VM, VM_NAME, base, class_members, exit_columns,
    schema,
};
use crate::analysis::batch::{Batch, Class, Column, Columns, NEVER, protected, told};
use crate::analysis::pairing::{NestedPageFault, Record};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_buffer::Buffer;
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_ipc::{Message, MessageHeader, MetadataVersion, convert};
use arrow_schema::{DataType, SchemaRef};
use exitregs_common::detail;
use exitregs_common::event::{Event, Exit, KvmEntry, KvmExit, KvmNestedPageFault};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

/// What each message begins with, and so the file.
pub const MAGIC: [u8; 4] = [0xff; 4];
/// No message of a recording has more bytes before its body.
const MAX_HEAD: usize = 1 << 20;
/// No batch has more bytes: some forty columns of 8 bytes.
const MAX_BODY: usize = MAX_ROWS * 512;
/// No column of a batch has more bytes: names of VMs are the longest.
const MAX_BUFFER: i64 = MAX_ROWS as i64 * 256;

/// Where a recording makes no sense, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Damage {
    /// Byte offset in the file.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// Whether what follows can be read.
    pub goes_on: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

/// Reads a recording, batch by batch.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    offset: u64,
    metadata: Metadata,
    schema: SchemaRef,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The recording was ended.
    Ended,
    /// It could not be read to its end.
    Broken,
}

/// A message's head and body.
struct Framed {
    offset: u64,
    head: Vec<u8>,
    body: Vec<u8>,
}

/// A batch that has been read and not been decoded: that may be done by another thread.
#[derive(Debug)]
pub struct Encoded {
    offset: u64,
    schema: SchemaRef,
    dictionaries: Vec<(Vec<u8>, Buffer)>,
    batch: (Vec<u8>, Buffer),
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// It is not a recording, or one of another version.
    pub fn new(input: R) -> Result<Self, Damage> {
        let metadata = Metadata {
            kernel: String::new(),
            isa: exitregs_common::isa::Isa::Vmx,
            source: String::new(),
            clock: String::new(),
            realtime_offset: 0,
        };
        let schema = Arc::new(schema());
        let mut reader = Self { input, offset: 0, metadata, schema, state: State::Reading };
        let framed =
            reader.message()?.ok_or_else(|| damage(0, "a recording of nothing, not even a schema"))?;
        let not = |what: &dyn fmt::Display| damage(0, format!("this is no recording of exitregs: {what}"));
        let message = parse(&framed.head).map_err(|what| not(&what))?;
        let found = message.header_as_schema().ok_or_else(|| not(&"it does not begin with a schema"))?;
        let found = convert::try_fb_to_schema(found).map_err(|error| not(&error))?;
        let map =
            found.metadata().iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        reader.metadata = Metadata::from_map(&map).map_err(|what| not(&what))?;
        let same = found.fields().len() == reader.schema.fields().len()
            && found.fields().iter().zip(reader.schema.fields()).all(|(found, expected)| {
                found.name() == expected.name() && found.data_type() == expected.data_type()
            });
        if !same {
            return Err(not(&"its columns are not those of this version"));
        }
        reader.schema = Arc::new(found);
        Ok(reader)
    }

    /// What the recording tells of its host.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Bytes that have been read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next batch; `None` at the end.
    ///
    /// # Errors
    /// The recording is damaged, or was not ended. After damage that lets reading go on, the next call does.
    pub fn read(&mut self) -> Result<Option<Encoded>, Damage> {
        let mut dictionaries = Vec::new();
        let begin = self.offset;
        while self.state == State::Reading {
            let framed = match self.message() {
                Ok(Some(framed)) => framed,
                Ok(None) => break,
                Err(damage) => {
                    self.state = State::Broken;
                    return Err(Damage { offset: begin, ..damage });
                }
            };
            let kind = match parse(&framed.head) {
                Ok(message) => message.header_type(),
                Err(what) => return Err(Damage { offset: framed.offset, what, goes_on: true }),
            };
            match kind {
                // Delta dictionaries and the like are not written; the batch's own comes last.
                MessageHeader::DictionaryBatch if dictionaries.is_empty() => {
                    dictionaries.push((framed.head, Buffer::from_vec(framed.body)));
                }
                MessageHeader::RecordBatch => {
                    let batch = (framed.head, Buffer::from_vec(framed.body));
                    let schema = Arc::clone(&self.schema);
                    return Ok(Some(Encoded { offset: framed.offset, schema, dictionaries, batch }));
                }
                _ => {
                    let what = "a message that no recording has".to_owned();
                    return Err(Damage { offset: framed.offset, what, goes_on: true });
                }
            }
        }
        Ok(None)
    }

    /// The next message; `None` where the stream was ended.
    fn message(&mut self) -> Result<Option<Framed>, Damage> {
        let offset = self.offset;
        let cut =
            |part: &str| damage(offset, format!("cut off in a batch's {part}: what followed is missing"));
        let start = self.bytes(8)?;
        if start.is_empty() {
            return Err(damage(offset, "the recording was not ended: what followed is missing"));
        }
        if start.len() < 8 {
            return Err(cut("beginning"));
        }
        if start[..4] != MAGIC {
            return Err(damage(offset, "no Arrow message begins here"));
        }
        let size = u32::from_le_bytes([start[4], start[5], start[6], start[7]]) as usize;
        if size == 0 {
            self.state = State::Ended;
            return Ok(None);
        }
        if size > MAX_HEAD {
            return Err(damage(offset, format!("a message with {size} bytes before its body")));
        }
        let head = self.bytes(size)?;
        if head.len() < size {
            return Err(cut("description"));
        }
        let length = parse(&head).map_err(|what| damage(offset, what))?.bodyLength();
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_BODY);
        let length = length.ok_or_else(|| damage(offset, "a message longer than any of a recording"))?;
        let body = self.bytes(length)?;
        if body.len() < length {
            return Err(cut("columns"));
        }
        Ok(Some(Framed { offset, head, body }))
    }

    /// The next bytes; fewer at the end of the file.
    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Damage> {
        // Nothing is allocated for bytes that a damaged length only promises.
        let mut bytes = Vec::with_capacity(count.min(1 << 20));
        let read = io::Read::by_ref(&mut self.input).take(count as u64).read_to_end(&mut bytes);
        read.map_err(|error| damage(self.offset, format!("cannot be read: {error}")))?;
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }
}

fn damage(offset: u64, what: impl Into<String>) -> Damage {
    Damage { offset, what: what.into(), goes_on: false }
}

fn parse(head: &[u8]) -> Result<Message<'_>, String> {
    arrow_ipc::root_as_message(head).map_err(|error| format!("an Arrow message that makes no sense: {error}"))
}

/// Checks what arrow-ipc takes for granted of a batch: that buffers are where they are said to be, and of a size within
/// reason. Returns the number of rows.
fn check(batch: &arrow_ipc::RecordBatch<'_>, body: &[u8]) -> Result<usize, String> {
    let rows = usize::try_from(batch.length()).ok().filter(|rows| *rows <= MAX_ROWS);
    let rows = rows.ok_or_else(|| format!("{} rows", batch.length()))?;
    for node in batch.nodes().into_iter().flatten() {
        let length = usize::try_from(node.length()).ok().filter(|length| *length <= MAX_ROWS);
        let nulls = usize::try_from(node.null_count()).ok();
        if length.is_none() || nulls.is_none() || nulls > length {
            return Err(format!("{} of {} rows are null", node.null_count(), node.length()));
        }
    }
    for buffer in batch.buffers().into_iter().flatten() {
        let (offset, length) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length()));
        let (Ok(offset), Ok(length)) = (offset, length) else {
            return Err("a column before the batch".to_owned());
        };
        let bytes = offset.checked_add(length).and_then(|end| body.get(offset..end));
        let bytes = bytes.ok_or("a column behind the batch's end")?;
        if batch.compression().is_some() && !bytes.is_empty() {
            let size = bytes.first_chunk().map(|size| i64::from_le_bytes(*size));
            let size = size.ok_or("a compressed column without its size")?;
            if !(-1..=MAX_BUFFER).contains(&size) {
                return Err(format!("a column of {size} bytes"));
            }
        }
    }
    Ok(rows)
}

impl Encoded {
    /// Bytes before it in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn damage(&self, what: impl fmt::Display) -> Damage {
        Damage { offset: self.offset, what: what.to_string(), goes_on: true }
    }

    /// The columns of these places in the schema.
    fn columns(&self, places: &[usize]) -> Result<RecordBatch, Damage> {
        let mut dictionaries = HashMap::new();
        for (head, body) in &self.dictionaries {
            let message = parse(head).map_err(|what| self.damage(what))?;
            let dictionary = message.header_as_dictionary_batch();
            let dictionary = dictionary.ok_or_else(|| self.damage("no dictionary"))?;
            let data = dictionary.data().ok_or_else(|| self.damage("an empty dictionary"))?;
            check(&data, body).map_err(|what| self.damage(what))?;
            if dictionary.isDelta() {
                return Err(self.damage("a dictionary that continues another"));
            }
            let version = MetadataVersion::V5;
            read_dictionary(body, dictionary, &self.schema, &mut dictionaries, &version)
                .map_err(|error| self.damage(error))?;
        }
        let (head, body) = &self.batch;
        let message = parse(head).map_err(|what| self.damage(what))?;
        let batch = message.header_as_record_batch().ok_or_else(|| self.damage("no batch"))?;
        let rows = check(&batch, body).map_err(|what| self.damage(what))?;
        let schema = Arc::clone(&self.schema);
        let decoder = RecordBatchDecoder::try_new(body, batch, schema, &dictionaries, &MetadataVersion::V5);
        let decoded = decoder
            .and_then(|decoder| decoder.with_projection(Some(places)).read_record_batch())
            .map_err(|error| self.damage(error))?;
        if decoded.num_rows() != rows {
            return Err(self.damage("columns of different length"));
        }
        Ok(decoded)
    }

    /// The exits, as far as `columns` asks. Nested page faults are left out.
    ///
    /// # Errors
    /// The batch is damaged.
    pub fn batch(&self, columns: Columns) -> Result<Batch, Damage> {
        let (exit_fields, entry_fields) = (wanted(columns.exit_fields), wanted(columns.entry_fields));
        let mut places = Places::default();
        let class = places.add(CLASS);
        let lost = places.add(LOST);
        let times = columns.exit_time.then(|| places.add(TIME));
        let next = (columns.next_entry | columns.entry).then(|| places.add(NEXT_ENTRY));
        let entries = columns.entry.then(|| places.add(ENTRY));
        let exit_place = |field| exit_columns().position(|index| index == field);
        let bases = entry_fields.iter().filter_map(|field| base(*field));
        let exits: Vec<_> = exit_fields
            .iter()
            .copied()
            .chain(bases)
            .map(|field| (field, exit_place(field).map(|place| places.add(OWN_COLUMNS + place))))
            .collect();
        let entry_places: Vec<_> = entry_fields
            .iter()
            .map(|field| (*field, places.add(OWN_COLUMNS + exit_columns().count() + field)))
            .collect();
        let decoded = self.columns(&places.0)?;

        let mut batch = Batch::default();
        let all = decoded.column(class).as_dictionary::<UInt16Type>();
        (batch.classes, batch.names) = classes(all.values().as_struct());
        batch.class = all.keys().values().to_vec();
        if batch.class.iter().any(|class| usize::from(*class) >= batch.classes.len()) {
            return Err(self.damage("exits of no class"));
        }
        batch.lost = decoded.column(lost).as_primitive::<UInt64Type>().values().iter().sum();
        if let Some(place) = times {
            let mut time = 0_u64;
            batch.exit_time = wide(decoded.column(place));
            for since in &mut batch.exit_time {
                time = time.wrapping_add(*since);
                *since = time;
            }
        }
        if let Some(place) = next {
            batch.next_entry = or_never(decoded.column(place));
        }
        if let Some(place) = entries {
            let after = or_never(decoded.column(place));
            let both = batch.next_entry.iter().zip(after);
            batch.entry = both
                .map(|(next, after)| if after == NEVER { NEVER } else { next.saturating_add(after) })
                .collect();
        }
        let mut known: HashMap<usize, Column> = HashMap::new();
        for (field, place) in exits {
            let column = match place {
                Some(place) => column(decoded.column(place)),
                None => class_column(&batch, field),
            };
            known.insert(field, column);
        }
        if !entry_fields.is_empty() {
            batch.entry_fields = vec![Column::default(); KvmEntry::FIELDS.len()];
        }
        for (field, place) in entry_places {
            let mut column = column(decoded.column(place));
            if let Some(base) = base(field).and_then(|base| known.get(&base)) {
                let size = KvmEntry::FIELDS[field].size;
                for (value, base) in column.values.iter_mut().zip(&base.values) {
                    *value = cut(value.wrapping_add(*base), size);
                }
            }
            batch.entry_fields[field] = column;
        }
        if !exit_fields.is_empty() {
            batch.exit_fields = vec![Column::default(); KvmExit::FIELDS.len()];
        }
        for field in exit_fields {
            batch.exit_fields[field] = known.remove(&field).unwrap_or_default();
        }
        leave_out_faults(&mut batch);
        Ok(batch)
    }

    /// Everything, as it was recorded. Registers of protected guests and what else is unknown are 0.
    ///
    /// # Errors
    /// The batch is damaged.
    pub fn records(&self) -> Result<Vec<Record>, Damage> {
        let places: Vec<usize> = (0..self.schema.fields().len()).collect();
        let decoded = self.columns(&places)?;
        let all = decoded.column(CLASS).as_dictionary::<UInt16Type>();
        let (classes, _) = classes(all.values().as_struct());
        let since = wide(decoded.column(TIME));
        let (next, after) = (or_never(decoded.column(NEXT_ENTRY)), or_never(decoded.column(ENTRY)));
        let [rip_written, operands, results] =
            [RIP_WRITTEN, OPERANDS, RESULTS].map(|place| decoded.column(place).as_primitive::<UInt8Type>());
        let exit_places: Vec<usize> = exit_columns().collect();
        let exits: Vec<_> =
            (0..exit_places.len()).map(|place| column(decoded.column(OWN_COLUMNS + place))).collect();
        let first_entry = OWN_COLUMNS + exit_places.len();
        let entries: Vec<_> =
            (0..KvmEntry::FIELDS.len()).map(|place| column(decoded.column(first_entry + place))).collect();
        let faults = decoded.column(first_entry + KvmEntry::FIELDS.len()).as_struct();
        let fault_columns: Vec<_> = faults.columns().iter().map(column).collect();

        let mut time = 0_u64;
        let mut records = Vec::with_capacity(decoded.num_rows());
        for row in 0..decoded.num_rows() {
            time = time.wrapping_add(since[row]);
            let place = usize::from(all.keys().value(row));
            let class = classes.get(place).ok_or_else(|| self.damage("exits of no class"))?;
            if faults.is_valid(row) {
                let mut unknown = 0;
                let event = KvmNestedPageFault::from_values(|field| {
                    let value = fault_columns[field].get(row);
                    unknown |= u32::from(value.is_none()) << field;
                    value.unwrap_or(0)
                });
                unknown &= !protected::<KvmNestedPageFault>(event.is_protected);
                let (tgid, nested_state) = (class.vm, class.l2);
                let fault = NestedPageFault { time, tgid, nested_state, event, unknown };
                records.push(Record::NestedPageFault(fault));
                continue;
            }
            let of_class = class.event();
            let (operands, results) = (operands.value(row), results.value(row));
            let mut exit_unknown = class.unknown | told::<KvmExit>(operands);
            let exit = KvmExit::from_values(|field| {
                let Some(place) = exit_places.iter().position(|index| *index == field) else {
                    return of_class.value(field).unwrap_or(0);
                };
                let value = exits[place].get(row);
                exit_unknown |= u32::from(value.is_none()) << field;
                value.unwrap_or(0)
            });
            let mut entry_unknown = told::<KvmEntry>(results);
            let ended = after[row] != NEVER;
            let entry = KvmEntry::from_values(|field| {
                let value = entries[field].get(row);
                entry_unknown |= u32::from(value.is_none()) << field;
                let base = base(field).and_then(|base| exit.value(base)).unwrap_or(0);
                value.map_or(0, |value| value.wrapping_add(base))
            });
            exit_unknown &= !protected::<KvmExit>(class.is_protected);
            entry_unknown &= !protected::<KvmEntry>(entry.is_protected);
            let at = |after: u64| if after == NEVER { 0 } else { time.wrapping_add(after) };
            let next_entry_time = at(next[row]);
            records.push(Record::Exit(Exit {
                exit_time: time,
                next_entry_time,
                entry_time: if ended { next_entry_time.wrapping_add(after[row]) } else { 0 },
                nested_state: class.l2,
                tgid: class.vm,
                exit_unknown,
                entry_unknown: if ended { entry_unknown } else { 0 },
                hypercall_abi: class.hypercall_abi,
                rip_written: rip_written.value(row),
                cause: class.cause,
                operands,
                results,
                reserved: [0; 7],
                exit,
                entry: if ended { entry } else { KvmEntry::default() },
            }));
        }
        Ok(records)
    }
}

/// Places in the schema, in rising order each once; arrow-ipc gives columns in the order in which they are asked for.
#[derive(Default)]
struct Places(Vec<usize>);

impl Places {
    /// Asks for a column; its place among the decoded ones.
    fn add(&mut self, place: usize) -> usize {
        self.0.iter().position(|known| *known == place).unwrap_or_else(|| {
            self.0.push(place);
            self.0.len() - 1
        })
    }
}

fn wanted(mask: u32) -> Vec<usize> {
    (0..32).filter(|index| mask & 1 << index != 0).collect()
}

fn cut(value: u64, size: usize) -> u64 {
    match size {
        1 => value & 0xff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn or_never(array: &ArrayRef) -> Vec<u64> {
    let mut values = wide(array);
    if let Some(nulls) = array.nulls() {
        for (value, is_valid) in values.iter_mut().zip(nulls) {
            *value = if is_valid { *value } else { NEVER };
        }
    }
    values
}

/// Numbers of 64 bits from their parts.
fn wide(array: &ArrayRef) -> Vec<u64> {
    let parts = array.as_struct().columns();
    let [low, high] = [0, 1].map(|part| parts[part].as_primitive::<UInt8Type>().values());
    let word = parts[2].as_primitive::<UInt16Type>().values();
    let dword = parts[3].as_primitive::<UInt32Type>().values();
    let bytes = low.iter().zip(high).map(|(low, high)| u64::from(*low) | u64::from(*high) << 8);
    let words = word.iter().zip(dword).map(|(word, dword)| u64::from(*word) << 16 | u64::from(*dword) << 32);
    bytes.zip(words).map(|(bytes, words)| bytes | words).collect()
}

fn column(array: &ArrayRef) -> Column {
    let values = match array.data_type() {
        DataType::UInt8 => array.as_primitive::<UInt8Type>().values().iter().map(|v| (*v).into()).collect(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().values().iter().map(|v| (*v).into()).collect(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().values().to_vec(),
        _ => wide(array),
    };
    let unknown = array.nulls().map(|nulls| nulls.iter().map(|valid| !valid).collect()).unwrap_or_default();
    Column { values, unknown }
}

/// A field of `kvm_exit` that is in the class.
fn class_column(batch: &Batch, field: usize) -> Column {
    let of: Vec<(u64, bool)> = batch
        .classes
        .iter()
        .map(|class| (class.event().value(field).unwrap_or(0), class.unknown & 1 << field != 0))
        .collect();
    let each = |class: &u16| of[usize::from(*class)];
    let mut unknown: Vec<bool> = batch.class.iter().map(|class| each(class).1).collect();
    if !unknown.contains(&true) {
        unknown = Vec::new();
    }
    Column { values: batch.class.iter().map(|class| each(class).0).collect(), unknown }
}

/// The classes of a batch, and the names of their VMs.
fn classes(values: &StructArray) -> (Vec<Class>, Vec<(u32, String)>) {
    let own = |member: usize| column(values.column(member));
    let (vms, l2s, details) = (own(VM), own(L2), own(DETAIL));
    let (abis, causes) = (own(HYPERCALL_ABI), own(CAUSE));
    let events: Vec<_> =
        class_members().zip(OWN_MEMBERS..).map(|(field, place)| (field, own(place))).collect();
    let texts = values.column(VM_NAME).as_string::<i32>();
    let mut names: Vec<(u32, String)> = Vec::new();
    let mut classes = Vec::with_capacity(values.len());
    for row in 0..values.len() {
        let mut unknown = 0;
        let event = KvmExit::from_values(|field| {
            let Some((_, column)) = events.iter().find(|(index, _)| *index == field) else { return 0 };
            let value = column.get(row);
            unknown |= u32::from(value.is_none()) << field;
            value.unwrap_or(0)
        });
        let vm = vms.get(row).unwrap_or(0) as u32;
        let mut class = Class::of(&Exit { exit: event, ..Exit::default() });
        class.vm = vm;
        class.l2 = l2s.get(row).unwrap_or(0);
        class.hypercall_abi = abis.get(row).unwrap_or(0) as u8;
        class.cause = causes.get(row).unwrap_or(0) as u8;
        class.detail = details.get(row).unwrap_or(detail::UNKNOWN);
        class.unknown = unknown;
        classes.push(class);
        if vm != 0 && texts.is_valid(row) && names.iter().all(|(known, _)| *known != vm) {
            names.push((vm, crate::vm::printable(texts.value(row))));
        }
    }
    (classes, names)
}

/// Takes the rows of nested page faults away: they are of classes without an exit reason.
fn leave_out_faults(batch: &mut Batch) {
    let no_reason = exitregs_common::event::field_bit(KvmExit::FIELDS, "exit_reason");
    let is_fault: Vec<bool> = batch.classes.iter().map(|class| class.unknown & no_reason != 0).collect();
    if !is_fault.contains(&true) {
        return;
    }
    let keep: Vec<bool> = batch.class.iter().map(|class| !is_fault[usize::from(*class)]).collect();
    fn retain<T>(of: &mut Vec<T>, keep: &[bool]) {
        let mut row = 0..;
        of.retain(|_| row.next().is_none_or(|row: usize| keep.get(row).copied().unwrap_or(true)));
    }
    retain(&mut batch.class, &keep);
    retain(&mut batch.exit_time, &keep);
    retain(&mut batch.next_entry, &keep);
    retain(&mut batch.entry, &keep);
    for column in batch.exit_fields.iter_mut().chain(&mut batch.entry_fields) {
        retain(&mut column.values, &keep);
        retain(&mut column.unknown, &keep);
    }
}
