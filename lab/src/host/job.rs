// SPDX-License-Identifier: MIT
//! What the emulated host is asked to do, and what it answers: the contract between [`super::Host`], which
//! runs on the developer's machine, and `exitregs-lab-init`, which runs as process 1 of the emulated one.
//!
//! The job travels as JSON in the initramfs. The answer travels as a tar archive, written to a raw disk from
//! its first byte on; [`REPORT`] is its last member, so an archive without it is one that was cut short.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the job lies inside the initramfs.
pub const JOB_PATH: &str = "/exitregs-lab/job.json";
/// Line that init prints on the console when user space is ready and the commands are about to run.
pub const READY: &str = "exitregs-lab: ready";
/// Prefix of the console line with which init says why it could not do its job.
pub const INIT_ERROR: &str = "exitregs-lab: error: ";
/// Line that the developer's side types on the console to end the commands; what they did is still reported.
pub const STOP: &str = "exitregs-lab: stop";
/// Last member of the answer: a [`Report`] as JSON.
pub const REPORT: &str = "report.json";
/// Member with the emulated kernel's log, one `<level>[seconds] text` line per record.
pub const KERNEL_LOG: &str = "kernel.log";
/// Folder, in the answer, of the files that were asked for; below it stand their absolute paths.
pub const FILES: &str = "files";
/// The serial lines that carry standard output and standard error of a live run, in this order.
pub const LIVE_DEVICES: [&str; 2] = ["/dev/ttyS1", "/dev/ttyS2"];

/// Name, in the answer, of a command's standard output; commands are numbered from 0.
pub fn stdout_member(command: usize) -> String {
    format!("{command}.stdout")
}

/// Name, in the answer, of a command's standard error; commands are numbered from 0.
pub fn stderr_member(command: usize) -> String {
    format!("{command}.stderr")
}

/// Everything that init does between boot and power-off.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Paths of the modules to load, dependencies first. As modprobe does, init gives each the `name.parameter=`
    /// words of the kernel command line.
    pub modules: Vec<PathBuf>,
    /// Run one after the other, each whatever the status of the one before.
    pub commands: Vec<Command>,
    /// Paths or glob patterns to bring back after the last command.
    pub get: Vec<String>,
    /// Block device that takes the answer.
    pub result_device: PathBuf,
    /// Also copy the commands' output to [`LIVE_DEVICES`] while they run.
    pub live: bool,
}

/// A program to run inside the emulated host, as root with a small environment and no input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Added to the environment.
    pub environment: BTreeMap<String, String>,
    /// Not root, if given.
    pub privileges: Option<Privileges>,
}

/// The user that a command runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// User and group id.
    pub uid: u32,
    /// Capabilities it keeps, by their kernel names (`CAP_BPF`).
    pub capabilities: Vec<String>,
}

impl Command {
    /// A program with its arguments.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { argv, environment: BTreeMap::new(), privileges: None }
    }

    /// A line for the emulated host's `sh`.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(["sh".to_owned(), "-c".to_owned(), line.into()])
    }

    /// Adds a variable to the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Runs as user 1000 with nothing but these capabilities (kernel names, `CAP_BPF`).
    pub fn unprivileged<S: Into<String>>(mut self, capabilities: impl IntoIterator<Item = S>) -> Self {
        let capabilities = capabilities.into_iter().map(Into::into).collect();
        self.privileges = Some(Privileges { uid: 1000, capabilities });
        self
    }
}

/// What init reports, once everything else has been written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// One per command of the job that was started, in order.
    pub commands: Vec<Finished>,
    /// Patterns of [`Job::get`] that matched nothing, and files that could not be read, each with the reason.
    pub missing: Vec<String>,
}

/// How one command ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// Its exit status.
    pub status: Status,
    /// From start to end, by the emulated host's clock.
    pub run_time: Duration,
}

/// How a command in the emulated host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// The run's time limit ended it.
    TimedOut,
}

impl Status {
    /// Whether it exited with 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The status with which a shell would report it: the code, 128 + signal, or 124 as timeout(1) has it.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code as u8,
            Self::Signal(signal) => 128u8.wrapping_add(signal as u8),
            Self::TimedOut => 124,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("ended by the time limit"),
        }
    }
}
