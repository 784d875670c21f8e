// SPDX-License-Identifier: MIT
//! Puts events in order. perf writes one ring buffer after the other, in rounds: what comes after a round's end is later
//! than what was written before the round began.

use super::super::blocks::Block;
use super::super::entry::Entry;
use super::super::occurrences::BATCH;
use super::super::{Damage, Occurrences};
use std::collections::VecDeque;
use std::sync::Arc;

/// Events that wait for others that are earlier, at most: what is more is given out in the order that it has.
const MAX_WAITING: usize = 1 << 20;

/// Events that wait for their turn.
#[derive(Debug, Default)]
pub struct Order {
    /// What has their records, in the order in which it was read.
    blocks: Vec<Block>,
    /// The first `ready` of them by time: they can be given out. Those before `given` have been.
    waiting: Vec<Entry>,
    given: usize,
    ready: usize,
    /// The latest time that was seen, also before this round.
    latest: u64,
    latest_before: u64,
    /// The time up to which everything has been given out.
    done: u64,
    /// What was found damaged and has not been told.
    pub damage: VecDeque<Damage>,
}

impl Order {
    /// The latest time that was seen.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// The latest time that was seen before this round.
    pub fn latest_before(&self) -> u64 {
        self.latest_before
    }

    /// The time up to which everything has been given out.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Takes an event, whose record is in this block, and at `offset` of the file.
    #[inline]
    pub fn push(&mut self, entry: Entry, of: &Block, offset: u64) {
        if !self.blocks.last().is_some_and(|last| Arc::ptr_eq(last, of)) {
            self.blocks.push(Arc::clone(of));
        }
        self.wait(entry.behind(self.blocks.len() as u32 - 1), offset);
    }

    /// Between these times events were lost.
    pub fn gap(&mut self, time: u64, until: u64, lost: u64, offset: u64) {
        self.wait(Entry::gap(time, until, lost), offset);
    }

    #[inline]
    fn wait(&mut self, entry: Entry, offset: u64) {
        self.latest = self.latest.max(entry.time);
        self.waiting.push(entry);
        if self.waiting.len() - self.ready >= MAX_WAITING {
            self.overflow(offset);
        }
    }

    /// The round is too long for its end to be waited for.
    #[cold]
    fn overflow(&mut self, offset: u64) {
        let mut times: Vec<_> = self.waiting[self.ready..].iter().map(|entry| entry.time).collect();
        let (_, middle, _) = times.select_nth_unstable(MAX_WAITING / 2);
        let middle = *middle;
        self.flush(middle, offset);
    }

    /// A round ends.
    pub fn round(&mut self, offset: u64) {
        let until = std::mem::replace(&mut self.latest_before, self.latest);
        self.flush(until, offset);
    }

    /// Makes ready what is not later than `until`.
    pub fn flush(&mut self, until: u64, offset: u64) {
        let waiting = &mut self.waiting[self.ready..];
        waiting.sort_by_key(|entry| entry.time);
        let late = waiting.partition_point(|entry| entry.time < self.done);
        let end = waiting.partition_point(|entry| entry.time <= until);
        if late > 0 {
            self.waiting.drain(self.ready..self.ready + late);
            let what = format!("{late} events before here are too late to be put in order, and are left out");
            self.damage.push_back(Damage::new(offset, what));
        }
        self.ready += end.max(late) - late;
        self.done = self.done.max(until.min(self.latest));
    }

    /// Whether there are events to be given out, or damage to be told.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.given < self.ready || !self.damage.is_empty()
    }

    /// Gives out the next events that no others can come before, as many as the batch takes.
    pub fn give(&mut self, batch: &mut Occurrences) {
        let ready = &self.waiting[self.given..self.ready];
        let given = ready.len().min(BATCH.saturating_sub(batch.len()));
        if given == 0 {
            return;
        }
        batch.extend(&ready[..given], &self.blocks);
        self.given += given;
        if self.given == self.ready {
            self.forget();
        }
    }

    /// Drops what was given out, and the blocks of which nothing waits.
    fn forget(&mut self) {
        self.waiting.drain(..self.given);
        self.ready -= std::mem::take(&mut self.given);
        let mut places = vec![None; self.blocks.len()];
        for entry in &mut self.waiting {
            if let Some(block) = entry.block() {
                places[*block as usize] = Some(0);
            }
        }
        for (place, kept) in places.iter_mut().flatten().zip(0..) {
            *place = kept;
        }
        let mut place = places.iter();
        self.blocks.retain(|_| place.next().is_some_and(Option::is_some));
        for entry in &mut self.waiting {
            if let Some(block) = entry.block() {
                *block = places[*block as usize].unwrap_or(0);
            }
        }
    }
}
