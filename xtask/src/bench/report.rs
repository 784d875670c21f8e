// SPDX-License-Identifier: MIT
//! `cargo xtask bench report`: how fast files of exits are reported on, beside what others need for the same files.

mod inputs;
mod repeat;
mod run;
mod sizes;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;
use exitregs_lab::binaries;
use exitregs_lab::host::Kernel;
use exitregs_lab::host::requirements::{self, AMD, Requirement};
use serde::Serialize;

use crate::setup;
use inputs::Inputs;
use run::Measured;
use sizes::Sizes;

/// Events and exits per second that are reported on: exitregs beside trace-cmd and perf, on the same files
///
/// An emulated AMD host records the files. Then they are repeated, which the peers are spared, to see that memory does not
/// grow. docs/benchmarks.md has the method and a full result.
#[derive(Args)]
pub struct Arguments {
    /// Debian's kernel of this series that the files are recorded on: 6.1 or 6.12
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// Turns of the guest's script on each of two vCPUs: 20 exits, and 72 events
    #[arg(long, value_name = "N", default_value_t = 7_000)]
    turns: u32,
    /// Events of the repeated files
    #[arg(long, value_name = "N", default_value_t = 50_000_000)]
    events: u64,
    /// Runs of each command, in turns; their median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Keep the files in this folder, and take those that are there
    #[arg(long, value_name = "DIR")]
    inputs: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A command that reads a file.
struct Way {
    /// What it reads.
    file: File,
    /// As people write it; `FILE` stands for the file's path.
    command: &'static str,
    /// That exitregs is compared with it.
    is_peer: bool,
}

/// The files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum File {
    TraceDat,
    TraceDatZstd,
    PerfData,
    Text,
    Recording,
}

impl File {
    const ALL: [Self; 5] = [Self::TraceDat, Self::TraceDatZstd, Self::PerfData, Self::Text, Self::Recording];

    /// In the folder of inputs.
    fn name(self) -> &'static str {
        match self {
            Self::TraceDat => "trace.dat",
            Self::TraceDatZstd => "trace-zstd.dat",
            Self::PerfData => "perf.data",
            Self::Text => "perf.txt",
            Self::Recording => "recording.arrow",
        }
    }

    /// What it is.
    fn description(self) -> &'static str {
        match self {
            Self::TraceDat => "trace.dat, uncompressed",
            Self::TraceDatZstd => "trace.dat version 7, zstd",
            Self::PerfData => "perf.data",
            Self::Text => "text of perf script",
            Self::Recording => "recording of exitregs",
        }
    }
}

const fn way(file: File, command: &'static str) -> Way {
    Way { file, command, is_peer: true }
}

/// The floor, or exitregs itself.
const fn no_peer(file: File, command: &'static str) -> Way {
    Way { file, command, is_peer: false }
}

/// exitregs' own command.
const REPORT: &str = "exitregs report FILE";
/// What only reads.
const FLOOR: &str = "cat FILE >/dev/null";

const WAYS: [Way; 18] = [
    no_peer(File::TraceDat, FLOOR),
    way(File::TraceDat, "trace-cmd report FILE"),
    way(File::TraceDat, "trace-cmd report FILE | mawk '/ kvm_exit: /{n[$6]++} END{for(r in n)print r,n[r]}'"),
    no_peer(File::TraceDat, REPORT),
    no_peer(File::TraceDat, "exitregs report --nested FILE"),
    no_peer(File::TraceDatZstd, FLOOR),
    way(File::TraceDatZstd, "trace-cmd report FILE"),
    no_peer(File::TraceDatZstd, REPORT),
    no_peer(File::PerfData, FLOOR),
    way(File::PerfData, "perf script -i FILE"),
    way(
        File::PerfData,
        "perf script -i FILE | mawk '/ kvm:kvm_exit: /{n[$8]++} END{for(r in n)print r,n[r]}'",
    ),
    way(File::PerfData, "perf kvm --host -i FILE stat report"),
    no_peer(File::PerfData, REPORT),
    no_peer(File::Text, FLOOR),
    way(File::Text, "mawk '/ kvm:kvm_exit: /{n[$8]++} END{for(r in n)print r,n[r]}' FILE"),
    no_peer(File::Text, REPORT),
    no_peer(File::Recording, FLOOR),
    no_peer(File::Recording, REPORT),
];

/// What exitregs does with repeated files.
const REPEATED: [Way; 5] = [
    no_peer(File::TraceDat, REPORT),
    no_peer(File::PerfData, REPORT),
    no_peer(File::Recording, FLOOR),
    no_peer(File::Recording, REPORT),
    no_peer(File::Recording, "exitregs report --nested FILE"),
];

/// The ratios that count: exitregs on a file, and the peer's command and file that are compared with it.
const COMPARED: [(File, File, &str); 3] = [
    (File::TraceDat, File::TraceDat, "trace-cmd report FILE | mawk"),
    (File::PerfData, File::PerfData, "perf kvm --host -i FILE stat report"),
    (File::Text, File::PerfData, "perf script -i FILE | mawk"),
];

/// Everything.
#[derive(Serialize)]
struct Report {
    /// The kernel that the files are of.
    kernel: String,
    /// Of this machine.
    cpus: usize,
    rows: Vec<Row>,
    repeated: Vec<Row>,
    sizes: Vec<Sizes>,
}

