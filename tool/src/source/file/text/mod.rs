// SPDX-License-Identifier: MIT
//! Text about events: of tracefs' `trace` and `trace_pipe`, `trace-cmd report` and `perf script`.

mod line;
mod lines;
mod parse;

use super::{Damage, Description, Occurrences, Reader};
use crate::analysis::pairing::{Occurrence, What};
use lines::WholeLines;
use parse::{Line, Parsed, Parsers};
use std::io::Read;

/// Lines that are delivered at once, about.
const BATCH: usize = 1024;

/// Lines.
pub struct Text<R> {
    description: Description,
    lines: WholeLines<R>,
    parsers: Parsers,
    /// The block whose lines are delivered, and how many have been.
    parsed: Parsed,
    delivered: usize,
    /// What came of the input behind the blocks that are parsed: damage, or its end.
    end: Option<Result<(), Damage>>,
    total: u64,
    /// Time of the last event.
    last: u64,
    /// Events behind the last one were lost; how many.
    lost: Option<u64>,
    any: bool,
}

impl<R: Read + Send> Text<R> {
    /// That of `input`, which has `total` bytes; 0 if that is not known.
    pub fn new(input: R, total: u64) -> Self {
        Self {
            description: Description { format: "text".to_owned(), ..Description::default() },
            lines: WholeLines::new(input),
            parsers: Parsers::new(),
            parsed: Parsed::default(),
            delivered: 0,
            end: None,
            total,
            last: 0,
            lost: None,
            any: false,
        }
    }

    /// Goes on with the next block; false at the end.
    fn next_block(&mut self) -> Result<bool, Damage> {
        let mut unused = std::mem::take(&mut self.parsed);
        self.delivered = 0;
        // What a number is as an exit reason is known once the instruction set is.
        while self.end.is_none()
            && (self.parsers.waiting() == 0 || self.description.isa.is_some() && !self.parsers.is_full())
        {
            match self.lines.next() {
                Ok(Some(lines)) => {
                    self.parsers.give(lines, self.description.isa, std::mem::take(&mut unused));
                }
                Ok(None) => self.end = Some(Ok(())),
                Err(damage) => self.end = Some(Err(damage)),
            }
        }
        if let Some(parsed) = self.parsers.take() {
            let panicked =
                |_| Damage::new(self.lines.offset(), "a thread that read lines before here panicked");
            self.parsed = parsed.map_err(panicked)?;
            self.description.isa = self.parsed.isa;
            return Ok(true);
        }
        match self.end.take() {
            Some(Err(damage)) => Err(damage),
            ended => {
                self.end = ended;
                Ok(false)
            }
        }
    }

    /// Takes an event.
    fn take(&mut self, occurrence: Occurrence, batch: &mut Occurrences) {
        self.any = true;
        if let Some(lost) = self.lost.take() {
            let what = What::Gap { until: occurrence.time, lost };
            batch.push(Occurrence { time: self.last, thread: 0, tgid: 0, unknown: 0, what });
        }
        self.last = occurrence.time;
        match occurrence.what {
            What::Exit(_) => self.description.unknown.exit = occurrence.unknown,
            What::Entry(_) => self.description.unknown.entry = occurrence.unknown,
            What::NestedExit { .. } => self.description.nested_exits = true,
            What::NestedExitInject { .. } => self.description.nested_exit_causes = true,
            _ => {}
        }
        batch.push(occurrence);
    }
}

impl<R: Read + Send> Reader for Text<R> {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage> {
        batch.clear();
        // What lines have told.
        self.description.generation += 1;
        while batch.len() < BATCH {
            let Some((start, line)) = self.parsed.lines.get(self.delivered) else {
                if self.next_block()? {
                    continue;
                }
                if !self.any {
                    self.any = true;
                    return Err(Damage::new(0, "none of the lines is about an event of KVM's"));
                }
                return Ok(!batch.is_empty());
            };
            self.delivered += 1;
            let at = self.parsed.offset + *start as u64;
            match line {
                Line::Occurrence(occurrence) if occurrence.time < self.last => {
                    return Err(Damage::new(at, "the line is earlier than the one before"));
                }
                Line::Occurrence(occurrence) => {
                    let occurrence = *occurrence;
                    self.take(occurrence, batch);
                }
                Line::Lost(lost) => self.lost = Some(self.lost.unwrap_or(0) + lost),
                Line::Nonsense(begin) => {
                    return Err(Damage::new(at, format!("the line makes no sense: {begin}")));
                }
            }
        }
        Ok(true)
    }

    fn progress(&self) -> (u64, u64) {
        (self.lines.offset(), self.total)
    }
}
