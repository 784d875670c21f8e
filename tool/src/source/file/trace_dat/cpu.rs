// SPDX-License-Identifier: MIT
//! One CPU's pages of a `trace.dat`.

use super::super::Damage;
use super::super::blocks::{Block, Blocks};
use super::super::decode::Decoders;
use super::super::entry::Entry;
use super::super::input::{Bytes, Input, LONGEST};
use super::super::merge::Source;
use super::compression::Compression;
use super::header::{CpuData, Scale};
use crate::source::page::{Page, PageFormat};
use std::sync::Arc;

/// Bytes of pages that are read at once.
const BLOCK: usize = 64 << 10;

/// What the CPUs of a file have in common.
#[derive(Debug)]
pub struct Common {
    /// The file.
    pub input: Input,
    /// How pages may be compressed.
    pub compression: Compression,
    /// How a page looks.
    pub format: PageFormat,
    /// Its bytes.
    pub page_size: usize,
    /// Of time stamps, if they are no nanoseconds.
    pub scale: Option<Scale>,
    /// How events are read.
    pub decoders: Arc<Decoders>,
}

/// One CPU.
#[derive(Debug)]
pub struct Cpu {
    common: Arc<Common>,
    data: CpuData,
    /// Where in the file the next block is.
    at: u64,
    /// Compressed chunks that are left; the file says how many before the first one.
    chunks: Option<u32>,
    /// Pages that were read, the next one of them, and where in the file they were.
    block: Block,
    page: usize,
    block_at: u64,
    blocks: Blocks,
    /// Time of the last event.
    last: u64,
    /// Events behind the last one could not be read.
    gap: bool,
    /// Where the file is cut off, behind the block.
    cut: Option<Damage>,
}

impl Cpu {
    /// That of a file whose pages lie there.
    pub fn new(common: Arc<Common>, data: CpuData) -> Self {
        let at = data.offset;
        Self {
            common,
            data,
            at,
            chunks: None,
            block: Block::default(),
            page: 0,
            block_at: at,
            blocks: Blocks::default(),
            last: 0,
            gap: false,
            cut: None,
        }
    }

    /// Bytes that have been read.
    pub fn done(&self) -> u64 {
        self.at.saturating_sub(self.data.offset)
    }

    fn end(&self) -> u64 {
        self.data.offset.saturating_add(self.data.size)
    }

    /// Reads the next block; false at the end. Behind a damage whose length is not known there is nothing to read.
    fn next_block(&mut self) -> Result<bool, Damage> {
        (self.page, self.block_at) = (0, self.at);
        self.block = Block::default();
        if self.data.compressed {
            return self.next_chunk();
        }
        let end = self.end();
        let left = end.saturating_sub(self.at);
        if left == 0 {
            return self.cut.take().map_or(Ok(false), Err);
        }
        let length = left.min(BLOCK.next_multiple_of(self.common.page_size) as u64) as usize;
        let mut bytes = self.blocks.unused(length);
        bytes.truncate(length);
        // Where the disk fails there is no going on.
        let read = self.common.input.read_at(self.at, &mut bytes).inspect_err(|_| self.at = end)?;
        let whole = read == bytes.len();
        self.at = if whole { self.at + read as u64 } else { end };
        bytes.truncate(read - read % self.common.page_size);
        self.block = self.blocks.share(bytes);
        if !whole {
            // The pages that are whole come first.
            let what = format!("the file ends within the events of CPU {}", self.data.cpu);
            self.cut = Some(Damage::new(self.block_at + read as u64, what));
        }
        Ok(true)
    }

    /// [`next_block`](Self::next_block) of a CPU whose pages are compressed.
    fn next_chunk(&mut self) -> Result<bool, Damage> {
        let number = |bytes: &[u8]| Bytes { rest: bytes }.u32().unwrap_or(0);
        // Until the chunk turns out to be whole it is the last.
        let chunks = match self.chunks.replace(0) {
            Some(chunks) => chunks,
            None => {
                let chunks = number(&self.common.input.bytes(self.at, 4)?);
                self.at += 4;
                chunks
            }
        };
        if chunks == 0 {
            return Ok(false);
        }
        let compressed = number(&self.common.input.bytes(self.at, 4)?);
        let length = number(&self.common.input.bytes(self.at + 4, 4)?);
        if u64::from(length) > LONGEST {
            return Err(Damage::new(self.at, format!("a chunk of {length} bytes makes no sense")));
        }
        let data_at = self.at + 8;
        let data = self.common.input.bytes(data_at, compressed.into())?;
        self.at = data_at + u64::from(compressed);
        self.chunks = Some(chunks - 1);
        let bytes = self.common.compression.decompress(&data, length as usize).map_err(|error| {
            Damage::new(data_at, format!("cannot decompress events of CPU {}: {error}", self.data.cpu))
        })?;
        self.block = Block::new(bytes);
        Ok(true)
    }

    /// The next page's events. `Ok(false)` if there are no more pages in the block.
    fn next_page(&mut self, queue: &mut Vec<Entry>) -> Result<bool, Damage> {
        let Some(bytes) = self.block.get(self.page..self.page + self.common.page_size) else {
            return Ok(false);
        };
        // Of compressed pages the place of their chunk is told.
        let offset = if self.data.compressed { 0 } else { self.page as u64 };
        let at = self.block_at + offset;
        let data_at = self.page + self.common.format.header();
        self.page += self.common.page_size;
        let cpu = self.data.cpu;
        let damage = |why: &dyn std::fmt::Display| {
            Damage::new(at, format!("a page of CPU {cpu} makes no sense: {why}"))
        };
        // Until the page turns out to be whole.
        let gap = std::mem::replace(&mut self.gap, true);
        let page = Page::parse(bytes, &self.common.format).map_err(|why| damage(&why))?;
        let scale = self.common.scale;
        let time = |time| scale.map_or(time, |scale| scale.nanoseconds(time));
        let start = time(page.time);
        if start < self.last {
            return Err(damage(&"it is earlier than the page before"));
        }
        if page.lost.is_some() || gap {
            queue.push(Entry::gap(self.last, start, page.lost.unwrap_or(0)));
        }
        let mut events = page.events();
        while let Some(event) = events.next() {
            let (now, record) = event.map_err(|why| damage(&why))?;
            let now = time(now);
            if now < self.last {
                return Err(damage(&"its time goes back"));
            }
            self.last = now;
            let found = self.common.decoders.find(record).ok_or_else(|| damage(&"a record is too short"))?;
            if let Some(found) = found {
                let start = data_at + events.position() - record.len();
                queue.push(Entry::record(now, found, 0, start as u32));
            }
        }
        self.gap = false;
        Ok(true)
    }
}

impl Source for Cpu {
    fn block(&self) -> &Block {
        &self.block
    }

    fn fill(&mut self, queue: &mut Vec<Entry>) -> Result<(), Damage> {
        while queue.is_empty() {
            if self.next_page(queue)? {
                continue;
            }
            if !self.next_block()? {
                break;
            }
        }
        Ok(())
    }
}