/// One command on one file.
#[derive(Serialize)]
struct Row {
    file: File,
    command: &'static str,
    is_peer: bool,
    /// Events of KVM's in the file; in a recording exits.
    events: u64,
    bytes: u64,
    #[serde(flatten)]
    measured: Measured,
}

impl Row {
    /// Millions of events a second.
    fn rate(&self) -> f64 {
        self.events as f64 / self.measured.wall_s / 1e6
    }
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mawk = Requirement::new("mawk", "mawk");
    requirements::install(&[&AMD[..], &setup::BUILD, &setup::PEERS, &[mawk]].concat())?;
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = arguments.inputs.as_deref().unwrap_or(temporary.path());
    let inputs = Inputs::prepare(folder, arguments.kernel, arguments.turns)?;
    let tool = binaries::tool()?;

    let rows = measure(&WAYS, &inputs, &tool, arguments.runs)?;
    let mut repeated = Vec::new();
    for file in File::ALL {
        let ways: Vec<Way> = REPEATED.into_iter().filter(|way| way.file == file).collect();
        if !ways.is_empty() {
            // One at a time: they are large.
            let folder = tempfile::tempdir_in(folder).context("cannot make a temporary folder")?;
            let inputs = inputs.repeated(file, arguments.events, folder.path())?;
            repeated.extend(measure(&ways, &inputs, &tool, arguments.runs)?);
        }
    }
    let report = Report {
        kernel: inputs.kernel.clone(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        rows,
        repeated,
        sizes: sizes::of(&inputs)?,
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs each way so often, in turns.
fn measure(ways: &[Way], inputs: &Inputs, tool: &Path, runs: u32) -> Result<Vec<Row>> {
    let mut measured = vec![Vec::new(); ways.len()];
    for turn in 1..=runs {
        eprintln!("bench: turn {turn} of {runs}");
        for (way, measured) in ways.iter().zip(&mut measured) {
            measured.push(run::once(way.command, &inputs.path(way.file), tool)?);
        }
    }
    let rows = ways.iter().zip(measured).map(|(way, measured)| {
        let path = inputs.path(way.file);
        Ok(Row {
            file: way.file,
            command: way.command,
            is_peer: way.is_peer,
            events: inputs.events(way.file),
            bytes: path.metadata().with_context(|| path.display().to_string())?.len(),
            measured: Measured::median(measured),
        })
    });
    rows.collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Reports on files of Linux {}, on {} CPUs\n", self.kernel, self.cpus)?;
        table(f, &self.rows)?;
        writeln!(f, "\nThe same events again and again\n")?;
        table(f, &self.repeated)?;
        writeln!(f)?;
        for (file, peers_file, peer) in COMPARED {
            let ours = self.rows.iter().find(|row| row.file == file && row.command == REPORT);
            let peer = self.rows.iter().find(|row| row.file == peers_file && row.command.starts_with(peer));
            if let Some((ours, peer)) = ours.zip(peer) {
                writeln!(
                    f,
                    "{}: {:.1} times as fast as {}, with 1/{:.1} of its CPU time",
                    file.description(),
                    ours.rate() / peer.rate(),
                    peer.command,
                    peer.measured.cpu_s / ours.measured.cpu_s,
                )?;
            }
        }
        writeln!(f)?;
        self.sizes.iter().try_for_each(|sizes| writeln!(f, "{sizes}"))
    }
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    for file in File::ALL {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.file == file).collect();
        let Some(first) = rows.first() else { continue };
        let (events, bytes) = (first.events, first.bytes);
        let what = if file == File::Recording { "exits" } else { "events" };
        writeln!(
            f,
            "{}: {events} {what}, {:.1} bytes each",
            file.description(),
            bytes as f64 / events as f64
        )?;
        writeln!(f, "  {:>10} {:>8} {:>8} {:>8}", format!("M {what}/s"), "wall s", "CPU s", "MiB")?;
        for row in rows {
            let Measured { wall_s, cpu_s, peak_mib } = row.measured;
            writeln!(f, "  {:>10.2} {wall_s:>8.3} {cpu_s:>8.3} {peak_mib:>8}  {}", row.rate(), row.command)?;
        }
    }
    Ok(())
}

/// The number of lines in which `mark` stands, of a text or of what a command prints.
fn lines_with(mut text: impl std::io::BufRead, mark: &str) -> Result<u64> {
    let (mut line, mut count) = (Vec::new(), 0);
    loop {
        line.clear();
        if text.read_until(b'\n', &mut line)? == 0 {
            return Ok(count);
        }
        count += u64::from(line.windows(mark.len()).any(|part| part == mark.as_bytes()));
    }
}

/// The exits that exitregs counts in a file.
fn exits(tool: &Path, path: &Path) -> Result<u64> {
    let output = process::Command::new(tool).args(["report", "--json"]).arg(path).output();
    let output = output.with_context(|| format!("cannot run {}", tool.display()))?;
    let object: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let rows = object["rows"].as_array().context("the report has no rows")?;
    rows.iter().map(|row| row["exits"].as_u64().context("a row without exits")).sum()
}

/// That exitregs counts the exits in a file that there are.
fn check(tool: &Path, path: &Path, printed: u64) -> Result<()> {
    let counted = exits(tool, path)?;
    let path = path.display();
    ensure!(counted == printed, "{path}: exitregs counts {counted} exits, but {printed} are printed");
    Ok(())
}
