// SPDX-License-Identifier: MIT
//! Records one after the other, from a part of a file or from a pipe.

use super::super::Damage;
use super::super::blocks::{Block, ReadAhead};
use super::super::input::Input;
use std::io::{self, Read};

/// Bytes that are passed over at once.
const SKIPPED: u64 = 256 << 10;
/// Bytes of a record's header: type, misc, size.
const HEADER: usize = 8;

/// A part of a file.
#[derive(Debug)]
pub struct Section {
    /// The file.
    pub input: Input,
    /// Where the part begins.
    pub at: u64,
    /// Where it ends.
    pub end: u64,
}

impl Read for Section {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = self.end.saturating_sub(self.at).min(bytes.len() as u64) as usize;
        let read = self.input.read_at(self.at, &mut bytes[..length]);
        let read = read.map_err(|damage| io::Error::other(damage.what))?;
        self.at += read as u64;
        Ok(read)
    }
}

/// A record.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The block that has it.
    pub block: &'a Block,
    /// Where its body begins there.
    pub start: usize,
    /// `PERF_RECORD_*`.
    pub kind: u32,
    /// Behind its header.
    pub body: &'a [u8],
}

/// Records.
#[derive(Debug)]
pub struct Stream {
    input: ReadAhead,
    block: Block,
    /// What of the block has not been taken.
    start: usize,
    /// Offset of that in the file.
    offset: u64,
    ended: bool,
}

impl Stream {
    /// Those of `input`, whose first byte is at `offset` of the file.
    pub fn new(input: impl Read + Send + 'static, offset: u64) -> Self {
        Self { input: ReadAhead::new(input), block: Block::default(), start: 0, offset, ended: false }
    }

    /// Offset of the next record.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Has `length` bytes in the block, unless there are no more; returns how many there are.
    #[inline]
    fn have(&mut self, length: usize) -> Result<usize, Damage> {
        if self.block.len() - self.start < length && !self.ended {
            self.fill(length)?;
        }
        Ok(self.block.len() - self.start)
    }

    /// Goes on with another block, which begins with what of this one has not been taken, and has at least `length` bytes
    /// unless there are no more.
    fn fill(&mut self, length: usize) -> Result<(), Damage> {
        let mut outcome = Ok(());
        while self.block.len() - self.start < length && !self.ended {
            (self.block, self.start, outcome) = self.input.next(&self.block[self.start..]);
            self.ended = self.input.has_ended();
        }
        outcome.map_err(|error| Damage::new(self.offset, format!("cannot read: {error}")))
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// It is cut off, or its size makes no sense: nothing can be read behind it.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Record<'_>>, Damage> {
        let at = self.offset;
        let have = self.have(HEADER)?;
        let cut = || Damage::new(at, "the file ends within a record");
        if have == 0 {
            return Ok(None);
        }
        if have < HEADER {
            self.stop();
            return Err(cut());
        }
        let header = &self.block[self.start..self.start + HEADER];
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let size = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let whole = size >= HEADER && self.have(size)? >= size;
        if !whole {
            self.stop();
            return Err(if size < HEADER { Damage::new(at, "a record without a size") } else { cut() });
        }
        let (start, end) = (self.start + HEADER, self.start + size);
        self.start = end;
        self.offset += size as u64;
        Ok(Some(Record { block: &self.block, start, kind, body: &self.block[start..end] }))
    }

    /// The next `length` bytes, which are no record.
    ///
    /// # Errors
    /// There are not so many.
    pub fn bytes(&mut self, length: usize) -> Result<&[u8], Damage> {
        let at = self.offset;
        if self.have(length)? < length {
            self.stop();
            return Err(Damage::new(at, "the file ends within what belongs to a record"));
        }
        let start = self.start;
        self.start += length;
        self.offset += length as u64;
        Ok(&self.block[start..start + length])
    }

    /// Passes over `length` bytes, which are no record.
    ///
    /// # Errors
    /// There are not so many.
    pub fn skip(&mut self, mut length: u64) -> Result<(), Damage> {
        while length > 0 {
            let part = length.min(SKIPPED);
            self.bytes(part as usize)?;
            length -= part;
        }
        Ok(())
    }

    /// Reads nothing any more.
    fn stop(&mut self) {
        self.ended = true;
        self.start = self.block.len();
    }
}
