// SPDX-License-Identifier: MIT
//! The files that are reported on: recordings, decoded by several threads, and what other tools have written.

use crate::analysis::batch::{Batch, Columns};
use crate::analysis::pairing::{Occurrence, Pairing, Record, What};
use crate::analysis::report::{Answer, Question};
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
    fn add(&mut self, path: &Path, offset: u64, what: String) {
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
}

enum Kind {
    Recording(recording::Reader<Box<dyn Read + Send>>),
    Events(Box<Events>),
}

/// A file of single events.
struct Events {
    reader: Box<dyn file::Reader>,
    pairing: Pairing,
    /// Read to learn the instruction set.
    ahead: Vec<Occurrence>,
    isa: Isa,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = || format!("cannot read {}", path.display());
        let is_stdin = path == Path::new("-");
        let mut file = if is_stdin {
            File::from(io::stdin().as_fd().try_clone_to_owned().with_context(name)?)
        } else {
            File::open(path).with_context(name)?
        };
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
            Kind::Events(Box::new(Events::new(reader.with_context(name)?)?))
        };
        Ok(Self { path: path.to_owned(), kind })
    }

    /// The instruction set of the exits.
    pub(super) fn isa(&self) -> Isa {
        match &self.kind {
            Kind::Recording(reader) => reader.metadata().isa,
            Kind::Events(events) => events.isa,
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
                let description = events.reader.description();
                let kernel = description.kernel.as_ref();
                let kernel = kernel.map(|kernel| format!("Linux {kernel}, ")).unwrap_or_default();
                let isa = events.isa.to_string().to_uppercase();
                format!("{path}: {kernel}{isa}, {}", description.format)
            }
        }
    }

    /// Calls `take` with each batch, in order.
    pub(super) fn each(&mut self, columns: Columns, damages: &mut Damages, mut take: impl FnMut(&Batch)) {
        match &mut self.kind {
            Kind::Recording(reader) => {
                while let Some(encoded) = next(reader, &self.path, damages) {
                    match encoded.batch(columns) {
                        Ok(batch) => take(&batch),
                        Err(damage) => damages.add(&self.path, damage.offset, damage.what),
                    }
                }
            }
            Kind::Events(events) => events.each(columns, &self.path, damages, take),
        }
    }

    /// Answers a question, whose times count from the first exit.
    pub(super) fn answer(&mut self, mut question: Question, damages: &mut Damages) -> Result<Answer> {
        let columns = question.columns();
        let mut answer = Answer::default();
        let reader = match &mut self.kind {
            Kind::Recording(reader) => reader,
            Kind::Events(events) => {
                let mut is_begun = false;
                events.each(columns, &self.path, damages, |batch| {
                    is_begun = is_begun || from_first(&mut question, batch);
                    answer.add(&question, batch);
                });
                return Ok(answer);
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
            while let Some(encoded) = next(reader, &self.path, damages) {
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
fn from_first(question: &mut Question, batch: &Batch) -> bool {
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

impl Events {
    fn new(mut reader: Box<dyn file::Reader>) -> Result<Self> {
        let (mut ahead, mut batch) = (Vec::new(), Vec::new());
        let isa = loop {
            let goes_on = reader.read(&mut batch)?;
            ahead.append(&mut batch);
            match reader.description().isa {
                Some(isa) => break isa,
                // Of no exits nothing depends on it.
                None if !goes_on => break Isa::Vmx,
                None => {}
            }
        };
        let pairing = Pairing::new(None).nested_exits(reader.description().nested_exits);
        Ok(Self { reader, pairing, ahead, isa })
    }

    fn each(&mut self, columns: Columns, path: &Path, damages: &mut Damages, mut take: impl FnMut(&Batch)) {
        let mut batch = std::mem::take(&mut self.ahead);
        let mut records = Vec::new();
        let mut lost = 0;
        loop {
            for occurrence in &batch {
                if let What::Gap { lost: events, .. } = occurrence.what {
                    // How many is not always known.
                    lost += events.max(1);
                }
                self.pairing.take(occurrence);
            }
            records.extend(self.pairing.ended());
            deliver(&mut records, columns, &mut lost, false, &mut take);
            match self.reader.read(&mut batch) {
                Ok(true) => {}
                Ok(false) => break,
                Err(damage) => damages.add(path, damage.offset, damage.what),
            }
        }
        for occurrence in &batch {
            self.pairing.take(occurrence);
        }
        records.extend(self.pairing.finish());
        deliver(&mut records, columns, &mut lost, true, &mut take);
    }
}

/// Hands records on in batches; what is left waits for more, unless these are `all`.
fn deliver(
    records: &mut Vec<Record>,
    columns: Columns,
    lost: &mut u64,
    all: bool,
    take: &mut impl FnMut(&Batch),
) {
    while records.len() >= Batch::MAX || ((all || *lost > 0) && !records.is_empty()) {
        let next: Vec<_> = records.drain(..records.len().min(Batch::MAX)).collect();
        take(&Batch::new(&next, columns, std::mem::take(lost)));
    }
}
