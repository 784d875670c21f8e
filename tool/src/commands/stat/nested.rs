// SPDX-License-Identifier: MIT
//! `exitregs stat --nested`: round trips of L2's exits, put together as they come.

use super::{Arguments, Tick, every, output};
use crate::analysis::batch::Batch;
use crate::analysis::nested::Nested;
use crate::analysis::pairing::Record;
use crate::cli::misuse;
use crate::commands::Stop;
use crate::commands::child::Child;
use crate::host::Host;
use crate::output::nested;
use crate::source::{Trace, choose};
use anyhow::{Context, Result};
use std::io::Write;
use std::time::Instant;

/// Bytes of the ring buffer.
const BUFFER_SIZE: u32 = 32 << 20;

/// Runs it; returns the command's exit status, as `stat`.
pub(super) fn run(arguments: &Arguments, host: &Host) -> Result<u8> {
    let mut selection = arguments.selection.on(host)?;
    if selection.filter.is_some() || !selection.exits {
        return Err(misuse("--nested", "a round trip is of all exits of L1 and L2: select VMs only"));
    }
    selection.nested_page_faults = false;
    let mut out = output(arguments)?;
    let mut stop = Stop::new()?;
    let mut trace = choose::trace(host, &selection, BUFFER_SIZE, arguments.selection.source)?;
    let mut live = Live { nested: Nested::default(), lost: 0 };
    let mut command = Child::start(&arguments.command)?;
    if !command.exists() && arguments.duration.is_none() {
        eprintln!("exitregs: counting by {trace}; Ctrl-C stops and prints");
    }
    let started = Instant::now();
    stop.after(arguments.duration);
    every(arguments.interval, &stop, &mut command, |tick| {
        live.take(&mut *trace.live)?;
        if tick == Tick::Interval {
            live.print(&mut out, arguments, started)?;
            live.nested.rows.clear();
        }
        Ok(())
    })?;
    let (records, counters) = trace.live.finish()?;
    live.add(&records, counters.lost);
    live.nested.finish();
    live.print(&mut out, arguments, started)?;
    if counters.lost > 0 {
        eprintln!("exitregs: {} events were lost: they came faster than they could be read", counters.lost);
    }
    command.exit_code()
}

struct Live {
    nested: Nested,
    lost: u64,
}

impl Live {
    fn take(&mut self, trace: &mut dyn Trace) -> Result<()> {
        let records = trace.read()?;
        self.add(&records, trace.lost()?);
        Ok(())
    }

    /// Adds exits; `lost` is what has been lost since the start.
    fn add(&mut self, records: &[Record], lost: u64) {
        let mut newly_lost = lost - std::mem::replace(&mut self.lost, lost);
        for records in records.chunks(Batch::MAX) {
            self.nested.add(&Batch::new(records, Nested::COLUMNS, std::mem::take(&mut newly_lost)));
        }
        // Lost before anything came: it is the next exits' gap.
        self.lost -= newly_lost;
    }

    fn print(&mut self, out: &mut dyn Write, arguments: &Arguments, started: Instant) -> Result<()> {
        let at = started.elapsed().as_secs_f64();
        let written = if arguments.json {
            let mut object = nested::json(&self.nested);
            object["at_s"] = at.into();
            writeln!(out, "{object}")
        } else {
            let heading = match arguments.interval {
                Some(_) => writeln!(out, "\nat {at:.3} s"),
                None => Ok(()),
            };
            heading.and_then(|()| nested::write(out, &self.nested, arguments.rows))
        };
        written.and_then(|()| out.flush()).context("cannot write the table")
    }
}
