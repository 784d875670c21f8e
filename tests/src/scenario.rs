// SPDX-License-Identifier: MIT
//! What happens on an emulated host in one test. The developer's machine describes it; the program
//! `exitregs-test-driver` plays it on the host, and reports.
//!
//! ```
//! use exitregs_tests::scenario::{Process, Scenario};
//!
//! let scenario = Scenario::new("two processes")
//!     .start(Process::new("reader", ["cat"]))
//!     .start(Process::new("other", ["sh", "-c", "kill {pid:reader}; echo killed >&2"]))
//!     .wait_for("other", "killed")
//!     .end("other")
//!     .end("reader");
//! ```

use std::collections::BTreeMap;

use exitregs_lab::host::Status;
use serde::{Deserialize, Serialize};

/// Where a scenario's folder is made on the host; it is every process's working directory.
pub const FOLDER: &str = "/tmp/scenarios";
/// Seconds that a process has to write what is waited for, or to end. Generous: the host is an emulated one on a
/// busy machine, and a wait that is too short is a test that fails for no reason.
pub const PATIENCE: u64 = 240;

/// Steps, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// Its name, also that of its folder.
    pub name: String,
    /// What is done.
    pub steps: Vec<Step>,
}

/// One thing that is done. Processes are called by their names in the scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Starts a process.
    Start(Process),
    /// Waits until a process has written this to its standard error.
    WaitFor {
        /// The process.
        process: String,
        /// A part of a line.
        text: String,
    },
    /// Writes a line to a process's standard input.
    Type {
        /// The process.
        process: String,
        /// The line.
        line: String,
    },
    /// Sends a signal.
    Kill {
        /// The process.
        process: String,
        /// The signal's number.
        signal: i32,
    },
    /// Waits until a process has ended.
    End {
        /// The process.
        process: String,
    },
    /// Waits.
    Sleep {
        /// So long.
        milliseconds: u64,
    },
}

/// A process to start. Its standard output and error go to the files `NAME.stdout` and `NAME.stderr` of the scenario's
/// folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// What the scenario calls it.
    pub name: String,
    /// Program and arguments. `{pid:NAME}` stands for the process id of one that was started before.
    pub argv: Vec<String>,
    /// Close the other end of its standard output after so many lines.
    pub lines: Option<usize>,
}

impl Process {
    /// A process of this name in the scenario, and what it executes.
    pub fn new<S: Into<String>>(name: impl Into<String>, argv: impl IntoIterator<Item = S>) -> Self {
        Self { name: name.into(), argv: argv.into_iter().map(Into::into).collect(), lines: None }
    }

    /// A line for the host's `sh`.
    pub fn shell(name: impl Into<String>, line: impl Into<String>) -> Self {
        Self::new(name, ["sh".to_owned(), "-c".to_owned(), line.into()])
    }

    /// Close the other end of its standard output after so many lines, as `head` does.
    pub fn head(mut self, lines: usize) -> Self {
        self.lines = Some(lines);
        self
    }

    /// Put before its program and arguments: a program that starts others (`setpriv`, `timeout`).
    pub fn under<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.argv.splice(0..0, argv.into_iter().map(Into::into));
        self
    }

    /// As user 1000 with no capabilities but these (setpriv's names: `bpf`).
    pub fn unprivileged(self, capabilities: &[&str]) -> Self {
        let plus: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
        self.under(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"])
            .insert(4, [format!("--inh-caps=-all{plus}"), format!("--ambient-caps=-all{plus}")])
    }

    fn insert(mut self, at: usize, words: impl IntoIterator<Item = String>) -> Self {
        self.argv.splice(at..at, words);
        self
    }
}

impl Scenario {
    /// No steps yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), steps: Vec::new() }
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Starts a process.
    pub fn start(self, process: Process) -> Self {
        self.step(Step::Start(process))
    }

    /// Starts a process and waits until it has ended.
    pub fn run(self, process: Process) -> Self {
        let name = process.name.clone();
        self.start(process).end(name)
    }

    /// Waits until a process has written `text` to its standard error.
    pub fn wait_for(self, process: impl Into<String>, text: impl Into<String>) -> Self {
        self.step(Step::WaitFor { process: process.into(), text: text.into() })
    }

    /// Writes an empty line to a process's standard input.
    pub fn press_enter(self, process: impl Into<String>) -> Self {
        self.step(Step::Type { process: process.into(), line: String::new() })
    }

    /// Sends a signal.
    pub fn kill(self, process: impl Into<String>, signal: nix::sys::signal::Signal) -> Self {
        self.step(Step::Kill { process: process.into(), signal: signal as i32 })
    }

    /// Waits until a process has ended.
    pub fn end(self, process: impl Into<String>) -> Self {
        self.step(Step::End { process: process.into() })
    }

    /// Waits so long.
    pub fn sleep(self, milliseconds: u64) -> Self {
        self.step(Step::Sleep { milliseconds })
    }

    /// Does what `steps` adds.
    pub fn then(self, steps: impl FnOnce(Self) -> Self) -> Self {
        steps(self)
    }

    /// The name of its folder below [`FOLDER`].
    pub fn folder(&self) -> String {
        self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }
}

/// What the driver says of a scenario that it has played.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How the processes ended, by name.
    pub processes: BTreeMap<String, Ended>,
    /// Why it was broken off, if it was.
    pub broken_off: Option<String>,
    /// What there was afterwards and had not been there before, see [`crate::leftover`].
    pub left_behind: Vec<String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Its process id.
    pub pid: u32,
    /// Its exit status.
    pub status: Status,
}
