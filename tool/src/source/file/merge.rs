// SPDX-License-Identifier: MIT
//! Several CPUs' events as one stream by time.

use super::blocks::Block;
use super::entry::Entry;
use super::occurrences::BATCH;
use super::{Damage, Occurrences};

/// One CPU's events, which come by time.
pub trait Source {
    /// Clears `queue` and puts the next events into it, all of one block; leaves it empty at the end.
    ///
    /// # Errors
    /// Something is damaged. `queue` may have events all the same; the next call goes on behind the damage.
    fn fill(&mut self, queue: &mut Vec<Entry>) -> Result<(), Damage>;

    /// The block that has those events' records.
    fn block(&self) -> &Block;
}

/// One CPU.
#[derive(Debug)]
struct Cpu<S> {
    source: S,
    queue: Vec<Entry>,
    next: usize,
    /// Where the source's block was put last.
    place: u32,
    ended: bool,
}

/// Merges CPUs.
#[derive(Debug)]
pub struct Merge<S> {
    cpus: Vec<Cpu<S>>,
    /// Damage that was found and not yet told.
    damage: Vec<Damage>,
}

impl<S: Source> Cpu<S> {
    /// The time of the next event, which is read if it has not been; `None` at the end.
    fn time(&mut self, damage: &mut Vec<Damage>) -> Option<u64> {
        while self.next == self.queue.len() && !self.ended {
            self.next = 0;
            self.queue.clear();
            match self.source.fill(&mut self.queue) {
                Ok(()) => self.ended = self.queue.is_empty(),
                Err(found) => damage.push(found),
            }
        }
        self.queue.get(self.next).map(|entry| entry.time)
    }
}

impl<S: Source> Merge<S> {
    /// Of these.
    pub fn new(sources: impl Iterator<Item = S>) -> Self {
        let cpu = |source| Cpu { source, queue: Vec::new(), next: 0, place: 0, ended: false };
        Self { cpus: sources.map(cpu).collect(), damage: Vec::new() }
    }

    /// As [`Reader::read`](super::Reader::read).
    ///
    /// # Errors
    /// As that.
    pub fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage> {
        batch.clear();
        while batch.len() < BATCH {
            // The CPU whose next event is the first, and the time until which its events come before all others'.
            let (mut first, mut until) = (None::<(u64, usize)>, u64::MAX);
            for (index, cpu) in self.cpus.iter_mut().enumerate() {
                let Some(time) = cpu.time(&mut self.damage) else { continue };
                match first {
                    Some((earliest, _)) if earliest <= time => until = until.min(time),
                    _ => until = until.min(first.replace((time, index)).map_or(u64::MAX, |(time, _)| time)),
                }
            }
            if let Some(damage) = self.damage.pop() {
                return Err(damage);
            }
            let Some((_, index)) = first else { break };
            let Cpu { source, queue, next, place, .. } = &mut self.cpus[index];
            let place = batch.place(source.block(), place);
            for entry in queue[*next..].iter().take_while(|entry| entry.time <= until) {
                batch.push_entry(entry.behind(place));
                *next += 1;
            }
        }
        Ok(!batch.is_empty())
    }

    /// The CPUs' sources.
    pub fn sources(&self) -> impl Iterator<Item = &S> {
        self.cpus.iter().map(|cpu| &cpu.source)
    }
}
