// SPDX-License-Identifier: MIT
//! What stands in a `trace.dat` beside the events: trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5).

use super::super::input::{Bytes, Input, LONGEST};
use super::super::{Damage, commands};
use super::compression::Compression;
use std::collections::BTreeMap;

/// The first bytes of every `trace.dat`.
pub const MAGIC: &[u8] = b"\x17\x08\x44tracing";

/// Options of the file.
mod option {
    pub const DONE: u16 = 0;
    pub const BUFFER: u16 = 3;
    pub const TRACECLOCK: u16 = 4;
    pub const UNAME: u16 = 5;
    pub const CPUCOUNT: u16 = 8;
    pub const TSC2NSEC: u16 = 14;
    pub const HEADER_INFO: u16 = 16;
    pub const FTRACE_EVENTS: u16 = 17;
    pub const KALLSYMS: u16 = 19;
    pub const CMDLINES: u16 = 21;
    pub const EVENT_FORMATS: u16 = 18;
}

/// In a section's flags.
const COMPRESSED: u16 = 1;

/// How time stamps become nanoseconds: `time * multiplier >> shift`.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    multiplier: u32,
    shift: u32,
}

impl Scale {
    /// A time stamp in nanoseconds.
    pub fn nanoseconds(self, time: u64) -> u64 {
        ((u128::from(time) * u128::from(self.multiplier)) >> self.shift) as u64
    }
}

/// Where one CPU's pages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuData {
    /// Its number.
    pub cpu: u32,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes there.
    pub size: u64,
    /// They are compressed, in chunks.
    pub compressed: bool,
}

/// The buffers of a tracefs instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its name; empty: the top instance.
    pub name: String,
    /// Those of its CPUs.
    pub cpus: Vec<CpuData>,
}

/// How events look: what begins a `trace.dat` of version 6, and is a part of a `perf.data`.
#[derive(Debug, Default)]
pub struct TracingData {
    /// `events/header_page`.
    pub header_page: String,
    /// Systems, and the `format` texts of their events.
    pub formats: Vec<(String, String)>,
}

impl TracingData {
    /// Reads that of a `perf.data`.
    ///
    /// # Errors
    /// It is damaged, or of a big-endian machine.
    pub fn read(input: &Input) -> Result<Self, Damage> {
        let mut cursor = Cursor { input, at: 0 };
        let mut data = Self::default();
        cursor.expect(MAGIC)?;
        cursor.text()?;
        if cursor.byte()? != 0 {
            return Err(Damage::new(cursor.at - 1, BIG_ENDIAN));
        }
        // The sizes of a long and of a page.
        cursor.skip(5)?;
        data.header_info(&mut cursor)?;
        skip_ftrace_events(&mut cursor)?;
        data.event_formats(&mut cursor)?;
        Ok(data)
    }

    fn header_info(&mut self, cursor: &mut Cursor) -> Result<(), Damage> {
        cursor.expect(b"header_page\0")?;
        let length = cursor.u64()?;
        self.header_page = String::from_utf8_lossy(&cursor.take(length)?).into_owned();
        cursor.expect(b"header_event\0")?;
        let length = cursor.u64()?;
        cursor.skip(length)
    }

    fn event_formats(&mut self, cursor: &mut Cursor) -> Result<(), Damage> {
        for _ in 0..cursor.u32()? {
            let system = cursor.text()?;
            for _ in 0..cursor.u32()? {
                let length = cursor.u64()?;
                let text = String::from_utf8_lossy(&cursor.take(length)?).into_owned();
                self.formats.push((system.clone(), text));
            }
        }
        Ok(())
    }
}

const BIG_ENDIAN: &str = "the file is of a big-endian machine: KVM's x86 events are not";

/// A file's header.
#[derive(Debug, Default)]
pub struct Header {
    /// Of the file format.
    pub version: u32,
    /// Bytes of a page.
    pub page_size: u32,
    /// How sections and pages may be compressed.
    pub compression: Compression,
    /// How events look.
    pub tracing: TracingData,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The clock's name.
    pub clock: Option<String>,
    /// Of time stamps, if they are no nanoseconds.
    pub scale: Option<Scale>,
    /// Names of threads.
    pub commands: BTreeMap<u32, String>,
    /// The instances of tracefs, the top one first.
    pub instances: Vec<Instance>,
    /// What could not be read of the header itself.
    pub damage: Vec<Damage>,
}

/// Reads one part of the file after the other.
struct Cursor<'a> {
    input: &'a Input,
    at: u64,
}

