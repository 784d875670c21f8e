// SPDX-License-Identifier: MIT
//! `exitregs record`: exits into a file.

mod sink;
mod trigger;

use super::Stop;
use super::child::Child;
use super::trace::{POLL_INTERVAL, buffer_size};
use crate::analysis::pairing::Record;
use crate::cli::{SelectionArguments, misuse};
use crate::host::Host;
use crate::output::style::Count;
use crate::recording::{Metadata, Writer};
use crate::source::{check_kvm, choose};
use crate::vm::Names;
use anyhow::{Context, Result};
use clap::Args;
use sink::{Ring, Rotation, Sink};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trigger::{Trigger, Triggers};

/// The file that is written if no other is named, and that `report` reads.
pub(super) const DEFAULT_FILE: &str = "exitregs.arrow";
/// An exit is in the file at latest so long after it has ended.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How often the line of statistics is written anew.
const STATISTICS_INTERVAL: Duration = Duration::from_millis(500);

/// The arguments of `exitregs record`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The file; only its owner may read it
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    output: PathBuf,
    /// Stop after this time: 10, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    duration: Option<Duration>,
    /// Begin another file when this one has so many bytes: 100M, 2G. The older ones become FILE.1, FILE.2, …
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "ring")]
    max_size: Option<u64>,
    /// Keep so many files at most, and remove the oldest; with --ring, end after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_files: Option<u32>,
    /// Keep the last exits in memory, those of so long, and write them only on --on or SIGUSR1
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    ring: Option<Duration>,
    /// What makes --ring write: 'exit > 1ms' (but halts), 'nested round trip > 5ms', 'lost'
    #[arg(long, value_name = "TRIGGER", requires = "ring")]
    on: Vec<Trigger>,
    /// Ring buffer for exits that were not recorded yet, in MiB; a power of two
    #[arg(long, value_name = "MIB", default_value = "32", value_parser = buffer_size)]
    buffer_size: u32,
    /// A command during which all VMs' exits are recorded, whoever runs them; its exit status becomes ours, unless
    /// we end it
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    selection: SelectionArguments,
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => return Err(format!("`{unit}` is no unit of size: use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number of bytes, such as 100M".to_owned())?;
    let size = number.checked_mul(1 << shift).filter(|size| *size > 0);
    size.ok_or_else(|| "the size must be more than zero, and within reason".to_owned())
}

/// Runs it; returns the command's exit status; 0 without one, or if it was not left to end.
///
/// # Errors
/// The source does not work here, the selection makes no sense, or the file cannot be written.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let host = Host::this();
    let isa = check_kvm(&host)?;
    let selection = arguments.selection.on(&host)?;
    if arguments.on.contains(&Trigger::Lost) || selection.filter.is_none() {
        // Nothing that triggers is filtered away.
    } else if arguments.on.iter().any(|trigger| matches!(trigger, Trigger::NestedRoundTrip(_))) {
        return Err(misuse("--on", "a nested round trip is of all exits of L1 and L2: select VMs only"));
    }
    let dump = Arc::new(AtomicBool::new(false));
    if arguments.ring.is_some() {
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&dump))?;
    }
    let mut stop = Stop::new()?;
    let mut trace = choose::trace(&host, &selection, arguments.buffer_size, arguments.selection.source)?;
    let metadata = Metadata {
        kernel: host.release.clone(),
        isa,
        source: trace.to_string(),
        clock: "CLOCK_MONOTONIC".to_owned(),
        realtime_offset: realtime_offset(),
    };
    let writer = Writer::new(&metadata)?;
    let sink: Box<dyn Sink> = match arguments.ring {
        Some(time) => Box::new(Ring::new(&arguments.output, writer.begin()?, time, arguments.max_files)),
        None => {
            let (size, files) = (arguments.max_size, arguments.max_files);
            Box::new(Rotation::new(&arguments.output, writer.begin()?, size, files)?)
        }
    };
    let mut recorder = Recorder {
        writer,
        sink,
        names: Names::default(),
        exits: 0,
        lost: 0,
        batch_begun: Instant::now(),
        interval: arguments.ring.map_or(BATCH_INTERVAL, |ring| BATCH_INTERVAL.min(ring / 8)),
    };
    let mut triggers = Triggers::new(arguments.on.clone());
    eprintln!("exitregs: recording by {trace}; Ctrl-C stops");
    let mut statistics = Statistics::new();
    let mut command = Child::start(&arguments.command)?;
    stop.after(arguments.duration);
    let counters = loop {
        let due = stop.is_due() || command.has_ended()? || recorder.sink.is_done();
        let records = trace.live.read()?;
        recorder.take(&records, trace.live.lost()?)?;
        let triggered = triggers.take(&records, recorder.lost);
        let asked = dump.swap(false, Ordering::Relaxed).then(|| "SIGUSR1".to_owned());
        if let Some(why) = triggered.or(asked) {
            recorder.flush()?;
            recorder.sink.dump(&why)?;
        }
        statistics.show(&recorder);
        if due {
            let (records, counters) = trace.live.finish()?;
            recorder.take(&records, counters.lost)?;
            recorder.flush()?;
            break counters;
        }
        stop.sleep(POLL_INTERVAL);
    };
    recorder.sink.end()?;
    statistics.clear();
    eprintln!(
        "exitregs: {} exits recorded, {} lost; {}",
        recorder.exits,
        counters.lost,
        recorder.sink.describe()
    );
    super::say_full(counters);
    super::say_undecided(counters);
    command.exit_code()
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC, in nanoseconds.
fn realtime_offset() -> u64 {
    let now = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes into `time`, which lives on.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    now(libc::CLOCK_REALTIME).saturating_sub(now(libc::CLOCK_MONOTONIC))
}

