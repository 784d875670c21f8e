// SPDX-License-Identifier: MIT
//! `perf.data`: what `perf record` and `perf kvm stat record` write, to a file or a pipe, compressed or not.
//!
//! Source: `tools/perf/Documentation/perf.data-file-format.txt` and `tools/perf/util/session.c` in Linux. Read by code
//! of our own: of a record only the thread, the time and the trace event are looked at, in place, which a general parser
//! (the crate linux-perf-data) does not do; that parser also keeps whole rounds of records in allocations of their own.

mod order;
mod sample;
mod stream;

use super::blocks::Block;
use super::decode::Decoders;
use super::entry::Entry;
use super::input::{Bytes, Input, LONGEST};
use super::occurrences::BATCH;
use super::trace_dat::TracingData;
use super::{Damage, Description, Occurrences, Reader};
use ahash::RandomState;
use anyhow::{Context, Result, ensure};
use order::Order;
use sample::{Attr, Sample};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use stream::{Record, Section, Stream};

/// The first bytes of every `perf.data` of a little-endian machine.
pub const MAGIC: &[u8] = b"PERFILE2";
/// The header's size that says: a pipe's.
pub const PIPE: u64 = 16;

/// Records, `enum perf_event_type` and `enum perf_user_event_type`.
mod record {
    pub const LOST: u32 = 2;
    pub const COMM: u32 = 3;
    pub const SAMPLE: u32 = 9;
    pub const LOST_SAMPLES: u32 = 13;
    pub const HEADER_ATTR: u32 = 64;
    pub const TRACING_DATA: u32 = 66;
    pub const FINISHED_ROUND: u32 = 68;
    pub const AUXTRACE: u32 = 71;
    pub const HEADER_FEATURE: u32 = 80;
    pub const COMPRESSED: u32 = 81;
    pub const COMPRESSED2: u32 = 83;
}

/// Parts of the header, by bit.
mod feature {
    pub const TRACING_DATA: u32 = 1;
    pub const OSRELEASE: u32 = 4;
}

/// The file or pipe behind its header.
pub struct PerfData {
    description: Description,
    stream: Stream,
    events: Events,
    zstd: Option<zstd::stream::raw::Decoder<'static>>,
    /// The begin of a decompressed record that is not whole yet.
    unpacked: Vec<u8>,
    order: Order,
    total: u64,
    ended: bool,
}

/// What samples say.
#[derive(Debug, Default)]
struct Events {
    decoders: Arc<Decoders>,
    attrs: Vec<Attr>,
    /// By id.
    of_id: HashMap<u64, Attr, RandomState>,
}

impl Events {
    /// Takes an attribute and its ids.
    fn add(&mut self, attr: Attr, ids: Bytes) {
        if attr.is_dummy {
            return;
        }
        let mut ids = ids;
        while let Some(id) = ids.u64() {
            self.of_id.insert(id, attr);
        }
        if !self.attrs.contains(&attr) {
            self.attrs.push(attr);
        }
    }

    /// How a sample is to be read.
    #[inline]
    fn attr(&self, body: &[u8]) -> Option<&Attr> {
        match &self.attrs[..] {
            [attr] => Some(attr),
            [first, ..] if first.is_identified() => self.of_id.get(&Bytes { rest: body }.u64()?),
            _ => None,
        }
    }

    /// Takes a sample apart; `None` inside if it is of an attribute that does not say enough.
    #[inline]
    fn sample<'a>(&self, body: &'a [u8]) -> Option<Option<Sample<'a>>> {
        let attr = self.attr(body)?;
        if attr.is_enough() { attr.sample(body).map(Some) } else { Some(None) }
    }
}

