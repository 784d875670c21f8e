// SPDX-License-Identifier: MIT
//! Files, decoded by several threads.

use crate::analysis::batch::{Batch, Columns};
use crate::analysis::report::{Answer, Question};
use crate::recording::{Damage, Encoded, Reader};
use anyhow::{Context, Result};
use exitregs_common::isa::Isa;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Threads that decode at most: beyond that the file cannot be read fast enough.
const MAX_THREADS: usize = 16;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

/// What was wrong with files.
#[derive(Debug, Default)]
pub(super) struct Damages(Vec<(PathBuf, Damage)>);

impl Damages {
    /// Says what was wrong; the exit status.
    pub(super) fn tell(&self) -> u8 {
        const MOST: usize = 10;
        for (path, damage) in self.0.iter().take(MOST) {
            eprintln!("exitregs: {} is damaged {damage}", path.display());
        }
        if self.0.len() > MOST {
            eprintln!("exitregs: and in {} more places", self.0.len() - MOST);
        }
        if self.0.is_empty() {
            0
        } else {
            eprintln!("exitregs: what could be read is in the report");
            1
        }
    }
}

/// A file.
pub(super) struct Input {
    path: PathBuf,
    reader: Reader<Box<dyn Read + Send>>,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let input: Box<dyn Read + Send> = match path.to_str() {
            Some("-") => Box::new(io::stdin()),
            _ => Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
        };
        let input: Box<dyn Read + Send> = Box::new(BufReader::with_capacity(BUFFER, input));
        let reader = Reader::new(input).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), reader })
    }

    /// The instruction set of the exits.
    pub(super) fn isa(&self) -> Isa {
        self.reader.metadata().isa
    }

    /// What it is.
    pub(super) fn describe(&self) -> String {
        let metadata = self.reader.metadata();
        format!(
            "{}: Linux {}, {}, recorded by {}",
            self.path.display(),
            metadata.kernel,
            metadata.isa.to_string().to_uppercase(),
            metadata.source
        )
    }

    /// The next batch that can be read.
    fn next(&mut self, damages: &mut Damages) -> Option<Encoded> {
        loop {
            match self.reader.read() {
                Ok(encoded) => return encoded,
                Err(damage) => {
                    let goes_on = damage.goes_on;
                    damages.0.push((self.path.clone(), damage));
                    if !goes_on {
                        return None;
                    }
                }
            }
        }
    }

    /// Calls `take` with each batch, in order.
    pub(super) fn each(&mut self, columns: Columns, damages: &mut Damages, mut take: impl FnMut(&Batch)) {
        while let Some(encoded) = self.next(damages) {
            match encoded.batch(columns) {
                Ok(batch) => take(&batch),
                Err(damage) => damages.0.push((self.path.clone(), damage)),
            }
        }
    }

    /// Answers a question, whose times count from the first exit.
    pub(super) fn answer(&mut self, mut question: Question, damages: &mut Damages) -> Result<Answer> {
        let columns = question.columns();
        let mut answer = Answer::default();
        // The first batch tells from when times count.
        loop {
            let Some(encoded) = self.next(damages) else { return Ok(answer) };
            let batch = match encoded.batch(columns) {
                Ok(batch) => batch,
                Err(damage) => {
                    damages.0.push((self.path.clone(), damage));
                    continue;
                }
            };
            let is_whole = question.times == (0..u64::MAX);
            if let (Some(first), false) = (batch.exit_time.first(), is_whole) {
                let after = |time: u64| first.saturating_add(time);
                question.times = after(question.times.start)..after(question.times.end);
            }
            let is_begun = !batch.is_empty();
            answer.add(&question, &batch);
            if is_begun {
                break;
            }
        }

        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let (send, receive) = sync_channel::<Encoded>(threads * 2);
        let receive = Mutex::new(receive);
        let work = || {
            let (mut answer, mut damages) = (Answer::default(), Vec::new());
            loop {
                // The lock is released before the batch is decoded.
                let next = receive.lock().map(|receive| receive.recv());
                let Ok(Ok(encoded)) = next else { return (answer, damages) };
                match encoded.batch(columns) {
                    Ok(batch) => answer.add(&question, &batch),
                    Err(damage) => damages.push(damage),
                }
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            while let Some(encoded) = self.next(damages) {
                if send.send(encoded).is_err() {
                    break;
                }
            }
            drop(send);
            for worker in workers {
                let (part, found) = worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                answer.merge(part);
                damages.0.extend(found.into_iter().map(|damage| (self.path.clone(), damage)));
            }
            damages.0.sort_by_key(|(_, damage)| damage.offset);
            Ok(answer)
        })
    }
}
