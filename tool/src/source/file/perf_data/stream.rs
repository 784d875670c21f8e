// SPDX-License-Identifier: MIT
//! Records one after the other, from a part of a file or from a pipe.

use super::super::Damage;
use super::super::input::Input;
use super::super::occurrences::{Block, Blocks};
use std::fmt;
use std::io::{self, Read};

/// Bytes that are read at once; no record is longer than 64 KiB.
const BLOCK: usize = 256 << 10;
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

/// Where bytes come from.
pub enum Origin {
    /// A file.
    Section(Section),
    /// A pipe.
    Pipe(Box<dyn Read + Send>),
}

impl Read for Origin {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Section(section) => section.read(bytes),
            Self::Pipe(pipe) => pipe.read(bytes),
        }
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
pub struct Stream {
    origin: Origin,
    blocks: Blocks,
    block: Block,
    /// What of the block has not been taken.
    start: usize,
    /// Offset of that in the file.
    offset: u64,
    ended: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Stream {
    /// Those of `origin`, whose first byte is at `offset` of the file.
    pub fn new(origin: Origin, offset: u64) -> Self {
        Self { origin, blocks: Blocks::default(), block: Block::default(), start: 0, offset, ended: false }
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
        let rest = &self.block[self.start..];
        let mut filled = rest.len();
        let mut bytes = self.blocks.unused(BLOCK.max(filled));
        bytes[..filled].copy_from_slice(rest);
        let outcome = loop {
            if filled == bytes.len() {
                if filled >= length {
                    break Ok(());
                }
                bytes.resize(filled + BLOCK, 0);
            }
            match self.origin.read(&mut bytes[filled..]) {
                Ok(0) => {
                    self.ended = true;
                    break Ok(());
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ended = true;
                    break Err(Damage::new(self.offset, format!("cannot read: {error}")));
                }
            }
        };
        bytes.truncate(filled);
        (self.block, self.start) = (self.blocks.share(bytes), 0);
        outcome
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
            let part = length.min(BLOCK as u64);
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
