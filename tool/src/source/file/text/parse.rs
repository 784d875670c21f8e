// SPDX-License-Identifier: MIT
//! Blocks of lines, parsed by several threads.

use super::line::{self, Reasons};
use super::lines::Lines;
use crate::analysis::pairing::Occurrence;
use crate::host::threads;
use exitregs_common::isa::Isa;
use std::sync::mpsc::{Receiver, RecvError, Sender, channel};
use std::thread;

/// Threads that parse at most: beyond that the file cannot be read fast enough.
const MAX_THREADS: usize = 4;
/// Blocks that a thread has before it.
const AHEAD: usize = 2;

/// What a line says.
#[derive(Debug)]
pub enum Line {
    /// An event.
    Occurrence(Occurrence),
    /// So many events were lost; 0 if it does not say how many.
    Lost(u64),
    /// It should be of an event and makes no sense: its begin.
    Nonsense(String),
}

/// What the lines of a block say that say something.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Where in the file the block begins.
    pub offset: u64,
    /// Lines, and where in the block they begin.
    pub lines: Vec<(usize, Line)>,
    /// The instruction set of the last exit.
    pub isa: Option<Isa>,
}

impl Parsed {
    fn parse(&mut self, text: &[u8], reasons: &mut Reasons) {
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &text[start..]) {
            let line = text[start..start + length].trim_ascii_end();
            let said = match line::parse(line, &mut self.isa, reasons) {
                Some(Some(occurrence)) => Some(Line::Occurrence(occurrence)),
                Some(None) => line::lost(line).map(Line::Lost),
                None => {
                    let begin = &line[..line.len().min(200)];
                    Some(Line::Nonsense(String::from_utf8_lossy(begin).into_owned()))
                }
            };
            self.lines.extend(said.map(|said| (start, said)));
            start += length + 1;
        }
    }
}

/// A thread.
#[derive(Debug)]
struct Worker {
    /// Lines, and what is to be filled with what they say.
    lines: Sender<(Lines, Parsed)>,
    parsed: Receiver<Parsed>,
}

/// Threads that have blocks in turn, so that what they say comes back in the same order.
#[derive(Debug)]
pub struct Parsers {
    workers: Vec<Worker>,
    given: usize,
    taken: usize,
}

impl Parsers {
    /// As many as there are CPUs for.
    pub fn new() -> Self {
        let count = threads(MAX_THREADS);
        let worker = |_| {
            let (lines, given) = channel::<(Lines, Parsed)>();
            let (done, parsed) = channel();
            thread::spawn(move || {
                let mut reasons = Reasons::default();
                while let Ok((Lines { block, .. }, mut parsed)) = given.recv() {
                    parsed.parse(&block, &mut reasons);
                    drop(block);
                    if done.send(parsed).is_err() {
                        break;
                    }
                }
            });
            Worker { lines, parsed }
        };
        Self { workers: (0..count).map(worker).collect(), given: 0, taken: 0 }
    }

    /// How many blocks were given of which nothing has been taken.
    pub fn waiting(&self) -> usize {
        self.given - self.taken
    }

    /// Whether the threads have enough before them.
    pub fn is_full(&self) -> bool {
        self.waiting() >= AHEAD * self.workers.len()
    }

    /// Gives lines; `isa` is that of the exits before them. What they say is put into `unused`.
    pub fn give(&mut self, lines: Lines, isa: Option<Isa>, unused: Parsed) {
        let mut parsed = Parsed { offset: lines.offset, isa, ..unused };
        parsed.lines.clear();
        let worker = &self.workers[self.given % self.workers.len()];
        // A thread that does not listen has panicked, which is found when what the lines say is taken.
        let _ = worker.lines.send((lines, parsed));
        self.given += 1;
    }

    /// What the next block says; `None` if no block [waits](Self::waiting).
    ///
    /// # Errors
    /// Its thread has panicked.
    pub fn take(&mut self) -> Option<Result<Parsed, RecvError>> {
        if self.waiting() == 0 {
            return None;
        }
        let worker = &self.workers[self.taken % self.workers.len()];
        self.taken += 1;
        Some(worker.parsed.recv())
    }
}
