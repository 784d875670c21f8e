// SPDX-License-Identifier: MIT
//! Text about events: of tracefs' `trace` and `trace_pipe`, `trace-cmd report` and `perf script`.

mod line;

use super::{Damage, Description, Occurrences, Reader};
use crate::analysis::pairing::{Occurrence, What};
use std::io::{self, Read};

/// Lines that are delivered at once, about.
const BATCH: usize = 1024;
/// Bytes that are read at once.
const BLOCK: usize = 256 << 10;
/// No line of an event is longer.
const LONGEST_LINE: usize = 64 << 10;

/// Lines.
pub struct Text<R> {
    description: Description,
    reasons: line::Reasons,
    input: R,
    buffer: Vec<u8>,
    /// Of the buffer: where the next line begins, and where that is in the file.
    start: usize,
    offset: u64,
    total: u64,
    ended: bool,
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
            reasons: line::Reasons::default(),
            input,
            buffer: Vec::new(),
            start: 0,
            offset: 0,
            total,
            ended: false,
            last: 0,
            lost: None,
            any: false,
        }
    }

    /// Has a line in the buffer; its length with its end, `None` if there is no more.
    fn line(&mut self) -> Result<Option<usize>, Damage> {
        let mut searched = 0;
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(end) = memchr::memchr(b'\n', &rest[searched..]) {
                return Ok(Some(searched + end + 1));
            }
            searched = rest.len();
            if self.ended {
                let at = self.offset;
                self.offset += searched as u64;
                self.start = self.buffer.len();
                let cut = Damage::new(at, "the file ends within a line");
                return if searched > 0 { Err(cut) } else { Ok(None) };
            }
            if searched > LONGEST_LINE {
                let at = self.offset;
                self.offset += searched as u64;
                self.start = self.buffer.len();
                return Err(Damage::new(at, "a line that does not end: is this text?"));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            self.buffer.resize(searched + BLOCK, 0);
            let read = loop {
                match self.input.read(&mut self.buffer[searched..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read,
                }
            };
            self.buffer.truncate(searched + *read.as_ref().unwrap_or(&0));
            self.ended = !matches!(read, Ok(1..));
            let at = self.offset + searched as u64;
            read.map_err(|error| Damage::new(at, format!("cannot read: {error}")))?;
        }
    }
}

impl<R: Read + Send> Reader for Text<R> {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage> {
        batch.clear();
        while batch.len() < BATCH {
            let Some(length) = self.line()? else {
                if !self.any {
                    self.any = true;
                    return Err(Damage::new(0, "none of the lines is about an event of KVM's"));
                }
                self.description.generation += 1;
                return Ok(!batch.is_empty());
            };
            let (line, at) = (self.buffer[self.start..self.start + length].trim_ascii_end(), self.offset);
            self.start += length;
            self.offset += length as u64;
            let nonsense = || {
                let text = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
                Damage::new(at, format!("the line makes no sense: {text}"))
            };
            match line::parse(line, &mut self.description.isa, &mut self.reasons) {
                Some(Some(occurrence)) if occurrence.time < self.last => {
                    return Err(Damage::new(at, "the line is earlier than the one before"));
                }
                Some(Some(occurrence)) => {
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
                Some(None) => {
                    if let Some(lost) = line::lost(line) {
                        self.lost = Some(self.lost.unwrap_or(0) + lost);
                    }
                }
                None => return Err(nonsense()),
            }
        }
        // What lines have told.
        self.description.generation += 1;
        Ok(true)
    }

    fn progress(&self) -> (u64, u64) {
        (self.offset, self.total)
    }
}
