// SPDX-License-Identifier: MIT
//! Files whose events come again and again, later each time: as much as hours of recording would give.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Nanoseconds between the end of the events and their next beginning.
const PAUSE: u64 = 1_000_000_000;

/// A number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u64> {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end)).context("the file is too short")?;
    Ok(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// How much later events of these times come with each repetition.
fn round(times: impl Iterator<Item = Result<u64>>) -> Result<u64> {
    let times = times.collect::<Result<Vec<u64>>>()?;
    let (first, last) = times.iter().min().zip(times.iter().max()).context("it has no events")?;
    Ok(last - first + PAUSE)
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A recording. Its batches stand alone, and may come in any order: their times stay as they are.
pub fn recording(from: &Path, to: &Path, times: u64) -> Result<()> {
    const END: usize = 8;
    let bytes = read(from)?;
    // The schema: four bytes of marker, the length of what follows, and no body.
    let begin = 8 + number::<4>(&bytes, 4)? as usize;
    let batches = bytes.get(begin..bytes.len().saturating_sub(END)).context("it is too short")?;
    let mut out = create(to)?;
    out.write_all(&bytes[..begin])?;
    for _ in 0..times {
        out.write_all(batches)?;
    }
    out.write_all(&bytes[bytes.len() - END..])?;
    Ok(out.flush()?)
}

/// A `trace.dat` of version 6, of which each CPU's pages come one after the other: trace-cmd.dat.v6(5).
pub fn trace_dat(from: &Path, to: &Path, times: u64) -> Result<()> {
    const TABLE: &[u8] = b"flyrecord\0";
    /// Behind the magic number, the version, the byte order and the size of a long.
    const PAGE_SIZE: usize = 14;
    /// Of a page's header: its time.
    const TIME: usize = 0;
    let bytes = read(from)?;
    let page = number::<4>(&bytes, PAGE_SIZE)? as usize;
    let table = bytes.windows(TABLE.len()).position(|part| part == TABLE).context("it has no flyrecord")?;
    let table = table + TABLE.len();
    let (mut header, mut cpus) = (None, Vec::new());
    let mut entry = table;
    // The first CPU's pages come behind the table.
    while header.is_none_or(|header| entry + 16 <= header) {
        let (offset, size) = (number::<8>(&bytes, entry)? as usize, number::<8>(&bytes, entry + 8)? as usize);
        if offset < entry
            || offset.checked_add(size).is_none_or(|end| end > bytes.len())
            || offset % page != 0
        {
            break;
        }
        header = header.or(Some(offset));
        cpus.push((entry, &bytes[offset..offset + size]));
        entry += 16;
    }
    let header = header.context("it has no CPUs")?;
    let pages = cpus.iter().flat_map(|(_, pages)| pages.chunks_exact(page));
    let round = round(pages.map(|page| number::<8>(page, TIME)))?;

    let mut begin = bytes[..header].to_vec();
    let mut at = header as u64;
    for (entry, pages) in &cpus {
        let size = pages.len() as u64 * times;
        put(&mut begin, *entry, at);
        put(&mut begin, entry + 8, size);
        at += size;
    }
    let mut out = create(to)?;
    out.write_all(&begin)?;
    for (_, pages) in &cpus {
        let mut pages = pages.to_vec();
        for _ in 0..times {
            out.write_all(&pages)?;
            for page in pages.chunks_exact_mut(page) {
                let time = number::<8>(page, TIME)? + round;
                put(page, TIME, time);
            }
        }
    }
    Ok(out.flush()?)
}

/// A `perf.data` that is not compressed: tools/perf/Documentation/perf.data-file-format.txt.
pub fn perf_data(from: &Path, to: &Path, times: u64) -> Result<()> {
    /// Of the header: where attributes begin; where the records do, and how many bytes they have.
    const ATTRS: usize = 24;
    const DATA: usize = 40;
    const DATA_SIZE: usize = 48;
    /// Of an attribute: what samples have, and flags.
    const SAMPLE_TYPE: usize = 24;
    const FLAGS: usize = 40;
    /// Sample types: IDENTIFIER and IP, which come before the thread and the time.
    const BEFORE: u64 = 1 << 16 | 1;
    /// The time and what comes behind it at the end of records that are no samples.
    const BEHIND: u64 = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 16;
    const SAMPLE_ID_ALL: u64 = 1 << 18;
    const SAMPLE: u64 = 9;
    const FIRST_OF_USER_SPACE: u64 = 64;
    const HEADER: usize = 8;

    let bytes = read(from)?;
    let attrs = number::<8>(&bytes, ATTRS)? as usize;
    let sample_type = number::<8>(&bytes, attrs + SAMPLE_TYPE)?;
    ensure!(number::<8>(&bytes, attrs + FLAGS)? & SAMPLE_ID_ALL != 0, "its records have no time");
    let (begin, size) = (number::<8>(&bytes, DATA)? as usize, number::<8>(&bytes, DATA_SIZE)? as usize);
    let end = begin + size;
    let mut data = bytes.get(begin..end).context("its records are cut off")?.to_vec();
    let in_sample = HEADER + 8 * (sample_type & BEFORE).count_ones() as usize + 8;
    let behind = 8 * (sample_type & BEHIND).count_ones() as usize;
    let mut places = Vec::new();
    let mut at = 0;
    while at < size {
        let (kind, length) = (number::<4>(&data, at)?, number::<2>(&data, at + 6)? as usize);
        ensure!(length >= HEADER, "a record without a size");
        match kind {
            SAMPLE => places.push(at + in_sample),
            0..FIRST_OF_USER_SPACE => places.push(at + length - behind),
            _ => {}
        }
        at += length;
    }
    // Some that are made up have 0.
    places.retain(|place| number::<8>(&data, *place).is_ok_and(|time| time != 0));
    let round = round(places.iter().map(|place| number::<8>(&data, *place)))?;

    let mut header = bytes[..begin].to_vec();
    put(&mut header, DATA_SIZE, size as u64 * times);
    let mut out = create(to)?;
    out.write_all(&header)?;
    for _ in 0..times {
        out.write_all(&data)?;
        for place in &places {
            let time = number::<8>(&data, *place)? + round;
            put(&mut data, *place, time);
        }
    }
    // Then comes a table of where the rest is.
    let moved = size as u64 * (times - 1);
    let mut rest = bytes[end..].to_vec();
    let parts_begin = number::<8>(&rest, 0)? as usize - end;
    for entry in (0..parts_begin).step_by(16) {
        let at = number::<8>(&rest, entry)? + moved;
        put(&mut rest, entry, at);
    }
    out.write_all(&rest)?;
    Ok(out.flush()?)
}
