// SPDX-License-Identifier: MIT
//! `exitregs trace`: one line per exit.

use super::Stop;
use super::child::Child;
use crate::analysis::pairing::Record;
use crate::cli::SelectionArguments;
use crate::host::Host;
use crate::output::json;
use crate::output::line::Lines;
use crate::source::{check_kvm, choose};
use crate::vm::Names;
use anstream::{AutoStream, ColorChoice};
use anyhow::{Context, Result};
use clap::Args;
use exitregs_common::isa::Isa;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How often the ring buffer is read: a wake-up an exit would cost more than all else.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(10);

const BUFFER: usize = 1 << 16;

/// The arguments of `exitregs trace`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Stop after this many exits
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time: 10, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    duration: Option<Duration>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Write to a file that only its owner may read
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ring buffer for exits that were not printed yet, in MiB; a power of two
    #[arg(long, value_name = "MIB", default_value = "32", value_parser = buffer_size)]
    buffer_size: u32,
    /// A command during which all VMs' exits are traced, whoever runs them; its exit status becomes ours, unless
    /// we end it
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    selection: SelectionArguments,
}

pub(super) fn buffer_size(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(mebibytes) if mebibytes.is_power_of_two() && mebibytes <= 1024 => Ok(mebibytes << 20),
        _ => Err("expected a power of two from 1 to 1024".to_owned()),
    }
}

/// Runs it; returns the command's exit status; 0 without one, or if it was not left to end.
///
/// # Errors
/// The source does not work here, the selection makes no sense, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let host = Host::this();
    let selection = arguments.selection.on(&host)?;
    let (out, colour) = output(arguments)?;
    let mut printer = Printer {
        out,
        lines: (!arguments.json).then(|| Lines::new(colour)),
        left: arguments.count.unwrap_or(u64::MAX),
        printed: 0,
        nested_page_faults: 0,
        names: Names::default(),
        isa: check_kvm(&host)?,
    };

    let mut stop = Stop::new()?;
    let mut trace = choose::trace(&host, &selection, arguments.buffer_size, arguments.selection.source)?;
    eprintln!("exitregs: tracing by {trace}; Ctrl-C stops");
    if let Some(lines) = &printer.lines {
        lines
            .heading(&mut printer.out)
            .and_then(|()| printer.out.flush())
            .context("cannot write the heading")?;
    }
    let mut command = Child::start(&arguments.command)?;
    stop.after(arguments.duration);
    loop {
        let due = stop.is_due() || command.has_ended()?;
        printer.print(&trace.live.read()?)?;
        if due || printer.left == 0 {
            break;
        }
        stop.sleep(POLL_INTERVAL);
    }
    let (records, counters) = trace.live.finish()?;
    printer.print(&records)?;
    printer.out.flush()?;

    eprintln!("exitregs: {} exits printed, {} lost", printer.printed, counters.lost);
    if printer.nested_page_faults > 0 {
        eprintln!("exitregs: {} nested page faults printed", printer.nested_page_faults);
    }
    super::say_full(counters);
    super::say_undecided(counters);
    command.exit_code()
}

/// Where the lines go, and whether in colour.
fn output(arguments: &Arguments) -> Result<(Box<dyn Write>, bool)> {
    let Some(path) = &arguments.output else {
        let stdout = io::stdout();
        let colour = AutoStream::choice(&stdout) != ColorChoice::Never;
        return Ok((Box::new(BufWriter::with_capacity(BUFFER, stdout)), colour));
    };
    let file = super::create_private(path)?;
    Ok((Box::new(BufWriter::with_capacity(BUFFER, file)), false))
}

struct Printer {
    out: Box<dyn Write>,
    /// `None` for JSON.
    lines: Option<Lines>,
    left: u64,
    printed: u64,
    nested_page_faults: u64,
    names: Names,
    isa: Isa,
}

impl Printer {
    fn print(&mut self, records: &[Record]) -> Result<()> {
        for record in records {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            match record {
                Record::Exit(_) => self.printed += 1,
                Record::NestedPageFault(_) => self.nested_page_faults += 1,
            }
            let name = self.names.get(record.tgid());
            match &mut self.lines {
                Some(lines) => lines.record(&mut self.out, record, self.isa, name),
                None => {
                    let object = json::record(record, self.isa, name);
                    let written = serde_json::to_writer(&mut self.out, &object).map_err(io::Error::from);
                    written.and_then(|()| self.out.write_all(b"\n"))
                }
            }
            .context("cannot write an exit")?;
        }
        if !records.is_empty() {
            self.out.flush().context("cannot write the exits")?;
        }
        Ok(())
    }
}
