// SPDX-License-Identifier: MIT
//! Text in blocks of whole lines.

use super::super::Damage;
use super::super::blocks::{Block, Blocks};
use super::super::input::fill;
use std::io::Read;

/// Bytes that are read at once.
const BLOCK: usize = 256 << 10;
/// No line of an event is longer.
const LONGEST_LINE: usize = 64 << 10;

/// Whole lines.
#[derive(Debug)]
pub struct Lines {
    /// Where in the file they begin.
    pub offset: u64,
    /// Their text.
    pub block: Block,
}

/// Reads whole lines. No other thread reads ahead: those that parse have enough to do.
pub struct WholeLines<R> {
    input: R,
    blocks: Blocks,
    /// The begin of a line whose end has not been read.
    rest: Vec<u8>,
    /// Where in the file that is.
    offset: u64,
    ended: bool,
    /// Why nothing can be read any more, if that has not been told.
    failed: Option<Damage>,
}

impl<R: Read> WholeLines<R> {
    /// Of `input`, from its begin.
    pub fn new(input: R) -> Self {
        Self { input, blocks: Blocks::default(), rest: Vec::new(), offset: 0, ended: false, failed: None }
    }

    /// Bytes that have been read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next lines; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, ends within a line, or a line does not end. Reading may go on.
    pub fn next(&mut self) -> Result<Option<Lines>, Damage> {
        while !self.ended {
            let begun = self.rest.len();
            let mut bytes = self.blocks.unused(begun + BLOCK);
            bytes[..begun].copy_from_slice(&self.rest);
            let (read, outcome) = fill(&mut self.input, &mut bytes[begun..]);
            self.ended = begun + read < bytes.len();
            bytes.truncate(begun + read);
            let end = self.offset + bytes.len() as u64;
            self.failed = outcome.err().map(|error| Damage::new(end, format!("cannot read: {error}")));
            let lines = memchr::memrchr(b'\n', &bytes[begun..]).map_or(0, |last| begun + last + 1);
            self.rest.clear();
            self.rest.extend_from_slice(&bytes[lines..]);
            bytes.truncate(lines);
            let offset = self.offset;
            self.offset += lines as u64;
            let block = self.blocks.share(bytes);
            if lines > 0 {
                return Ok(Some(Lines { offset, block }));
            }
            if self.rest.len() > LONGEST_LINE {
                return Err(self.drop_rest("a line that does not end: is this text?"));
            }
        }
        match self.failed.take() {
            Some(damage) => Err(damage),
            None if self.rest.is_empty() => Ok(None),
            None => Err(self.drop_rest("the file ends within a line")),
        }
    }

    fn drop_rest(&mut self, what: &str) -> Damage {
        let at = self.offset;
        self.offset += self.rest.len() as u64;
        self.rest.clear();
        Damage::new(at, what)
    }
}