impl Cursor<'_> {
    fn take(&mut self, length: u64) -> Result<Vec<u8>, Damage> {
        let bytes = self.input.bytes(self.at, length)?;
        self.at += length;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), Damage> {
        match self.at.checked_add(length).filter(|end| *end <= self.input.length) {
            Some(end) => self.at = end,
            None => {
                return Err(Damage::new(
                    self.at,
                    format!("{length} bytes should be here: the file is cut off"),
                ));
            }
        }
        Ok(())
    }

    fn u16(&mut self) -> Result<u16, Damage> {
        self.take(2).map(|bytes| Bytes { rest: &bytes }.u16().unwrap_or(0))
    }

    fn u32(&mut self) -> Result<u32, Damage> {
        self.take(4).map(|bytes| Bytes { rest: &bytes }.u32().unwrap_or(0))
    }

    fn u64(&mut self) -> Result<u64, Damage> {
        self.take(8).map(|bytes| Bytes { rest: &bytes }.u64().unwrap_or(0))
    }

    fn byte(&mut self) -> Result<u8, Damage> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A name, which no more than a few letters have.
    fn text(&mut self) -> Result<String, Damage> {
        let (start, mut text) = (self.at, Vec::new());
        loop {
            match self.byte()? {
                0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
                byte if text.len() < 256 => text.push(byte),
                _ => return Err(Damage::new(start, "a name should be here")),
            }
        }
    }

    fn expect(&mut self, text: &[u8]) -> Result<(), Damage> {
        let at = self.at;
        if self.take(text.len() as u64)? == text {
            return Ok(());
        }
        Err(Damage::new(at, format!("{:?} should be here", String::from_utf8_lossy(text))))
    }
}

impl Header {
    /// Reads it. What is damaged behind the part that says how events look is told in [`damage`](Self::damage).
    ///
    /// # Errors
    /// That part is damaged, or not of a kernel for x86.
    pub fn read(input: &Input) -> Result<Self, Damage> {
        let mut cursor = Cursor { input, at: 0 };
        let mut header = Self::default();
        cursor.expect(MAGIC)?;
        let at = cursor.at;
        let version = cursor.text()?;
        header.version = version.trim().parse().unwrap_or(0);
        if ![6, 7].contains(&header.version) {
            return Err(Damage::new(at, format!("version {version:?} of trace.dat: only 6 and 7 are read")));
        }
        let at = cursor.at;
        let (big_endian, _long_size) = (cursor.byte()? != 0, cursor.byte()?);
        if big_endian {
            return Err(Damage::new(at, BIG_ENDIAN));
        }
        header.page_size = cursor.u32()?;
        if header.version == 6 {
            header.version_6(&mut cursor)?;
        } else {
            header.version_7(&mut cursor)?;
        }
        Ok(header)
    }

    fn version_6(&mut self, cursor: &mut Cursor) -> Result<(), Damage> {
        self.tracing.header_info(cursor)?;
        skip_ftrace_events(cursor)?;
        self.tracing.event_formats(cursor)?;
        // kallsyms and printk formats.
        for _ in 0..2 {
            let length = cursor.u32()?;
            cursor.skip(length.into())?;
        }
        let length = cursor.u64()?;
        let lines = cursor.take(length)?;
        self.commands = commands(&String::from_utf8_lossy(&lines));
        let mut cpus = cursor.u32()?;
        let mut instances = Vec::new();
        let at = cursor.at;
        let mut kind = cursor.take(10)?;
        if kind == b"options  \0" {
            loop {
                let id = cursor.u16()?;
                if id == option::DONE {
                    break;
                }
                let length = cursor.u32()?;
                let data = cursor.take(length.into())?;
                let mut option = Bytes { rest: &data };
                match (id, option.u64()) {
                    (option::BUFFER, Some(offset)) => {
                        instances.push((option.text().unwrap_or_default(), offset));
                    }
                    (option::CPUCOUNT, _) => cpus = Bytes { rest: &data }.u32().unwrap_or(cpus),
                    _ => self.option(id, &data),
                }
            }
            kind = cursor.take(10)?;
        }
        if kind != b"flyrecord\0" {
            return Err(Damage::new(at, "there are no events here, or as text only (a latency tracer's)"));
        }
        self.instances.push(Instance { name: String::new(), cpus: cpus_6(cursor, cpus)? });
        for (name, offset) in instances {
            let mut cursor = Cursor { input: cursor.input, at: offset };
            match cursor.expect(b"flyrecord\0").and_then(|()| cpus_6(&mut cursor, cpus)) {
                Ok(cpus) => self.instances.push(Instance { name, cpus }),
                Err(damage) => self.damage.push(damage),
            }
        }
        Ok(())
    }

