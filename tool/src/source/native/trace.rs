// SPDX-License-Identifier: MIT
//! Exits one by one, each with the entry that ended it.

use super::Native;
use super::session::Session;
use crate::analysis::pairing::Record;
use crate::source::{self, Counters, Selection};
use anyhow::Result;

/// A running trace. Dropping it removes everything from the kernel.
#[derive(Debug)]
pub struct Trace(Session);

impl Trace {
    /// Starts to trace into ring buffers of `buffer_size` bytes altogether, but of a MiB a CPU at least.
    ///
    /// # Errors
    /// The kernel refuses something, such as the selection's filter.
    pub fn start(native: &Native, selection: &Selection, buffer_size: u32) -> Result<Self> {
        Session::start(&native.tracefs, native.events.clone(), selection, buffer_size as usize).map(Self)
    }
}

impl source::Trace for Trace {
    fn how(&self) -> String {
        HOW.to_owned()
    }

    fn read(&mut self) -> Result<Vec<Record>> {
        self.0.read()
    }

    fn finish(&mut self) -> Result<(Vec<Record>, Counters)> {
        self.0.finish()
    }
}

/// How the source gets at exits.
pub(super) const HOW: &str = "the kernel's own events";
