// SPDX-License-Identifier: MIT
//! What readers hand out: occurrences by time, most of which are records still, so that the thread that takes them decodes
//! them and the one that reads the file does not. Records stay where they were read, and nothing larger than an [`Entry`] is
//! sorted or merged.

use super::decode::Decoders;
use crate::analysis::pairing::{Occurrence, What};
use std::sync::Arc;

/// Bytes of a file, shared by those whose records are in them.
pub type Block = Arc<Vec<u8>>;

/// Entries that are delivered at once, about.
pub const BATCH: usize = 4096;

/// A record, or a gap.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Nanoseconds.
    pub time: u64,
    /// Which of the two.
    pub kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A record that is as long as its decoder wants.
    Record {
        /// The number of its decoder, from [`Decoders::find`].
        decoder: u8,
        /// The low bits of the thread's pid.
        thread: u16,
        /// The process; 0 if unknown.
        tgid: u32,
        /// The block's place among those of whoever has the entry.
        block: u32,
        /// Where in the block the record begins.
        start: u32,
    },
    /// A [`Gap`](What::Gap).
    Gap {
        /// To this time.
        until: u64,
        /// How many events.
        lost: u64,
    },
}

/// Those occurrences whose threads' pids have this remainder, and all gaps.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Divided by so many, a power of two.
    pub of: u16,
    /// The remainder.
    pub remainder: u16,
}

impl Share {
    /// All occurrences.
    pub const WHOLE: Self = Self { of: 1, remainder: 0 };

    #[inline]
    fn has(self, entry: &Entry) -> bool {
        match entry.kind {
            Kind::Record { thread, .. } => thread & (self.of - 1) == self.remainder,
            Kind::Gap { .. } => true,
        }
    }
}

/// Occurrences by time.
#[derive(Debug, Default)]
pub struct Occurrences {
    /// Of a format that is not made of records: has all of them, or none.
    decoded: Vec<Occurrence>,
    entries: Vec<Entry>,
    blocks: Vec<Block>,
    decoders: Arc<Decoders>,
}

impl Occurrences {
    /// Has none.
    pub fn clear(&mut self) {
        self.decoded.clear();
        self.entries.clear();
        self.blocks.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.decoded.len() + self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they are records, which can be [shared](Self::share) out.
    pub fn are_records(&self) -> bool {
        self.decoded.is_empty()
    }

    /// All of them, by time.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Occurrence> {
        self.share(Share::WHOLE)
    }

    /// A share of them, by time, if they are records; else all.
    #[inline]
    pub fn share(&self, share: Share) -> impl Iterator<Item = Occurrence> {
        let entries = self.entries.iter().filter(move |entry| share.has(entry));
        self.decoded.iter().copied().chain(entries.filter_map(|entry| self.decode(entry)))
    }

    /// `None` never comes of an entry that is what it should be.
    #[inline]
    fn decode(&self, entry: &Entry) -> Option<Occurrence> {
        let time = entry.time;
        match entry.kind {
            Kind::Record { decoder, tgid, block, start, .. } => {
                let record = self.blocks.get(block as usize)?.get(start as usize..)?;
                self.decoders.decode(decoder, record, time, tgid)
            }
            Kind::Gap { until, lost } => {
                Some(Occurrence { time, thread: 0, tgid: 0, unknown: 0, what: What::Gap { until, lost } })
            }
        }
    }

    /// Adds one that is decoded.
    #[inline]
    pub(super) fn push(&mut self, occurrence: Occurrence) {
        self.decoded.push(occurrence);
    }

    /// Adds an entry; a record's block is one that was [put here](Self::place).
    #[inline]
    pub(super) fn push_entry(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Puts a block here, unless it is; returns its place. `last` is the place that the block had where it was put last.
    #[inline]
    pub(super) fn place(&mut self, block: &Block, last: &mut u32) -> u32 {
        if !self.blocks.get(*last as usize).is_some_and(|same| Arc::ptr_eq(same, block)) {
            *last = self.blocks.len() as u32;
            self.blocks.push(Arc::clone(block));
        }
        *last
    }

    /// Entries are decoded by these.
    pub(super) fn decode_by(&mut self, decoders: &Arc<Decoders>) {
        if !Arc::ptr_eq(&self.decoders, decoders) {
            self.decoders = Arc::clone(decoders);
        }
    }
}

/// Memory for blocks, used again when nobody has the block any more.
#[derive(Debug, Default)]
pub struct Blocks {
    shared: Vec<Block>,
}

impl Blocks {
    /// Bytes to be overwritten, so many or more.
    pub fn unused(&mut self, least: usize) -> Vec<u8> {
        let unused = self.shared.iter().position(|block| Arc::strong_count(block) == 1);
        match unused.map(|place| Arc::try_unwrap(self.shared.swap_remove(place))) {
            Some(Ok(mut bytes)) => {
                bytes.resize(bytes.len().max(least), 0);
                bytes
            }
            // The system's zeros, which are there once the memory is written to.
            _ => vec![0; least],
        }
    }

    /// A block of these bytes.
    pub fn share(&mut self, bytes: Vec<u8>) -> Block {
        let block = Arc::new(bytes);
        self.shared.push(Arc::clone(&block));
        block
    }
}
