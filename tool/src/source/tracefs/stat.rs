// SPDX-License-Identifier: MIT
//! Exits counted and timed.

use super::Tracefs;
use super::session::Session;
use crate::analysis::pairing::Record;
use crate::analysis::stat::{Key, Table};
use crate::source::{self, Counters, Selection};
use anyhow::Result;

/// Bytes of the ring buffers altogether.
const BUFFER_SIZE: usize = 32 << 20;

/// A running count. Dropping it removes everything from the kernel.
pub struct Stat {
    session: Session,
    table: Table,
    per_vcpu: bool,
    how: &'static str,
}

impl Stat {
    /// Starts to count, by vCPU if `per_vcpu`, else by VM.
    ///
    /// # Errors
    /// The kernel refuses something, such as the selection's filter.
    pub fn start(tracefs: Tracefs, selection: &Selection, per_vcpu: bool) -> Result<Self> {
        let selection = Selection { nested_page_faults: false, ..selection.clone() };
        let how = tracefs.provider().how;
        let session = Session::start(tracefs, &selection, BUFFER_SIZE)?;
        Ok(Self { session, table: Table::default(), per_vcpu, how })
    }

    fn add(&mut self, records: &[Record]) {
        for record in records {
            let Record::Exit(exit) = record else { continue };
            let Some(key) = Key::of(exit, self.per_vcpu) else { continue };
            let times = self.table.entry(key).or_default();
            match exit.next_entry_time.checked_sub(exit.exit_time) {
                Some(time) => times.record(time),
                None => times.unended += 1,
            }
        }
    }
}

impl source::Stat for Stat {
    fn how(&self) -> String {
        self.how.to_owned()
    }

    fn poll(&mut self) -> Result<()> {
        let records = self.session.read()?;
        self.add(&records);
        Ok(())
    }

    fn read(&mut self) -> Result<Table> {
        self.poll()?;
        Ok(self.table.clone())
    }

    fn finish(&mut self) -> Result<(Table, Counters)> {
        let (records, counters) = self.session.finish()?;
        self.add(&records);
        Ok((std::mem::take(&mut self.table), counters))
    }

    fn commands(&self) -> Vec<(u32, String)> {
        self.session.commands()
    }
}