struct Recorder {
    writer: Writer,
    sink: Box<dyn Sink>,
    names: Names,
    exits: u64,
    lost: u64,
    batch_begun: Instant,
    interval: Duration,
}

impl Recorder {
    /// Takes what was read at once; `lost` counts from the start.
    fn take(&mut self, records: &[Record], lost: u64) -> Result<()> {
        let newly_lost = lost - self.lost;
        if newly_lost > 0 {
            // A batch tells what was lost during it: nothing of before shall be in it.
            self.flush()?;
            self.lost = lost;
            self.writer.lost(newly_lost);
        }
        for record in records {
            if self.writer.is_full() {
                self.flush()?;
            }
            if self.writer.is_empty() {
                self.batch_begun = Instant::now();
            }
            self.names.get(record.tgid());
            self.exits += u64::from(matches!(record, Record::Exit(_)));
            self.writer.push(*record);
        }
        let is_old = self.batch_begun.elapsed() >= self.interval;
        if newly_lost > 0 || is_old { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.writer.is_empty() {
            return Ok(());
        }
        let batch = self.writer.encode(|vm| self.names.get(vm).to_owned());
        self.sink.write(batch.context("cannot encode a batch")?)
    }
}

/// The line that tells how it goes, on a terminal.
struct Statistics {
    is_shown: bool,
    begun: Instant,
    shown: Instant,
    exits: u64,
}

impl Statistics {
    fn new() -> Self {
        let now = Instant::now();
        Self { is_shown: io::stderr().is_terminal(), begun: now, shown: now, exits: 0 }
    }

    fn show(&mut self, recorder: &Recorder) {
        let elapsed = self.shown.elapsed();
        if !self.is_shown || elapsed < STATISTICS_INTERVAL {
            return;
        }
        let rate = (recorder.exits - self.exits) as f64 / elapsed.as_secs_f64();
        eprint!(
            "\r\x1b[Kexitregs: {:.0} s: {} exits, {}/s, {} lost, {}",
            self.begun.elapsed().as_secs_f64(),
            Count(recorder.exits),
            Count(rate as u64),
            Count(recorder.lost),
            recorder.sink.describe()
        );
        (self.shown, self.exits) = (Instant::now(), recorder.exits);
    }

    fn clear(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("100"), Ok(100));
        assert_eq!(size("2K"), Ok(2048));
        assert_eq!(size("1G"), Ok(1 << 30));
        for wrong in ["", "0", "M", "1X", "99999999999999T", "-1"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
