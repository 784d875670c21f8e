// SPDX-License-Identifier: MIT
//! A reader whose next batches are read by another thread while the last ones are looked at.

use super::{Damage, Description, Occurrences, Reader};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

/// Batches that are read before they are asked for.
const AHEAD: usize = 8;

/// What the thread sends of each read.
struct Read {
    batch: Occurrences,
    outcome: Result<bool, Damage>,
    progress: (u64, u64),
    /// If it has changed.
    description: Option<Box<Description>>,
}

/// What a thread reads ahead.
struct Ahead {
    reads: Receiver<Read>,
    /// Where batches that were looked at go, to be filled again.
    used: Sender<Occurrences>,
    description: Description,
    progress: (u64, u64),
    ended: bool,
}

/// From now on another thread reads ahead.
pub fn read_ahead(reader: &mut Box<dyn Reader>) {
    let (description, progress) = (reader.description().clone(), reader.progress());
    let (sender, reads) = sync_channel(AHEAD);
    let (used, free) = channel();
    let ahead = Ahead { reads, used, description, progress, ended: false };
    let reader = std::mem::replace(reader, Box::new(ahead));
    thread::spawn(move || read(reader, &sender, &free));
}

/// Reads until the end, or until nobody listens any more.
fn read(mut reader: Box<dyn Reader>, reads: &SyncSender<Read>, free: &Receiver<Occurrences>) {
    let mut generation = reader.description().generation;
    loop {
        let mut batch = free.try_recv().unwrap_or_default();
        let outcome = reader.read(&mut batch);
        let ends = outcome == Ok(false);
        let description = reader.description();
        let changed = (description.generation != generation).then(|| Box::new(description.clone()));
        generation = description.generation;
        let read = Read { batch, outcome, progress: reader.progress(), description: changed };
        if reads.send(read).is_err() || ends {
            return;
        }
    }
}

impl Reader for Ahead {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage> {
        batch.clear();
        let Ok(mut read) = self.reads.recv() else {
            assert!(self.ended, "the thread that reads ahead has panicked");
            return Ok(false);
        };
        std::mem::swap(batch, &mut read.batch);
        // If it has ended meanwhile nobody needs batches.
        let _ = self.used.send(read.batch);
        self.progress = read.progress;
        if let Some(description) = read.description {
            self.description = *description;
        }
        self.ended = read.outcome == Ok(false);
        read.outcome
    }

    fn progress(&self) -> (u64, u64) {
        self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this many batches, whose end is a panic if that is wanted.
    struct Batches(u32, bool, Description);

    impl Reader for Batches {
        fn description(&self) -> &Description {
            &self.2
        }

        fn read(&mut self, _: &mut Occurrences) -> Result<bool, Damage> {
            let goes_on = self.0 > 0;
            assert!(goes_on || !self.1);
            self.0 = self.0.saturating_sub(1);
            Ok(goes_on)
        }

        fn progress(&self) -> (u64, u64) {
            (0, 0)
        }
    }

    /// Batches of such a file, and two more reads.
    fn batches(panics: bool) -> u32 {
        let mut reader: Box<dyn Reader> = Box::new(Batches(20, panics, Description::default()));
        read_ahead(&mut reader);
        let (mut batch, mut count) = (Occurrences::default(), 0);
        while reader.read(&mut batch) == Ok(true) {
            count += 1;
        }
        assert_eq!(reader.read(&mut batch), Ok(false));
        count
    }

    #[test]
    fn all_is_read() {
        assert_eq!(batches(false), 20);
    }

    #[test]
    #[should_panic(expected = "reads ahead has panicked")]
    fn a_panic_is_no_end() {
        batches(true);
    }
}
