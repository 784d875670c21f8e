// SPDX-License-Identifier: MIT
//! Files of single events, which other tools have written: exits are made of them, by several threads if they can.

use super::input::{Damages, from_first};
use super::progress::Progress;
use crate::analysis::batch::{Batch, Builder, Columns};
use crate::analysis::pairing::{Pairing, Record, What};
use crate::analysis::report::{Answer, Question};
use crate::host::threads;
use crate::source::file::{self, Occurrences, Share};
use anyhow::Result;
use exitregs_common::isa::Isa;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

/// Threads that pair at most: beyond that the file cannot be read fast enough.
const MAX_SHARES: usize = 4;
/// Batches that wait for such a thread.
const MAX_WAITING: usize = 8;

/// A file of single events.
pub(super) struct Events {
    reader: Box<dyn file::Reader>,
    /// Read to learn the instruction set, and what was damaged there.
    ahead: VecDeque<Occurrences>,
    damages: Vec<file::Damage>,
    isa: Isa,
}

impl Events {
    /// Reads until the instruction set is known.
    pub(super) fn new(mut reader: Box<dyn file::Reader>) -> Self {
        let (mut ahead, mut damages) = (VecDeque::new(), Vec::new());
        let isa = loop {
            let mut batch = Occurrences::default();
            let goes_on = reader.read(&mut batch).unwrap_or_else(|damage| {
                damages.push(damage);
                true
            });
            ahead.push_back(batch);
            match reader.description().isa {
                Some(isa) => break isa,
                // Of no exits nothing depends on it.
                None if !goes_on => break Isa::Vmx,
                None => {}
            }
        };
        Self { reader, ahead, damages, isa }
    }

    /// The instruction set of the exits.
    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// What is known of the file by now.
    pub(super) fn description(&self) -> &file::Description {
        self.reader.description()
    }

    /// The next occurrences; `None` at the end.
    fn next(
        &mut self,
        mut used: Occurrences,
        path: &Path,
        progress: &mut Progress,
        damages: &mut Damages,
    ) -> Option<Occurrences> {
        for file::Damage { offset, what } in self.damages.drain(..) {
            damages.add(path, offset, what);
        }
        if let Some(read) = self.ahead.pop_front() {
            return Some(read);
        }
        match self.reader.read(&mut used) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(damage) => damages.add(path, damage.offset, damage.what),
        }
        progress.at(self.reader.progress().0);
        Some(used)
    }

    /// Calls `take` with each batch of exits, in the order in which they ended.
    pub(super) fn each(
        &mut self,
        columns: Columns,
        path: &Path,
        progress: &mut Progress,
        damages: &mut Damages,
        mut take: impl FnMut(&Batch),
    ) {
        file::read_ahead(&mut self.reader);
        let mut paired = self.paired(columns, Share::WHOLE);
        let mut occurrences = Occurrences::default();
        while let Some(read) = self.next(occurrences, path, progress, damages) {
            paired.add(&read, &mut take);
            occurrences = read;
        }
        paired.finish(take);
    }

    /// Answers a question, by as many threads as there are CPUs for if each can look at threads of its own.
    pub(super) fn answer(
        &mut self,
        mut question: Question,
        path: &Path,
        progress: &mut Progress,
        damages: &mut Damages,
    ) -> Result<Answer> {
        let columns = question.columns();
        let shares = 1 << threads(MAX_SHARES).ilog2();
        // Else what one thread does says something of the others: which exit was the first, and whether there are L2s.
        let is_apart = question.times == (0..u64::MAX)
            && self.description().tells_levels()
            && self.ahead.iter().all(Occurrences::are_records);
        if shares == 1 || !is_apart {
            let (mut answer, mut is_begun) = (Answer::default(), false);
            self.each(columns, path, progress, damages, |batch| {
                is_begun = is_begun || from_first(&mut question, batch);
                answer.add(&question, batch);
            });
            return Ok(answer);
        }

        let work = |mut paired: Paired, receive: Receiver<Arc<Occurrences>>| {
            let mut answer = Answer::default();
            while let Ok(occurrences) = receive.recv() {
                paired.add(&occurrences, |batch| answer.add(&question, batch));
            }
            paired.finish(|batch| answer.add(&question, batch));
            answer
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..shares)
                .map(|remainder| {
                    let (send, receive) = sync_channel(MAX_WAITING);
                    let paired = self.paired(columns, Share { of: shares, remainder });
                    let work = &work;
                    (send, scope.spawn(move || work(paired, receive)))
                })
                .collect();
            // Batches, to be filled again when all have looked at them.
            let mut shared: VecDeque<Arc<Occurrences>> = VecDeque::new();
            loop {
                let free = shared.front().is_some_and(|first| Arc::strong_count(first) == 1);
                let free = if free { shared.pop_front().and_then(Arc::into_inner) } else { None };
                let Some(read) = self.next(free.unwrap_or_default(), path, progress, damages) else { break };
                let read = Arc::new(read);
                // A worker that does not listen has panicked, which is told when it is joined.
                workers.iter().for_each(|(send, _)| drop(send.send(Arc::clone(&read))));
                shared.push_back(read);
            }
            let mut answer = Answer::default();
            for (send, worker) in workers {
                drop(send);
                answer.merge(worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
            }
            Ok(answer)
        })
    }

    fn paired(&self, columns: Columns, share: Share) -> Paired {
        let pairing = Pairing::new(None).nested_exits(self.description().nested_exits);
        Paired { pairing, builder: Builder::new(columns), share, lost: 0 }
    }
}

/// Exits that are made of a share of a file's events.
struct Paired {
    pairing: Pairing,
    builder: Builder,
    share: Share,
    /// Events that were lost since the last batch.
    lost: u64,
}

impl Paired {
    /// Adds the exits that end with these events, and calls `take` with each batch that is full.
    fn add(&mut self, occurrences: &Occurrences, mut take: impl FnMut(&Batch)) {
        let Self { pairing, builder, share, lost } = self;
        occurrences.share(*share).for_each(|occurrence| {
            if let What::Gap { lost: events, .. } = occurrence.what
                && share.remainder == 0
            {
                // How many is not always known.
                *lost += events.max(1);
            }
            pairing.take(&occurrence);
            pairing.ended(|record| push(builder, lost, record, &mut take));
        });
        // What is lost is told in its place.
        if *lost > 0 && !builder.is_empty() {
            builder.deliver(std::mem::take(lost), &mut take);
        }
    }

    /// Calls `take` with the exits that are left, also those that have no end.
    fn finish(mut self, mut take: impl FnMut(&Batch)) {
        for record in self.pairing.finish() {
            push(&mut self.builder, &mut self.lost, &record, &mut take);
        }
        self.builder.deliver(self.lost, take);
    }
}

/// Adds an exit; if there is no room the batch is delivered before, with what was lost until then.
#[inline]
fn push(builder: &mut Builder, lost: &mut u64, record: &Record, take: impl FnOnce(&Batch)) {
    if builder.is_full() {
        builder.deliver(std::mem::take(lost), take);
    }
    builder.push(record);
}