    fn version_7(&mut self, cursor: &mut Cursor) -> Result<(), Damage> {
        let at = cursor.at;
        let (name, _version) = (cursor.text()?, cursor.text()?);
        self.compression = Compression::by_name(&name)
            .ok_or_else(|| Damage::new(at, format!("compressed by {name:?}: only zstd and zlib are read")))?;
        let mut next = cursor.u64()?;
        let (mut seen, mut told) = (Vec::new(), cursor.at);
        while next != 0 && !seen.contains(&next) {
            seen.push(next);
            match self.options_7(cursor.input, next) {
                Ok((after, end)) => (next, told) = (after, end),
                // The sections before may have been enough.
                Err(damage) => {
                    self.damage.push(damage);
                    break;
                }
            }
        }
        if self.instances.is_empty() {
            // What is cut off ends before the options that tell where its CPUs' pages are, which come last.
            let found = self.sections_7(cursor.input, told);
            self.damage.extend(found.err());
        }
        if self.tracing.header_page.is_empty()
            && let Some(damage) = self.damage.pop()
        {
            return Err(damage);
        }
        Ok(())
    }

    /// Reads the sections that no options tell of, one after the other from `at` on, up to the first with events.
    fn sections_7(&mut self, input: &Input, mut at: u64) -> Result<(), Damage> {
        while at < input.length {
            let mut cursor = Cursor { input, at };
            let (id, flags, _, size) = (cursor.u16()?, cursor.u16()?, cursor.u32()?, cursor.u64()?);
            if id == option::BUFFER {
                // It is written when the section is whole.
                let end =
                    if size == 0 { input.length } else { cursor.at.saturating_add(size).min(input.length) };
                let cpus = match flags & COMPRESSED {
                    0 => untold_pages(input, cursor.at, end, self.page_size),
                    _ => untold_chunks(input, cursor.at, end, self.page_size),
                };
                self.instances.push(Instance { name: String::new(), cpus });
                let what =
                    "what tells the CPUs of these events is missing: they are told apart by their times";
                return Err(Damage::new(at, what));
            }
            let known = self.part_7(input, id, at);
            self.damage.extend(known.err());
            at = cursor.at.saturating_add(size);
        }
        Ok(())
    }

