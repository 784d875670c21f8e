// SPDX-License-Identifier: MIT
//! Puts events in order. perf writes one ring buffer after the other, in rounds: what comes after a round's end is later
//! than what was written before the round began.

use super::super::Damage;
use super::super::decode::Decoders;
use super::sample::Sample;
use crate::analysis::pairing::{Occurrence, What};
use std::collections::VecDeque;

/// Events that wait for others that are earlier, at most: what is more is given out in the order that it has.
const MAX_WAITING: usize = 1 << 20;

/// Events that wait for their turn. They are decoded when it comes: their records are shorter.
#[derive(Debug, Default)]
pub struct Order {
    /// Records, one after the other.
    records: Vec<u8>,
    /// The first `ready` of them by time: they can be given out. Those before `given` have been.
    waiting: Vec<Waiting>,
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

#[derive(Debug, Clone, Copy)]
struct Waiting {
    time: u64,
    /// Where the record is in the file.
    offset: u64,
    what: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Event {
        pid: u32,
        /// Of the record in [`Order::records`].
        at: usize,
        length: u32,
    },
    Gap {
        until: u64,
        lost: u64,
    },
}

/// An event whose turn it is.
#[derive(Debug)]
pub struct Next<'a> {
    waiting: Waiting,
    record: &'a [u8],
}

impl Next<'_> {
    /// What it says.
    ///
    /// # Errors
    /// The record is too short.
    #[inline]
    pub fn occurrence(&self, decoders: &Decoders) -> Result<Occurrence, Damage> {
        let Waiting { time, offset, what } = self.waiting;
        match what {
            Kind::Gap { until, lost } => {
                Ok(Occurrence { time, thread: 0, tgid: 0, unknown: 0, what: What::Gap { until, lost } })
            }
            Kind::Event { pid, .. } => {
                let decoded = decoders.decode(self.record, time, pid).flatten();
                decoded.ok_or_else(|| Damage::new(offset, "the record of an event is too short"))
            }
        }
    }
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

    /// Takes an event, whose record is at `offset` of the file.
    #[inline]
    pub fn push(&mut self, sample: &Sample, offset: u64) {
        let &Sample { pid, time, raw } = sample;
        let (at, length) = (self.records.len(), raw.len() as u32);
        self.records.extend_from_slice(raw);
        self.wait(Waiting { time, offset, what: Kind::Event { pid, at, length } });
    }

    /// Between these times events were lost.
    pub fn gap(&mut self, time: u64, until: u64, lost: u64, offset: u64) {
        self.wait(Waiting { time, offset, what: Kind::Gap { until, lost } });
    }

    #[inline]
    fn wait(&mut self, waiting: Waiting) {
        self.latest = self.latest.max(waiting.time);
        self.waiting.push(waiting);
        if self.waiting.len() - self.ready >= MAX_WAITING {
            let mut times: Vec<_> = self.waiting[self.ready..].iter().map(|waiting| waiting.time).collect();
            let (_, middle, _) = times.select_nth_unstable(MAX_WAITING / 2);
            let middle = *middle;
            self.flush(middle, waiting.offset);
        }
    }

    /// A round ends.
    pub fn round(&mut self, offset: u64) {
        let until = std::mem::replace(&mut self.latest_before, self.latest);
        self.flush(until, offset);
    }

    /// Makes ready what is not later than `until`.
    pub fn flush(&mut self, until: u64, offset: u64) {
        self.forget();
        let waiting = &mut self.waiting[self.ready..];
        waiting.sort_by_key(|waiting| waiting.time);
        let late = waiting.partition_point(|waiting| waiting.time < self.done);
        let end = waiting.partition_point(|waiting| waiting.time <= until);
        if late > 0 {
            self.waiting.drain(self.ready..self.ready + late);
            let what = format!("{late} events before here are too late to be put in order, and are left out");
            self.damage.push_back(Damage::new(offset, what));
        }
        self.ready += end.max(late) - late;
        self.done = self.done.max(until.min(self.latest));
    }

    /// The next event that no other can come before.
    #[inline]
    pub fn next(&mut self) -> Option<Next<'_>> {
        let waiting = *self.waiting[..self.ready].get(self.given)?;
        self.given += 1;
        let record = match waiting.what {
            Kind::Event { at, length, .. } => &self.records[at..at + length as usize],
            Kind::Gap { .. } => &[],
        };
        Some(Next { waiting, record })
    }

    /// Drops what was given out.
    fn forget(&mut self) {
        if self.given == 0 {
            return;
        }
        self.waiting.drain(..self.given);
        self.ready -= std::mem::take(&mut self.given);
        let places = || self.waiting.iter().filter_map(|waiting| waiting.what.at());
        let first = places().min().unwrap_or(self.records.len());
        self.records.drain(..first);
        for waiting in &mut self.waiting {
            if let Kind::Event { at, .. } = &mut waiting.what {
                *at -= first;
            }
        }
    }
}

impl Kind {
    fn at(self) -> Option<usize> {
        match self {
            Self::Event { at, .. } => Some(at),
            Self::Gap { .. } => None,
        }
    }
}
