// SPDX-License-Identifier: MIT
//! `exitregs stat`: exits counted and timed in the kernel.

mod count;
mod nested;

use super::Stop;
use super::child::Child;
use crate::analysis::stat::{Table, since};
use crate::cli::{SelectionArguments, misuse};
use crate::host::Host;
use crate::output::json::StatRow;
use crate::output::table::{self, Sort};
use crate::source::{Stat, choose};
use crate::vm::{self, Names};
use anstream::AutoStream;
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How soon the end of a command is noticed.
const WAIT_INTERVAL: Duration = Duration::from_millis(10);
/// How often names of VMs are looked up.
const NAMES_INTERVAL: Duration = Duration::from_millis(250);

/// The arguments of `exitregs stat`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Stop after this time: 10, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    duration: Option<Duration>,
    /// Print what came since the last time, every so often
    #[arg(short = 'I', long, value_name = "TIME", value_parser = super::duration)]
    interval: Option<Duration>,
    /// Count each vCPU apart
    #[arg(long)]
    per_vcpu: bool,
    /// What comes first
    #[arg(long, value_enum, default_value = "time")]
    sort: Sort,
    /// Print this many rows at most
    #[arg(short = 'n', long, value_name = "N")]
    rows: Option<usize>,
    /// What each exit of L2 costs: who handled it, which exits of L1 it caused, and where the time went
    #[arg(long, conflicts_with_all = ["per_vcpu", "sort", "csv", "count_only"])]
    nested: bool,
    /// Only count, without times: by a perf counter for each level and each --view or --where; cheaper if these are few
    #[arg(long, visible_alias = "per-view", conflicts_with_all = ["per_vcpu", "sort", "rows", "hypercall_abi"])]
    count_only: bool,
    /// Print JSON: one object, with --interval one a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values
    #[arg(long)]
    csv: bool,
    /// Write to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A command during which all VMs' exits are counted, whoever runs them; its exit status becomes ours, unless
    /// we end it
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    selection: SelectionArguments,
}

/// Runs it; returns the command's exit status; 0 without one, or if it was not left to end.
///
/// # Errors
/// The source does not work here, the selection makes no sense, the command cannot be run, or the output cannot be
/// written.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let host = Host::this();
    if arguments.count_only {
        return count::run(arguments, &host);
    }
    if arguments.nested {
        return nested::run(arguments, &host);
    }
    let selection = arguments.selection.on(&host)?;
    if !selection.exits {
        return Err(misuse(
            "--view",
            "stat counts exits; nested page faults are none, `exitregs trace` shows them",
        ));
    }
    let mut report = Report {
        out: output(arguments)?,
        arguments,
        names: Names::default(),
        csv_heading: true,
        started: Instant::now(),
        names_learnt: Instant::now(),
    };

    let mut stop = Stop::new()?;
    let mut chosen = choose::stat(&host, &selection, arguments.per_vcpu, arguments.selection.source)?;
    let mut command = Child::start(&arguments.command)?;
    if !command.exists() && arguments.duration.is_none() {
        eprintln!("exitregs: counting by {chosen}; Ctrl-C stops and prints");
    }
    let stat = &mut *chosen.live;

    report.started = Instant::now();
    stop.after(arguments.duration);
    let mut earlier = Table::default();
    let mut earlier_time = report.started;
    every(arguments.interval, &stop, &mut command, |tick| {
        stat.poll()?;
        report.learn_names();
        if tick == Tick::Interval {
            let now = stat.read()?;
            report.suggest_names(stat);
            let time = Instant::now();
            report.print(&since(&now, &earlier), time - earlier_time, time)?;
            (earlier, earlier_time) = (now, time);
        }
        Ok(())
    })?;

    let time = Instant::now();
    let (now, counters) = stat.finish()?;
    report.suggest_names(stat);
    if arguments.interval.is_some() {
        report.print(&since(&now, &earlier), time - earlier_time, time)?;
    } else {
        report.print(&now, time - report.started, time)?;
    }
    if counters.lost > 0 {
        eprintln!(
            "exitregs: {} events were lost: they came faster than they could be read; select fewer exits, or use the \
             bpf source",
            counters.lost
        );
    }
    if counters.uncounted > 0 {
        eprintln!(
            "exitregs: {} exits were not counted: there were too many different ones",
            counters.uncounted
        );
    }
    super::say_undecided(counters);
    command.exit_code()
}

