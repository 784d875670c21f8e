// SPDX-License-Identifier: MIT
//! The files that are reported on: recordings, decoded by several threads, and what other tools have written.

use super::progress::Progress;
use crate::analysis::batch::{Batch, Builder, Columns};
use crate::analysis::pairing::{Pairing, What};
use crate::analysis::report::{Answer, Question};
use crate::recording::{self, Encoded};
use crate::source::file::{self, Occurrences, Share};
use anyhow::{Context, Result};
use exitregs_common::isa::Isa;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Threads that decode at most: beyond that the file cannot be read fast enough.
const MAX_THREADS: usize = 16;
/// Threads that pair at most: beyond that the file cannot be read fast enough.
const MAX_SHARES: usize = 4;
/// Batches that wait for such a thread.
const MAX_WAITING: usize = 8;
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
    /// Bytes of the file; 0 of a stream.
    total: u64,
    shows_progress: bool,
}

enum Kind {
    Recording(recording::Reader<Box<dyn Read + Send>>),
    Events(Box<Events>),
}

/// A file of single events.
struct Events {
    reader: Box<dyn file::Reader>,
    /// Read to learn the instruction set, and what was damaged there.
    ahead: VecDeque<Occurrences>,
    damages: Vec<file::Damage>,
    isa: Isa,
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
    fn new(mut reader: Box<dyn file::Reader>) -> Self {
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

    fn each(
        &mut self,
        columns: Columns,
        path: &Path,
        progress: &mut Progress,
        damages: &mut Damages,
        mut take: impl FnMut(&Batch),
    ) {
        let mut paired = self.paired(columns, Share::WHOLE);
        let mut occurrences = Occurrences::default();
        while let Some(read) = self.next(occurrences, path, progress, damages) {
            paired.add(&read, &mut take);
            occurrences = read;
        }
        paired.finish(take);
    }

    /// Answers a question, by as many threads as there are CPUs for if each can look at threads of its own.
    fn answer(
        &mut self,
        mut question: Question,
        path: &Path,
        progress: &mut Progress,
        damages: &mut Damages,
    ) -> Result<Answer> {
        let columns = question.columns();
        let shares = 1 << thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARES).ilog2();
        // Else what one thread does says something of the others: which exit was the first, and whether there are L2s.
        let is_apart = question.times == (0..u64::MAX)
            && self.reader.description().tells_levels()
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
        let pairing = Pairing::new(None).nested_exits(self.reader.description().nested_exits);
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
            pairing.ended(|record| {
                if builder.is_full() {
                    builder.deliver(std::mem::take(lost), &mut take);
                }
                builder.push(record);
            });
        });
        // What is lost is told in its place.
        if *lost > 0 && !builder.is_empty() {
            builder.deliver(std::mem::take(lost), &mut take);
        }
    }

    /// Calls `take` with the exits that are left, also those that have no end.
    fn finish(mut self, mut take: impl FnMut(&Batch)) {
        for record in self.pairing.finish() {
            if self.builder.is_full() {
                self.builder.deliver(std::mem::take(&mut self.lost), &mut take);
            }
            self.builder.push(&record);
        }
        self.builder.deliver(self.lost, take);
    }
}