impl PerfData {
    /// A file that is no pipe's.
    ///
    /// # Errors
    /// Its header makes no sense, or it has none of the events that are read.
    pub fn file(input: Input) -> Result<Self> {
        let bytes = input.bytes(0, 104)?;
        let mut header = Bytes { rest: &bytes[MAGIC.len()..] };
        let mut next = || header.u64().unwrap_or(0);
        let (_size, attr_size, attrs, attrs_size, data, data_size) =
            (next(), next(), next(), next(), next(), next());
        let (_types, _types_size, features) = (next(), next(), next());
        ensure!((64..=4096).contains(&attr_size), "attributes of {attr_size} bytes make no sense");
        let mut description = Description { format: "perf.data".to_owned(), ..Description::default() };
        let mut events = Events::default();
        let table = input.bytes(attrs, attrs_size)?;
        for entry in table.chunks_exact(attr_size as usize) {
            let (attr, ids) = entry.split_at(entry.len() - 16);
            let mut ids = Bytes { rest: ids };
            let (at, size) = (ids.u64().unwrap_or(0), ids.u64().unwrap_or(0));
            let ids = input.bytes(at, size)?;
            events.add(Attr::parse(attr).context("an attribute is too short")?, Bytes { rest: &ids });
        }
        // perf writes it last: a recording that was killed has 0.
        let end = if data_size == 0 { input.length } else { data.saturating_add(data_size) };
        let mut place = end;
        for bit in (0..u64::BITS).filter(|bit| features & 1 << bit != 0) {
            let entry = input.bytes(place, 16);
            place += 16;
            let Ok(entry) = entry else { break };
            let mut entry = Bytes { rest: &entry };
            let (at, size) = (entry.u64().unwrap_or(0), entry.u64().unwrap_or(0));
            if [feature::TRACING_DATA, feature::OSRELEASE].contains(&bit) {
                let bytes = input.bytes(at, size)?;
                events.feature(bit, bytes, &mut description)?;
            }
        }
        // That part is behind the records, and perf writes it last.
        let is_cut = data_size == 0 || end > input.length || place > input.length;
        ensure!(
            !is_cut || !events.decoders.is_empty(),
            "it ends at byte {}, before the description of its events: perf was killed, or a part of the file is missing. \
             Without that nobody can tell what the events say; perf record -o - writes it first",
            input.length
        );
        ensure!(
            !events.decoders.is_empty(),
            "it has no events of KVM's: record them with perf record -e 'kvm:*' or perf kvm stat record"
        );
        let stream = Stream::new(Section { input, at: data, end }, data);
        Ok(Self::new(description, stream, events, end - data.min(end)))
    }

    /// A pipe's, in a file or a pipe, of which the first [`PIPE`] bytes have been read.
    pub fn pipe(pipe: impl Read + Send + 'static, length: u64) -> Self {
        let description = Description { format: "perf.data of a pipe".to_owned(), ..Description::default() };
        Self::new(description, Stream::new(pipe, PIPE), Events::default(), length)
    }

    fn new(description: Description, stream: Stream, events: Events, total: u64) -> Self {
        Self {
            description,
            stream,
            events,
            zstd: None,
            unpacked: Vec::new(),
            order: Order::default(),
            total,
            ended: false,
        }
    }

    /// Reads until the batch is full, something is damaged, or nothing comes any more.
    fn fill(&mut self, batch: &mut Occurrences) -> Result<(), Damage> {
        loop {
            if let Some(damage) = self.order.damage.pop_front() {
                return Err(damage);
            }
            self.order.give(batch);
            if batch.len() >= BATCH || self.ended {
                return Ok(());
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    self.order.flush(u64::MAX, self.stream.offset());
                }
                Err(damage) => self.order.damage.push_back(damage),
            }
        }
    }

    /// Reads records, and those that are compressed in them, until there is something to be given out or told. False at
    /// the end.
    fn step(&mut self) -> Result<bool, Damage> {
        while !self.order.is_ready() {
            let at = self.stream.offset();
            let Some(record) = self.stream.next()? else { return Ok(false) };
            let Record { kind, body, .. } = record;
            let nonsense = || Damage::new(at, format!("a record of type {kind} makes no sense"));
            match kind {
                record::COMPRESSED => {
                    let data = body.to_vec();
                    self.unpack(at, data)?;
                }
                record::COMPRESSED2 => {
                    let mut bytes = Bytes { rest: body };
                    let length = bytes.u64().ok_or_else(nonsense)?;
                    let data = bytes.take(length).ok_or_else(nonsense)?.to_vec();
                    self.unpack(at, data)?;
                }
                record::TRACING_DATA => {
                    let length = Bytes { rest: body }.u32().ok_or_else(nonsense)?;
                    if u64::from(length) > LONGEST {
                        return Err(nonsense());
                    }
                    let data = self.stream.bytes(length.next_multiple_of(8) as usize)?.to_vec();
                    let feature = self.events.feature(feature::TRACING_DATA, data, &mut self.description);
                    feature.map_err(|error| Damage::new(at, format!("{error:#}")))?;
                }
                record::AUXTRACE => {
                    let length = Bytes { rest: body }.u64().ok_or_else(nonsense)?;
                    self.stream.skip(length)?;
                }
                _ => one(&mut self.events, &mut self.order, &mut self.description, at, record)?,
            }
        }
        Ok(true)
    }

    /// Decompresses records, which are one stream of zstd's, and reads those that are whole.
    fn unpack(&mut self, at: u64, data: Vec<u8>) -> Result<(), Damage> {
        use zstd::stream::raw::{InBuffer, Operation, OutBuffer};
        let damage = |why: &dyn std::fmt::Display| Damage::new(at, format!("cannot decompress: {why}"));
        if self.zstd.is_none() {
            self.zstd = Some(zstd::stream::raw::Decoder::new().map_err(|why| damage(&why))?);
        }
        let Some(zstd) = &mut self.zstd else { return Ok(()) };
        let mut input = InBuffer::around(&data);
        let mut part = vec![0; zstd::zstd_safe::DCtx::out_size()];
        loop {
            let mut output = OutBuffer::around(&mut part[..]);
            zstd.run(&mut input, &mut output).map_err(|why| damage(&why))?;
            let length = output.pos();
            let block = Block::new([&self.unpacked[..], &part[..length]].concat());
            self.unpacked.clear();
            let mut start = 0;
            while let Some(header) = block.get(start..start + 8) {
                let mut bytes = Bytes { rest: header };
                let (kind, _misc, size) =
                    (bytes.u32().unwrap_or(0), bytes.u16(), usize::from(bytes.u16().unwrap_or(0)));
                if size < 8 {
                    return Err(Damage::new(at, "a compressed record without a size"));
                }
                let Some(body) = block.get(start + 8..start + size) else { break };
                let record = Record { block: &block, start: start + 8, kind, body };
                // The records behind it can be read all the same.
                let outcome = one(&mut self.events, &mut self.order, &mut self.description, at, record);
                self.order.damage.extend(outcome.err());
                start += size;
            }
            self.unpacked.extend_from_slice(&block[start..]);
            // No more comes out when all is in and the output is not full.
            if input.pos() == data.len() && length < part.len() {
                return Ok(());
            }
        }
    }
}