/// Why a moment is one to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tick {
    /// Some milliseconds have passed.
    Poll,
    /// An interval has.
    Interval,
}

/// Calls `act` every few milliseconds and at the end of each interval, until it is time to stop or the command has ended.
fn every(
    interval: Option<Duration>,
    stop: &Stop,
    command: &mut Child,
    mut act: impl FnMut(Tick) -> Result<()>,
) -> Result<()> {
    let mut begun = Instant::now();
    loop {
        let left = interval.map(|interval| (begun + interval).saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            begun = Instant::now();
            act(Tick::Interval)?;
            continue;
        }
        if command.has_ended()? || stop.is_due() {
            return Ok(());
        }
        stop.sleep(left.map_or(WAIT_INTERVAL, |left| left.min(WAIT_INTERVAL)));
        act(Tick::Poll)?;
    }
}

fn output(arguments: &Arguments) -> Result<Box<dyn Write>> {
    Ok(match &arguments.output {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Box::new(AutoStream::never(file))
        }
        None => Box::new(AutoStream::auto(io::stdout())),
    })
}

struct Report<'a> {
    out: Box<dyn Write>,
    arguments: &'a Arguments,
    names: Names,
    csv_heading: bool,
    started: Instant,
    names_learnt: Instant,
}

impl Report<'_> {
    /// Looks up the names of the VMs that run now: they may be gone when the table is printed.
    fn learn_names(&mut self) {
        if self.names_learnt.elapsed() < NAMES_INTERVAL {
            return;
        }
        for pid in vm::running() {
            self.names.get(pid);
        }
        self.names_learnt = Instant::now();
    }

    fn suggest_names(&mut self, stat: &dyn Stat) {
        for (pid, command) in stat.commands() {
            self.names.suggest(pid, &command);
        }
    }

    fn print(&mut self, table: &Table, elapsed: Duration, now: Instant) -> Result<()> {
        let write = if self.arguments.json {
            self.json(table, elapsed, now)
        } else if self.arguments.csv {
            self.csv(table, now)
        } else {
            if self.arguments.interval.is_some() {
                writeln!(self.out, "\nat {:.3} s", (now - self.started).as_secs_f64())?;
            }
            let Arguments { sort, rows, .. } = *self.arguments;
            table::write(&mut self.out, table, elapsed, sort, rows, &mut self.names)
        };
        write.and_then(|()| self.out.flush()).context("cannot write the table")
    }

    fn rows(&mut self, table: &Table) -> Vec<StatRow> {
        let rows = table::sorted(table, self.arguments.sort);
        let rows = rows.into_iter().take(self.arguments.rows.unwrap_or(usize::MAX));
        rows.map(|(key, times)| StatRow::new(key, times, self.names.get(key.vm))).collect()
    }

    fn json(&mut self, table: &Table, elapsed: Duration, now: Instant) -> io::Result<()> {
        let object = json!({
            "at_s": (now - self.started).as_secs_f64(),
            "elapsed_s": elapsed.as_secs_f64(),
            "rows": self.rows(table),
        });
        serde_json::to_writer(&mut self.out, &object)?;
        writeln!(self.out)
    }

    fn csv(&mut self, table: &Table, now: Instant) -> io::Result<()> {
        let at = (now - self.started).as_secs_f64();
        let rows = self.rows(table);
        let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(&mut self.out);
        if std::mem::take(&mut self.csv_heading) {
            csv.write_record(StatRow::CSV_HEADING)?;
        }
        for row in rows {
            csv.write_record(row.csv(at))?;
        }
        csv.flush()
    }
}
