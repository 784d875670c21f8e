// SPDX-License-Identifier: MIT
//! Files that other tools have written, and streams of the same formats: what happened, by time.

mod ahead;
mod blocks;
mod decode;
mod entry;
mod input;
mod merge;
mod occurrences;
pub mod perf_data;
pub mod text;
pub mod trace_dat;

use crate::analysis::pairing::{Unknown, What};
pub use ahead::read_ahead;
use anyhow::{Context, Result};
use exitregs_common::event::{Event, KvmExit, field_bit};
use exitregs_common::isa::Isa;
use input::Input;
pub use occurrences::{Occurrences, Share};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

/// What is known of a file as a whole, and may grow as it is read.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// What kind of file it is, as `trace.dat version 7`.
    pub format: String,
    /// The release of the kernel, if the file tells.
    pub kernel: Option<String>,
    /// The instruction set of the exits, once one has been read.
    pub isa: Option<Isa>,
    /// The clock, as `trace_clock` names them, if the file tells.
    pub clock: Option<String>,
    /// The events that are read, as `SYSTEM:NAME`.
    pub events: Vec<String>,
    /// What its `kvm_exit` and `kvm_entry` do not tell.
    pub unknown: Unknown,
    /// `kvm_nested_vmexit` was recorded, so that the level of exits that do not tell it is known: to be given to
    /// [`Pairing::nested_exits`](crate::analysis::pairing::Pairing::nested_exits).
    pub nested_exits: bool,
    /// `kvm_nested_vmexit_inject` was recorded: why L2 is left is known.
    pub nested_exit_causes: bool,
    /// Names of processes and threads, by pid.
    pub commands: BTreeMap<u32, String>,
    /// Changes whenever something else of this does.
    pub generation: u32,
}

impl Description {
    /// Whether each exit says at which level it is, or what its thread does next.
    pub fn tells_levels(&self) -> bool {
        self.nested_exits || self.unknown.exit & field_bit(KvmExit::FIELDS, "is_nested") == 0
    }

    /// These have been read.
    fn saw(&mut self, batch: &Occurrences) {
        if self.isa.is_none() {
            self.isa = batch.iter().find_map(|occurrence| match occurrence.what {
                What::Exit(exit) => Isa::from_field(exit.isa),
                _ => None,
            });
            self.generation += u32::from(self.isa.is_some());
        }
    }
}

/// Where a file makes no sense, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Damage {
    /// Byte offset in the file; of a stream, since its begin.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

impl Damage {
    fn new(offset: u64, what: impl Into<String>) -> Self {
        Self { offset, what: what.into() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

/// Reads one file.
pub trait Reader: Send {
    /// What is known of the file by now.
    fn description(&self) -> &Description;

    /// Clears `batch` and puts the next occurrences into it, some thousands at most, by time. False at the end.
    ///
    /// Lost events are a [`Gap`](crate::analysis::pairing::What::Gap) in their place.
    ///
    /// # Errors
    /// The file is damaged. `batch` has what precedes the damage. Reading may go on: with what can be read behind it, or
    /// of other CPUs.
    fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage>;

    /// Bytes that have been read, and how many there are; 0 of a stream.
    fn progress(&self) -> (u64, u64);
}

/// Opens a file, or stdin for `-`; its format is what its first bytes say.
///
/// # Errors
/// It cannot be read, or is in no format that there is a reader for.
pub fn open(path: &Path) -> Result<Box<dyn Reader>> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let file = if is_stdin {
        File::from(io::stdin().as_fd().try_clone_to_owned().context("cannot read stdin")?)
    } else {
        File::open(path).with_context(|| format!("cannot open {name}"))?
    };
    of(file).with_context(|| format!("cannot read {name}"))
}

/// The reader of a file, or of a pipe.
///
/// # Errors
/// As [`open`].
pub fn of(mut file: File) -> Result<Box<dyn Reader>> {
    let mut begin = [0; 16];
    let (length, outcome) = input::fill(&mut file, &mut begin);
    outcome?;
    let begin = &begin[..length];
    let is_file = file.metadata()?.is_file();
    if begin.starts_with(trace_dat::MAGIC) {
        // The tables say where in the file the events are: a stream is stored first.
        let file = if is_file { file } else { store(begin, file)? };
        return Ok(Box::new(trace_dat::TraceDat::new(Input::new(file)?)?));
    }
    if begin.starts_with(perf_data::MAGIC) {
        if begin[perf_data::MAGIC.len()..] == perf_data::PIPE.to_le_bytes() {
            let length = if is_file { file.metadata()?.len() } else { 0 };
            return Ok(Box::new(perf_data::PerfData::pipe(file, length)));
        }
        let file = if is_file { file } else { store(begin, file)? };
        return Ok(Box::new(perf_data::PerfData::file(Input::new(file)?)?));
    }
    anyhow::ensure!(!begin.is_empty(), "it is empty");
    anyhow::ensure!(
        !begin.iter().any(|byte| *byte < b'\t' || *byte == 0x7f),
        "it is no trace.dat, no perf.data and no text of trace-cmd report, perf script or tracefs"
    );
    let length = if is_file { file.metadata()?.len() } else { 0 };
    Ok(Box::new(text::Text::new(io::Cursor::new(begin.to_vec()).chain(file), length)))
}

/// A stream's bytes in a file without a name.
fn store(begin: &[u8], mut stream: File) -> Result<File> {
    let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
    io::copy(&mut begin.chain(&mut stream), &mut file).context("cannot store the stream")?;
    Ok(file)
}

/// The names that `saved_cmdlines` has: `PID NAME` a line.
fn commands(text: &str) -> BTreeMap<u32, String> {
    let line = |line: &str| {
        let (pid, name) = line.trim().split_once(' ')?;
        Some((pid.parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests;