impl Events {
    /// Reads a part of the header.
    fn feature(&mut self, bit: u32, bytes: Vec<u8>, description: &mut Description) -> Result<()> {
        match bit {
            feature::TRACING_DATA => {
                let tracing =
                    TracingData::read(&Input::from(bytes)).context("cannot understand its formats")?;
                let formats = tracing.formats.iter().map(|(system, text)| (system.as_str(), text.as_str()));
                self.decoders = Arc::new(Decoders::new(formats, description));
                ensure!(!self.decoders.is_empty(), "it has no events of KVM's");
            }
            _ => {
                let mut bytes = Bytes { rest: &bytes };
                let length = bytes.u32().unwrap_or(0);
                let text =
                    String::from_utf8_lossy(bytes.take(length.into()).unwrap_or_default()).into_owned();
                description.kernel = Some(text.trim_end_matches('\0').to_owned());
            }
        }
        description.generation += 1;
        Ok(())
    }
}

/// Takes a record that is not compressed.
#[inline]
fn one(
    events: &mut Events,
    order: &mut Order,
    description: &mut Description,
    at: u64,
    record: Record,
) -> Result<(), Damage> {
    let Record { block, start, kind, body } = record;
    let nonsense = || Damage::new(at, format!("a record of type {kind} makes no sense"));
    match kind {
        record::SAMPLE => {
            let Some(sample) = events.sample(body).ok_or_else(nonsense)? else { return Ok(()) };
            let Sample { pid, time, start: raw, .. } = sample;
            let short = || Damage::new(at, "the record of an event is too short");
            if let Some(found) = events.decoders.find(sample.raw).ok_or_else(short)? {
                order.push(Entry::record(time, found, pid, (start + raw) as u32), block, at);
            }
        }
        record::FINISHED_ROUND => order.round(at),
        record::LOST | record::LOST_SAMPLES => {
            let mut bytes = Bytes { rest: body };
            if kind == record::LOST {
                bytes.u64().ok_or_else(nonsense)?;
            }
            let lost = bytes.u64().ok_or_else(nonsense)?;
            // Since an event that this buffer had before, which cannot be later than this round's first.
            let since = order.latest_before();
            let until = events.attrs.first().and_then(|attr| attr.time(body)).unwrap_or(order.latest());
            let time = since.max(order.done()).min(until);
            order.gap(time, until, lost, at);
        }
        record::COMM => {
            let mut bytes = Bytes { rest: body };
            let (_pid, tid) = bytes.u32().zip(bytes.u32()).ok_or_else(nonsense)?;
            description.commands.insert(tid, bytes.text().ok_or_else(nonsense)?);
            description.generation += 1;
        }
        record::HEADER_ATTR => {
            let size = Attr::size(body).filter(|size| *size as usize <= body.len()).ok_or_else(nonsense)?;
            let (attr, ids) = body.split_at(size as usize);
            events.add(Attr::parse(attr).ok_or_else(nonsense)?, Bytes { rest: ids });
        }
        record::HEADER_FEATURE => {
            let mut bytes = Bytes { rest: body };
            if bytes.u64() == Some(feature::OSRELEASE.into()) {
                let feature = events.feature(feature::OSRELEASE, bytes.rest.to_vec(), description);
                feature.map_err(|_| nonsense())?;
            }
        }
        _ => {}
    }
    Ok(())
}

impl Reader for PerfData {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage> {
        batch.clear();
        let outcome = self.fill(batch);
        batch.decode_by(&self.events.decoders);
        self.description.saw(batch);
        outcome.map(|()| !batch.is_empty())
    }

    fn progress(&self) -> (u64, u64) {
        (self.stream.offset(), self.total)
    }
}
