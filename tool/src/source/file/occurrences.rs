// SPDX-License-Identifier: MIT
//! What readers hand out: occurrences by time, most of which are records still, so that the thread that takes them decodes
//! them and the one that reads the file does not. Records stay where they were read, and nothing larger than an [`Entry`] is
//! sorted or merged.

use super::blocks::Block;
use super::decode::Decoders;
use super::entry::{Entry, Kind};
use crate::analysis::pairing::{Occurrence, What};
use std::sync::Arc;

/// Entries that are delivered at once, about.
pub const BATCH: usize = 4096;

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
        entry.thread().is_none_or(|thread| thread & (self.of - 1) == self.remainder)
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
    #[inline(always)]
    fn decode(&self, entry: &Entry) -> Option<Occurrence> {
        let time = entry.time;
        match entry.kind() {
            Kind::Record { decoder, tgid, block, start } => {
                let record = self.blocks.get(block as usize)?.get(start as usize..)?;
                self.decoders.decode(decoder, record, time, tgid)
            }
            Kind::Gap { until, lost } => Some(Occurrence {
                time,
                thread: 0,
                tgid: 0,
                unknown: 0,
                what: What::Gap { until, lost: lost.into() },
            }),
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

    /// Adds entries, and the blocks whose places they have.
    pub(super) fn extend(&mut self, entries: &[Entry], blocks: &[Block]) {
        let places = self.blocks.len() as u32;
        self.blocks.extend_from_slice(blocks);
        self.entries.extend(entries.iter().map(|entry| entry.behind(places)));
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
