// SPDX-License-Identifier: MIT
//! The files that are reported on: recordings, decoded by several threads, and what other tools have written.

use super::events::Events;
use super::progress::Progress;
use crate::analysis::batch::{Batch, Columns};
use crate::analysis::report::{Answer, Question};
use crate::host::threads;
use crate::recording::{self, Encoded};
use crate::source::file;
use anyhow::{Context, Result};
use exitregs_common::isa::Isa;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
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
pub(super) struct Damages(Vec<(PathBuf, u64, String)>);

impl Damages {
    pub(super) fn add(&mut self, path: &Path, offset: u64, what: String) {
        self.0.push((path.to_owned(), offset, what));
    }

    /// Says what was wrong; the exit status.
    pub(super) fn tell(&self) -> u8 {
        const MOST: usize = 10;
        for (path, offset, what) in self.0.iter().take(MOST) {
            eprintln!("exitregs: {}: at byte {offset}: {what}", path.display());
        }
        if self.0.len() > MOST {
            eprintln!("exitregs: and in {} more places", self.0.len() - MOST);
        }
        if self.0.is_empty() {
            0
        } else {
            eprintln!("exitregs: the report is of what could be read");
            1
        }
    }
}

/// A file.
pub(super) struct Input {
    path: PathBuf,
    kind: Kind,
    /// Bytes of the file; 0 of a stream.
    total: u64,
    shows_progress: bool,
}

enum Kind {
    Recording(recording::Reader<Box<dyn Read + Send>>),
    Events(Box<Events>),
}

impl Input {
    /// Opens a file, or standard input for `-`. On a terminal it is shown how much has been read, if that is wanted.
    pub(super) fn open(path: &Path, shows_progress: bool) -> Result<Self> {
        let name = || format!("cannot read {}", path.display());
        let is_stdin = path == Path::new("-");
        let mut file = if is_stdin {
            File::from(io::stdin().as_fd().try_clone_to_owned().with_context(name)?)
        } else {
            File::open(path).with_context(name)?
        };
        let metadata = file.metadata().with_context(name)?;
        let total = if metadata.is_file() { metadata.len() } else { 0 };
        let mut begin = Vec::new();
        Read::by_ref(&mut file)
            .take(recording::MAGIC.len() as u64)
            .read_to_end(&mut begin)
            .with_context(name)?;
        let kind = if begin == recording::MAGIC {
            let file = BufReader::with_capacity(BUFFER, io::Cursor::new(begin).chain(file));
            let input: Box<dyn Read + Send> = Box::new(file);
            Kind::Recording(recording::Reader::new(input).with_context(name)?)
        } else {
            let reader = if is_stdin { file::of(put_back(begin, file)?) } else { file::open(path) };
            Kind::Events(Box::new(Events::new(reader.with_context(name)?)))
        };
        Ok(Self { path: path.to_owned(), kind, total, shows_progress })
    }

    /// The instruction set of the exits.
    pub(super) fn isa(&self) -> Isa {
        match &self.kind {
            Kind::Recording(reader) => reader.metadata().isa,
            Kind::Events(events) => events.isa(),
        }
    }

    /// What it is.
    pub(super) fn describe(&self) -> String {
        let path = self.path.display();
        match &self.kind {
            Kind::Recording(reader) => {
                let metadata = reader.metadata();
                let isa = metadata.isa.to_string().to_uppercase();
                format!("{path}: Linux {}, {isa}, recorded by {}", metadata.kernel, metadata.source)
            }
            Kind::Events(events) => {
                let description = events.description();
                let kernel = description.kernel.as_ref();
                let kernel = kernel.map(|kernel| format!("Linux {kernel}, ")).unwrap_or_default();
                let isa = events.isa().to_string().to_uppercase();
                format!("{path}: {kernel}{isa}, {}", description.format)
            }
        }
    }

    fn progress(&self) -> Progress {
        Progress::new(&self.path, self.total, self.shows_progress)
    }

    /// Calls `take` with each batch, in order.
    pub(super) fn each(&mut self, columns: Columns, damages: &mut Damages, mut take: impl FnMut(&Batch)) {
        let mut progress = self.progress();
        match &mut self.kind {
            Kind::Recording(reader) => {
                while let Some(encoded) = next(reader, &self.path, damages) {
                    progress.at(reader.offset());
                    match encoded.batch(columns) {
                        Ok(batch) => take(&batch),
                        Err(damage) => damages.add(&self.path, damage.offset, damage.what),
                    }
                }
            }
            Kind::Events(events) => events.each(columns, &self.path, &mut progress, damages, take),
        }
    }

    /// Answers a question, whose times count from the first exit.
    pub(super) fn answer(&mut self, mut question: Question, damages: &mut Damages) -> Result<Answer> {
        let columns = question.columns();
        let mut answer = Answer::default();
        let mut progress = self.progress();
        let reader = match &mut self.kind {
            Kind::Recording(reader) => reader,
            Kind::Events(events) => {
                return events.answer(question, &self.path, &mut progress, damages);
            }
        };
        // The first batch tells from when times count.
        loop {
            let Some(encoded) = next(reader, &self.path, damages) else { return Ok(answer) };
            match encoded.batch(columns) {
                Ok(batch) => {
                    let is_begun = from_first(&mut question, &batch);
                    answer.add(&question, &batch);
                    if is_begun {
                        break;
                    }
                }
                Err(damage) => damages.add(&self.path, damage.offset, damage.what),
            }
        }

        let threads = threads(MAX_THREADS);
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
            while let Some(encoded) = next(reader, &self.path, damages) {
                progress.at(reader.offset());
                if send.send(encoded).is_err() {
                    break;
                }
            }
            drop(send);
            for worker in workers {
                let (part, found) = worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                answer.merge(part);
                found.into_iter().for_each(|damage| damages.add(&self.path, damage.offset, damage.what));
            }
            damages.0.sort();
            Ok(answer)
        })
    }
}

/// Lets a question's times count from the first exit of a batch; whether it has one.
pub(super) fn from_first(question: &mut Question, batch: &Batch) -> bool {
    let Some(first) = batch.exit_time.first() else { return false };
    if question.times != (0..u64::MAX) {
        let after = |time: u64| first.saturating_add(time);
        question.times = after(question.times.start)..after(question.times.end);
    }
    true
}

/// The next batch of a recording that can be read.
fn next<R: Read>(reader: &mut recording::Reader<R>, path: &Path, damages: &mut Damages) -> Option<Encoded> {
    loop {
        match reader.read() {
            Ok(encoded) => return encoded,
            Err(damage) => {
                damages.add(path, damage.offset, damage.what);
                if !damage.goes_on {
                    return None;
                }
            }
        }
    }
}

/// A stream that begins with these bytes, which were read from it to see what it is.
fn put_back(begin: Vec<u8>, mut rest: File) -> Result<File> {
    let (reader, mut writer) = io::pipe().context("cannot make a pipe")?;
    // It ends when the reader is closed or the stream ends.
    thread::spawn(move || {
        let _ = writer.write_all(&begin).and_then(|()| io::copy(&mut rest, &mut writer));
    });
    Ok(File::from(OwnedFd::from(reader)))
}
