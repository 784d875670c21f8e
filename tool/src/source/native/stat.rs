// SPDX-License-Identifier: MIT
//! Exits counted and timed from the kernel's own events.

use super::Native;
use super::session::Session;
use super::trace::HOW;
use crate::analysis::pairing::Record;
use crate::analysis::stat::{Key, Table};
use crate::source::{self, Counters, Selection};
use anyhow::Result;

/// Bytes of the ring buffers altogether.
const BUFFER_SIZE: usize = 32 << 20;

/// A running count. Dropping it removes everything from the kernel.
#[derive(Debug)]
pub struct Stat {
    session: Session,
    table: Table,
    per_vcpu: bool,
}

impl Stat {
    /// Starts to count, by vCPU if `per_vcpu`, else by VM.
    ///
    /// # Errors
    /// The kernel refuses something, such as the selection's filter.
    pub fn start(native: &Native, selection: &Selection, per_vcpu: bool) -> Result<Self> {
        let selection = Selection { nested_page_faults: false, ..selection.clone() };
        let session = Session::start(&native.tracefs, native.events.clone(), &selection, BUFFER_SIZE)?;
        Ok(Self { session, table: Table::default(), per_vcpu })
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
        HOW.to_owned()
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
