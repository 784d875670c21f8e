// SPDX-License-Identifier: MIT
//! `exitregs stat --count-only`: perf counters, one for each alternative of the selection.

use super::{Arguments, Tick, every, output};
use crate::cli::{Alternative, misuse};
use crate::commands::Stop;
use crate::commands::child::Child;
use crate::filter::Filter;
use crate::host::Host;
use crate::output::style::{self, Count, Styled};
use crate::source::choose::{self, Source};
use crate::source::perf::Counter;
use crate::source::tracefs::{self, Tracefs};
use crate::source::{check_kvm, native};
use anyhow::{Context, Result, ensure};
use exitregs_common::event::{Event, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::Level;
use serde::Serialize;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// A counter with what it counts.
struct Counted {
    alternative: Alternative,
    event: String,
    filter: Option<String>,
    counter: Counter,
    earlier: u64,
}

/// A counter's line, for JSON and CSV.
#[derive(Serialize)]
struct Row<'a> {
    view: Option<&'a str>,
    level: Option<u8>,
    #[serde(rename = "where")]
    condition: Option<&'a str>,
    event: &'a str,
    filter: Option<&'a str>,
    count: u64,
}

/// Runs it; returns the command's exit status, as `stat`.
pub(super) fn run(arguments: &Arguments, host: &Host) -> Result<u8> {
    let isa = check_kvm(host)?;
    let root = tracefs::root(host)?;
    let source = arguments.selection.source;
    // What the kernel's own kvm_exit does not tell.
    let are_needed = arguments.selection.alternatives(isa, false)?.iter().any(|alternative| {
        let read = alternative.selection.filter.as_ref().map_or(0, Filter::fields);
        let common = KvmExit::FIELDS.iter().enumerate().filter(|(_, field)| field.is_common());
        !alternative.selection.exits || common.into_iter().any(|(index, _)| read & 1 << index != 0)
    });
    let events = choose::countable(host, source, are_needed)?;
    if events.is_none() && source != Source::Auto {
        return Err(misuse("--source", "this one has no events that perf could count"));
    }
    let group = events.as_ref().map_or(native::PROVIDER, Tracefs::provider).group;
    let mut counters = Vec::new();
    for alternative in arguments.selection.alternatives(isa, events.is_some())? {
        let selection = &alternative.selection;
        let (event, filter) = if selection.exits {
            (KvmExit::NAME, selection.filter.as_ref().map(ToString::to_string))
        } else {
            ensure!(
                events.as_ref().is_some_and(Tracefs::has_nested_page_faults),
                choose::NO_NESTED_PAGE_FAULTS
            );
            let filter = selection.nested_page_fault_filter.as_ref();
            (KvmNestedPageFault::NAME, filter.map(ToString::to_string))
        };
        let counter = Counter::open(&root, group, event, filter.as_deref(), &selection.vms)?;
        counters.push(Counted {
            alternative,
            event: format!("{group}:{event}"),
            filter,
            counter,
            earlier: 0,
        });
    }
    let mut report = Report {
        out: output(arguments)?,
        arguments,
        counters,
        events,
        started: Instant::now(),
        heading_printed: false,
    };

    let mut stop = Stop::new()?;
    for counted in &report.counters {
        counted.counter.enable()?;
    }
    report.started = Instant::now();
    let mut command = Child::start(&arguments.command)?;
    if !command.exists() && arguments.duration.is_none() {
        let count = report.counters.len();
        match &report.events {
            Some(events) => eprintln!(
                "exitregs: counting by the {} source with {count} perf counters; Ctrl-C stops and prints",
                events.provider().source
            ),
            None => eprintln!(
                "exitregs: counting with {count} perf counters of this kernel's own kvm_exit, which tells no levels (--source \
                 tprobe may); Ctrl-C stops and prints"
            ),
        }
    }
    stop.after(arguments.duration);
    let mut earlier = report.started;
    every(arguments.interval, &stop, &mut command, |tick| match tick {
        Tick::Poll => Ok(()),
        Tick::Interval => {
            let now = Instant::now();
            report.print(now - earlier, now)?;
            earlier = now;
            Ok(())
        }
    })?;
    let now = Instant::now();
    report.print(now - earlier, now)?;
    command.exit_code()
}

struct Report<'a> {
    out: Box<dyn Write>,
    arguments: &'a Arguments,
    /// Before the events: what is counted cannot be removed.
    counters: Vec<Counted>,
    /// Whose events they count, if they have registers and levels.
    events: Option<Tracefs>,
    started: Instant,
    heading_printed: bool,
}

impl Report<'_> {
    /// Prints what came since the last time.
    fn print(&mut self, elapsed: Duration, now: Instant) -> Result<()> {
        let mut counts = Vec::new();
        for counted in &mut self.counters {
            let count = counted.counter.read()?;
            counts.push(count - std::mem::replace(&mut counted.earlier, count));
        }
        let at = (now - self.started).as_secs_f64();
        let rows: Vec<_> =
            self.counters.iter().zip(counts).map(|(counted, count)| counted.row(count)).collect();
        let out = &mut self.out;
        let written = if self.arguments.json {
            let object =
                serde_json::json!({ "at_s": at, "elapsed_s": elapsed.as_secs_f64(), "counters": rows });
            serde_json::to_writer(&mut *out, &object).map_err(io::Error::from).and_then(|()| writeln!(out))
        } else if self.arguments.csv {
            csv(out, &rows, at, !std::mem::replace(&mut self.heading_printed, true))
        } else {
            text(out, &rows, elapsed)
        };
        written.and_then(|()| out.flush()).context("cannot write the counts")
    }
}

impl Counted {
    fn row(&self, count: u64) -> Row<'_> {
        let level = self.alternative.level.map(|level| match level {
            Level::L1 => 1,
            Level::L2 => 2,
        });
        Row {
            view: self.alternative.view,
            level,
            condition: self.alternative.condition.as_deref(),
            event: &self.event,
            filter: self.filter.as_deref(),
            count,
        }
    }
}

fn csv(out: &mut dyn Write, rows: &[Row<'_>], at: f64, heading: bool) -> io::Result<()> {
    let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(out);
    if heading {
        csv.write_record(["at_s", "view", "level", "where", "event", "filter", "count"])?;
    }
    for row in rows {
        csv.write_record([
            format!("{at:.6}"),
            row.view.unwrap_or_default().to_owned(),
            row.level.map(|level| level.to_string()).unwrap_or_default(),
            row.condition.unwrap_or_default().to_owned(),
            row.event.to_owned(),
            row.filter.unwrap_or_default().to_owned(),
            row.count.to_string(),
        ])?;
    }
    csv.flush()
}

fn text(out: &mut dyn Write, rows: &[Row<'_>], elapsed: Duration) -> io::Result<()> {
    let heading = format!("{:<18} {:<2} {:>14} {:>12}  WHERE", "VIEW", "", "COUNT", "/s");
    writeln!(out, "{}", Styled(style::HEADING, heading))?;
    for row in rows {
        let level = row.level.map(|level| format!("L{level}")).unwrap_or_default();
        let rate = (row.count as f64 / elapsed.as_secs_f64()).round() as u64;
        let line = format!(
            "{:<18} {level:<2} {:>14} {:>12}  {}",
            row.view.unwrap_or("exits"),
            Count(row.count).to_string(),
            Count(rate).to_string(),
            row.condition.unwrap_or_default()
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
