// SPDX-License-Identifier: MIT
//! The files that are reported on: recorded on an emulated host, and repeated.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use exitregs_lab::binaries;
use exitregs_lab::events::EVENTS;
use exitregs_lab::host::{Command as HostCommand, Host, Kernel};
use serde::{Deserialize, Serialize};

use super::{File, check, lines_with, repeat};

/// The files that are recorded; the text is of perf.data.
const RECORDED: [File; 4] = [File::TraceDat, File::TraceDatZstd, File::PerfData, File::Recording];
/// What is known of the files, beside them.
const ABOUT: &str = "about.json";
/// Where the files are on the emulated host.
const INSIDE: &str = "/tmp/bench";

/// Files in a folder.
pub struct Inputs {
    /// The kernel's release.
    pub kernel: String,
    folder: PathBuf,
    /// Events of each, by name; of a recording exits.
    events: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct About {
    kernel: String,
    events: BTreeMap<String, u64>,
}

impl Inputs {
    /// Those in the folder, which are recorded if they are not there.
    ///
    /// # Errors
    /// They cannot be, or exitregs counts not the exits in them that the others print.
    pub fn prepare(folder: &Path, kernel: Kernel, turns: u32) -> Result<Self> {
        let about = folder.join(ABOUT);
        if let Ok(text) = fs::read(&about) {
            let About { kernel, events } = serde_json::from_slice(&text)
                .with_context(|| format!("{} makes no sense", about.display()))?;
            eprintln!("bench: taking the files in {}", folder.display());
            return Ok(Self { kernel, folder: folder.to_owned(), events });
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let kernel_release = kernel.image()?.release;
        if !RECORDED.iter().all(|file| folder.join(file.name()).exists()) {
            record(folder, kernel, turns)?;
        }
        let mut inputs = Self { kernel: kernel_release, folder: folder.to_owned(), events: BTreeMap::new() };
        inputs.count()?;
        let about_text =
            serde_json::to_vec(&About { kernel: inputs.kernel.clone(), events: inputs.events.clone() });
        fs::write(&about, about_text?).with_context(|| format!("cannot write {}", about.display()))?;
        Ok(inputs)
    }

    /// Counts events as trace-cmd and perf print them, and makes the text.
    fn count(&mut self) -> Result<()> {
        eprintln!("bench: counting what is in the files");
        let tool = binaries::tool()?;
        let text = self.path(File::Text);
        let printed = fs::File::create(&text).with_context(|| format!("cannot write {}", text.display()))?;
        let perf_data = self.path(File::PerfData);
        let status = Command::new("perf")
            .args(["script", "--ns", "-i"])
            .arg(&perf_data)
            .stdout(printed)
            .stderr(Stdio::null())
            .status()
            .context("cannot run perf")?;
        ensure!(status.success(), "perf script: {status}");
        let of_text = |mark: &str| lines_with(BufReader::new(fs::File::open(&text)?), mark);
        let (events, exits) = (of_text(" kvm:kvm_")?, of_text(" kvm:kvm_exit:")?);
        for file in [File::PerfData, File::Text] {
            check(&tool, &self.path(file), exits)?;
            self.events.insert(file.name().to_owned(), events);
        }
        for file in [File::TraceDat, File::TraceDatZstd] {
            let printed = |mark: &str| {
                let mut report = Command::new("trace-cmd")
                    .arg("report")
                    .arg(self.path(file))
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .context("cannot run trace-cmd")?;
                let count = report.stdout.take().map(|out| lines_with(BufReader::new(out), mark));
                ensure!(report.wait()?.success(), "trace-cmd report failed");
                count.context("trace-cmd has no output")?
            };
            check(&tool, &self.path(file), printed(" kvm_exit: ")?)?;
            self.events.insert(file.name().to_owned(), printed(": ")?);
        }
        let exits = super::exits(&tool, &self.path(File::Recording))?;
        self.events.insert(File::Recording.name().to_owned(), exits);
        Ok(())
    }

    /// Where a file is.
    pub fn path(&self, file: File) -> PathBuf {
        self.folder.join(file.name())
    }

    /// How many events are in a file; of a recording, exits.
    pub fn events(&self, file: File) -> u64 {
        self.events.get(file.name()).copied().unwrap_or(0)
    }

    /// A file, repeated until it has so many events, in another folder.
    ///
    /// # Errors
    /// It cannot be read or written, or makes no sense.
    pub fn repeated(&self, file: File, events: u64, folder: &Path) -> Result<Self> {
        let repeat = match file {
            File::TraceDat => repeat::trace_dat,
            File::PerfData => repeat::perf_data,
            File::Recording => repeat::recording,
            File::TraceDatZstd | File::Text => bail!("{} cannot be repeated", file.name()),
        };
        let times = events.div_ceil(self.events(file).max(1));
        eprintln!("bench: repeating {} {times} times", file.name());
        let events = BTreeMap::from([(file.name().to_owned(), times * self.events(file))]);
        let repeated = Self { kernel: self.kernel.clone(), folder: folder.to_owned(), events };
        repeat(&self.path(file), &repeated.path(file), times)
            .with_context(|| format!("cannot repeat {}", file.name()))?;
        Ok(repeated)
    }
}

/// Records the same load three times: by trace-cmd, by perf and by exitregs.
fn record(folder: &Path, kernel: Kernel, turns: u32) -> Result<()> {
    eprintln!("bench: recording on an emulated host, for some minutes");
    let guest =
        format!("exitregs-guest --truth /dev/null --timeout 3000 --script mix --vcpus 2 --repeat {turns}");
    let events = |system: &str| EVENTS.map(|event| format!(" -e {system}{event}")).concat();
    let (of_trace_cmd, of_perf) = (events(""), events("kvm:"));
    let [trace_dat, zstd, perf_data, recording] = RECORDED.map(File::name);
    let commands = [
        format!("trace-cmd record -q -b 20000{of_trace_cmd} --file-version 6 -o {trace_dat} {guest}"),
        format!("trace-cmd record -q -b 20000{of_trace_cmd} --compression zstd -o {zstd} {guest}"),
        format!("perf record -q -a -m 4096{of_perf} -o {perf_data} {guest}"),
        format!("exitregs record -o {recording} -- {guest}"),
    ];
    let mut host = Host::amd(kernel)
        .smp(2)
        .memory_mib(4096)
        .time_limit(Duration::from_secs(3600))
        .program("perf")
        .program("trace-cmd")
        .get(INSIDE);
    for program in binaries::programs("exitregs")?.into_values().chain(binaries::lab()?.all.into_values()) {
        let inside = Path::new("/usr/bin").join(program.file_name().context("a program has no name")?);
        host = host.file(program, inside);
    }
    let commands = commands.map(|line| HostCommand::shell(format!("mkdir -p {INSIDE}; cd {INSIDE}; {line}")));
    let outcome = host.run_each(commands)?;
    outcome.commands.iter().try_for_each(|command| command.check().map(drop))?;
    for file in [trace_dat, zstd, perf_data, recording] {
        let path = outcome.files.path(Path::new(INSIDE).join(file))?;
        fs::copy(&path, folder.join(file)).with_context(|| format!("cannot keep {file}"))?;
    }
    Ok(())
}
