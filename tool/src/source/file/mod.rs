// SPDX-License-Identifier: MIT
//! Files that other tools have written, and streams of the same formats: what happened, by time.

use crate::analysis::pairing::{Occurrence, Unknown};
use anyhow::Result;
use exitregs_common::isa::Isa;
use std::collections::BTreeMap;
use std::fmt;
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
}

/// Where a file makes no sense, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Damage {
    /// Byte offset in the file; of a stream, since its begin.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
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
    fn read(&mut self, batch: &mut Vec<Occurrence>) -> Result<bool, Damage>;

    /// Bytes that have been read, and how many there are; 0 of a stream.
    fn progress(&self) -> (u64, u64);
}

/// Opens a file, or stdin for `-`; its format is what its first bytes say.
///
/// # Errors
/// It cannot be read, or is in no format that there is a reader for.
pub fn open(path: &Path) -> Result<Box<dyn Reader>> {
    anyhow::bail!("{} is in no format that exitregs reads", path.display())
}