    /// Reads a section that is no instance's, if it is one that is needed.
    fn part_7(&mut self, input: &Input, id: u16, offset: u64) -> Result<(), Damage> {
        match id {
            option::HEADER_INFO => {
                self.in_section(input, offset, id, |header, cursor| header.tracing.header_info(cursor))
            }
            option::EVENT_FORMATS => {
                self.in_section(input, offset, id, |header, cursor| header.tracing.event_formats(cursor))
            }
            option::CMDLINES => {
                let text = self.section(input, offset, id)?;
                let lines = text.get(8..).unwrap_or_default();
                self.commands = commands(&String::from_utf8_lossy(lines));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The options of the section at `offset`; the offset of the next such section, and where this one ends.
    fn options_7(&mut self, input: &Input, offset: u64) -> Result<(u64, u64), Damage> {
        let data = self.section(input, offset, 0)?;
        let end = Cursor { input, at: offset + 8 }.u64()?.saturating_add(offset + 16);
        let mut bytes = Bytes { rest: &data };
        while let Some((id, length)) = bytes.u16().zip(bytes.u32()) {
            let cut = || Damage::new(offset, "an option is longer than its section");
            let data = bytes.take(length.into()).ok_or_else(cut)?;
            let mut option = Bytes { rest: data };
            let place = option.u64();
            let outcome = match (id, place) {
                (option::DONE, next) => return Ok((next.unwrap_or(0), end)),
                (option::BUFFER, Some(place)) => self.buffer_7(input, place, option),
                (option::HEADER_INFO | option::EVENT_FORMATS | option::CMDLINES, Some(place)) => {
                    self.part_7(input, id, place)
                }
                (option::FTRACE_EVENTS | option::KALLSYMS, _) => Ok(()),
                _ => {
                    self.option(id, data);
                    Ok(())
                }
            };
            self.damage.extend(outcome.err());
        }
        Ok((0, end))
    }

    /// The contents of a section.
    fn section(&self, input: &Input, offset: u64, id: u16) -> Result<Vec<u8>, Damage> {
        let mut cursor = Cursor { input, at: offset };
        let (found, flags, _, size) = (cursor.u16()?, cursor.u16()?, cursor.u32()?, cursor.u64()?);
        if found != id {
            return Err(Damage::new(offset, format!("section {id} should be here, not {found}")));
        }
        if flags & COMPRESSED == 0 {
            return cursor.take(size);
        }
        let (compressed, length) = (cursor.u32()?, cursor.u32()?);
        let at = cursor.at;
        let data = cursor.take(compressed.into())?;
        self.compression
            .decompress(&data, u64::from(length).min(LONGEST) as usize)
            .map_err(|error| Damage::new(at, format!("cannot decompress section {id}: {error}")))
    }

    /// Reads a section by `read`, which expects a file: whatever is damaged in it is reported at the section.
    fn in_section(
        &mut self,
        input: &Input,
        offset: u64,
        id: u16,
        read: impl FnOnce(&mut Self, &mut Cursor) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let data = self.section(input, offset, id)?;
        read(self, &mut Cursor { input: &Input::from(data), at: 0 })
            .map_err(|damage| Damage::new(offset, format!("in section {id}, {damage}")))
    }

    /// The CPUs of an instance.
    fn buffer_7(&mut self, input: &Input, section: u64, mut option: Bytes) -> Result<(), Damage> {
        let nonsense = || Damage::new(section, "the option of the buffer here makes no sense");
        let name = option.text().ok_or_else(nonsense)?;
        let clock = option.text().ok_or_else(nonsense)?;
        self.clock.get_or_insert(clock);
        self.page_size = option.u32().ok_or_else(nonsense)?;
        let count = option.u32().ok_or_else(nonsense)?;
        let flags = Cursor { input, at: section + 2 }.u16()?;
        let mut cpus = Vec::new();
        for _ in 0..count {
            let cpu = option.u32().zip(option.u64()).zip(option.u64());
            let ((cpu, offset), size) = cpu.ok_or_else(nonsense)?;
            cpus.push(CpuData { cpu, offset, size, compressed: flags & COMPRESSED != 0 });
        }
        let place = if name.is_empty() { 0 } else { self.instances.len() };
        self.instances.insert(place, Instance { name, cpus });
        Ok(())
    }

    /// An option that both versions have.
    fn option(&mut self, id: u16, data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        let text = text.trim_end_matches(['\0', '\n']);
        match id {
            option::UNAME => {
                // `Linux NODE RELEASE VERSION MACHINE`, of trace-cmd or of the kernel.
                self.kernel = text.split_whitespace().nth(2).map(str::to_owned);
            }
            option::TRACECLOCK => {
                let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
                self.clock = chosen.map(|(clock, _)| clock.to_owned()).or_else(|| self.clock.take());
            }
            option::TSC2NSEC => {
                let mut bytes = Bytes { rest: data };
                if let Some((multiplier, shift)) = bytes.u32().zip(bytes.u32())
                    && multiplier != 0
                    && shift < u64::BITS
                {
                    self.scale = Some(Scale { multiplier, shift });
                }
            }
            _ => {}
        }
    }
}

/// The CPUs whose pages lie between these offsets, one's behind the other's: a CPU's time does not go back.
fn untold_pages(input: &Input, begin: u64, end: u64, page_size: u32) -> Vec<CpuData> {
    let page_size = u64::from(page_size.max(1));
    let (mut cpus, mut last): (Vec<CpuData>, _) = (Vec::new(), None);
    let mut offset = begin.next_multiple_of(page_size);
    // A page begins with its time.
    while let Ok(time) = (Cursor { input, at: offset }).u64() {
        if offset >= end {
            break;
        }
        match cpus.last_mut().filter(|_| last.is_some_and(|last| last <= time)) {
            Some(cpu) => cpu.size += page_size,
            None => {
                let cpu = cpus.len() as u32;
                cpus.push(CpuData { cpu, offset, size: page_size, compressed: false });
            }
        }
        last = Some(time);
        offset += page_size;
    }
    cpus
}

/// As [`untold_pages`], of compressed ones: each CPU's number of chunks, and the chunks.
fn untold_chunks(input: &Input, begin: u64, end: u64, page_size: u32) -> Vec<CpuData> {
    let mut cpus: Vec<CpuData> = Vec::new();
    let mut cursor = Cursor { input, at: begin };
    loop {
        let offset = cursor.at.next_multiple_of(u64::from(page_size.max(1)));
        cursor.at = offset;
        let chunks = if offset < end { cursor.u32().unwrap_or(0) } else { 0 };
        if chunks == 0 {
            return cpus;
        }
        for _ in 0..chunks {
            // Both lengths, compressed and not, and the data.
            let Ok(length) = cursor.u32() else { break };
            cursor.at = cursor.at.saturating_add(4 + u64::from(length));
        }
        let (cpu, size) = (cpus.len() as u32, cursor.at.min(end) - offset);
        cpus.push(CpuData { cpu, offset, size, compressed: true });
    }
}

/// The table of an instance's CPUs in version 6.
fn cpus_6(cursor: &mut Cursor, cpus: u32) -> Result<Vec<CpuData>, Damage> {
    let cpu = |cpu| Ok(CpuData { cpu, offset: cursor.u64()?, size: cursor.u64()?, compressed: false });
    (0..cpus).map(cpu).collect()
}

fn skip_ftrace_events(cursor: &mut Cursor) -> Result<(), Damage> {
    for _ in 0..cursor.u32()? {
        let length = cursor.u64()?;
        cursor.skip(length)?;
    }
    Ok(())
}
