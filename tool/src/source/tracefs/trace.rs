// SPDX-License-Identifier: MIT
//! Exits one by one, each with the entry that ended it.

use super::Tracefs;
use super::session::Session;
use crate::analysis::pairing::Record;
use crate::source::{self, Counters, Selection};
use anyhow::Result;

/// A running trace. Dropping it removes everything from the kernel.
pub struct Trace {
    session: Session,
    how: &'static str,
}

impl Trace {
    /// Starts to trace into ring buffers of `buffer_size` bytes altogether, but of a MiB a CPU at least.
    ///
    /// # Errors
    /// The kernel refuses something, such as the selection's filter.
    pub fn start(tracefs: Tracefs, selection: &Selection, buffer_size: u32) -> Result<Self> {
        let how = tracefs.provider().how;
        Ok(Self { session: Session::start(tracefs, selection, buffer_size as usize)?, how })
    }
}

impl source::Trace for Trace {
    fn how(&self) -> String {
        self.how.to_owned()
    }

    fn read(&mut self) -> Result<Vec<Record>> {
        self.session.read()
    }

    fn lost(&self) -> Result<u64> {
        self.session.lost()
    }

    fn finish(&mut self) -> Result<(Vec<Record>, Counters)> {
        self.session.finish()
    }
}
