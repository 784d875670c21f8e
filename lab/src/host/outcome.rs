// SPDX-License-Identifier: MIT
//! What came back from an emulated host, and the ways in which it can fail to answer.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::job::{self, Report, Status};
use super::machine::{Life, Limits, tail};

/// The emulated host went down, or had to be taken down, before it had answered.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its kernel panicked.
    #[error("the emulated host's kernel panicked: {message}\n{}", tail(console))]
    Panic {
        /// The panic's own line.
        message: String,
        /// Everything on the console.
        console: String,
    },
    /// It neither finished nor reacted within the time limit.
    #[error(
        "the emulated host hangs: {} after {} s\n{}",
        if *booted { "its commands do not end" } else { "it has not booted" }, limit.as_secs_f32(), tail(console)
    )]
    Hang {
        /// The limit that passed.
        limit: Duration,
        /// Whether user space had come up.
        booted: bool,
        /// Everything on the console.
        console: String,
    },
    /// Its init could not do its job.
    #[error("the emulated host's init failed: {message}\n{}", tail(console))]
    Init {
        /// What init said.
        message: String,
        /// Everything on the console.
        console: String,
    },
    /// It went down without a word.
    #[error("the emulated host went down without an answer\n{}", tail(console))]
    Down {
        /// Everything on the console.
        console: String,
    },
}

/// A command that has run in the emulated host.
#[derive(Clone)]
pub struct Finished {
    /// How it ended.
    pub status: Status,
    /// Its standard output, to the byte.
    pub stdout: Vec<u8>,
    /// Its standard error, to the byte.
    pub stderr: Vec<u8>,
    /// From start to end by the emulated host's clock; with `icount`, 1 ns per instruction.
    pub run_time: Duration,
}

impl Finished {
    /// Standard output as text; bytes that are not UTF-8 are replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; bytes that are not UTF-8 are replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself, if it exited with 0.
    ///
    /// # Errors
    /// If it did not; the message has its status and its standard error.
    pub fn check(&self) -> Result<&Self> {
        ensure!(self.status.success(), "{}: {}", self.status, self.stderr_text().trim());
        Ok(self)
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finished")
            .field("status", &self.status)
            .field("stdout", &self.stdout_text())
            .field("stderr", &self.stderr_text())
            .field("run_time", &self.run_time)
            .finish()
    }
}

/// Everything that came back from an emulated host.
pub struct Outcome {
    /// One per command, in order. After a time limit it ends with the command that was cut short.
    pub commands: Vec<Finished>,
    /// The files that were asked for.
    pub files: Files,
    /// The serial console from power-on to power-off.
    pub console: String,
    /// The kernel's log, one `<level>[seconds] text` line per record.
    pub kernel_log: String,
    /// From power-on until the first command could run, by the clock of this machine.
    pub boot_time: Duration,
}

impl fmt::Debug for Outcome {
    /// Without the console and the log, whose hundreds of lines would hide the rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
            .field("commands", &self.commands)
            .field("files", &self.files)
            .field("kernel_warnings", &self.kernel_warnings())
            .finish_non_exhaustive()
    }
}

impl Outcome {
    /// The last command that ran; the only one, if there was one.
    pub fn last(&self) -> &Finished {
        self.commands.last().expect("a run has at least one command")
    }

    /// How the last command ended.
    pub fn status(&self) -> Status {
        self.last().status
    }

    /// Lines of the kernel's log that no healthy kernel prints: warnings, oopses, lock order violations, what the
    /// sanitizers find, stalls.
    pub fn kernel_warnings(&self) -> Vec<&str> {
        kernel_warnings(&self.kernel_log)
    }

    /// Reads what init wrote to the result disk, or says why it wrote nothing.
    pub(super) fn read(result: &mut File, life: Life, limits: Limits) -> Result<Self> {
        let Some(answer) = Answer::read(result)? else {
            let console = life.console;
            let after = |mark: &str| {
                console.lines().find_map(|line| line.split_once(mark)).map(|(_, message)| message.to_owned())
            };
            return Err(if let Some(message) = after("Kernel panic - not syncing: ") {
                Failure::Panic { message, console }
            } else if let Some(message) = after(job::INIT_ERROR) {
                Failure::Init { message, console }
            } else if life.killed || life.stopped {
                let booted = life.boot_time.is_some();
                let limit = if booted { limits.commands } else { limits.boot };
                Failure::Hang { limit, booted, console }
            } else {
                Failure::Down { console }
            }
            .into());
        };
        let Answer { report, mut members, files } = answer;
        let mut take = |name: &str| {
            members.remove(name).with_context(|| format!("the emulated host's answer has no {name}"))
        };
        let mut commands = Vec::new();
        for (number, command) in report.commands.into_iter().enumerate() {
            commands.push(Finished {
                status: command.status,
                stdout: take(&job::stdout_member(number))?,
                stderr: take(&job::stderr_member(number))?,
                run_time: command.run_time,
            });
        }
        let kernel_log = String::from_utf8_lossy(&take(job::KERNEL_LOG)?).into_owned();
        let boot_time = life.boot_time.context("the emulated host answered before it was ready")?;
        let files = Files { folder: files, missing: report.missing };
        Ok(Self { commands, files, console: life.console, kernel_log, boot_time })
    }
}

/// The archive on the result disk.
struct Answer {
    report: Report,
    /// Content of the members outside [`job::FILES`], by name.
    members: BTreeMap<String, Vec<u8>>,
    files: TempDir,
}

impl Answer {
    /// Nothing if the archive was not written to its end.
    fn read(result: &mut File) -> Result<Option<Self>> {
        result.rewind()?;
        let folder = tempfile::Builder::new().prefix("exitregs-lab-").tempdir()?;
        let mut members = BTreeMap::new();
        let mut archive = tar::Archive::new(result);
        for entry in archive.entries()? {
            // A disk that was never written to, or only in part, is no archive from some point on.
            let Ok(mut entry) = entry else { break };
            let Ok(path) = entry.path().map(|path| path.into_owned()) else { break };
            if path.starts_with(job::FILES) {
                entry
                    .unpack_in(folder.path())
                    .with_context(|| format!("cannot store {} of the emulated host", path.display()))?;
            } else {
                let mut content = Vec::new();
                if entry.read_to_end(&mut content).is_err() {
                    break;
                }
                members.insert(path.to_string_lossy().into_owned(), content);
            }
        }
        let Some(report) = members.remove(job::REPORT) else { return Ok(None) };
        let report = serde_json::from_slice(&report).context("the emulated host's report is damaged")?;
        Ok(Some(Self { report, members, files: folder }))
    }
}

/// Files of the emulated host, in a temporary folder that goes with this value.
#[derive(Debug)]
pub struct Files {
    folder: TempDir,
    missing: Vec<String>,
}

impl Files {
    /// Where the file that was at `inside` lies on this machine.
    ///
    /// # Errors
    /// If it was not brought back: it did not exist, could not be read, or was not asked for.
    pub fn path(&self, inside: impl AsRef<Path>) -> Result<PathBuf> {
        let inside = inside.as_ref();
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        let path = self.root().join(relative);
        ensure!(
            path.exists(),
            "the emulated host sent no {}{}",
            inside.display(),
            if self.missing.is_empty() { String::new() } else { format!(" ({})", self.missing.join("; ")) }
        );
        Ok(path)
    }

    /// The content of the file that was at `inside`.
    ///
    /// # Errors
    /// As [`Files::path`].
    pub fn read(&self, inside: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = self.path(inside)?;
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// What was asked for and not found or not readable, each with the reason.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// The folder that stands for the emulated host's root folder.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join(job::FILES)
    }
}

/// See [`Outcome::kernel_warnings`].
fn kernel_warnings(log: &str) -> Vec<&str> {
    const MARKS: [&str; 13] = [
        "WARNING: ",
        "BUG: ",
        "KASAN: ",
        "KCSAN: ",
        "UBSAN: ",
        "Oops: ",
        "general protection fault",
        "possible circular locking",
        "possible recursive locking",
        "suspicious RCU usage",
        "detected stall",
        "detected stalls",
        "blocked for more than",
    ];
    log.lines().filter(|line| MARKS.iter().any(|mark| line.contains(mark))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_found_and_noise_is_not() {
        let log = "<6>[0.1] Linux version 6.1\n\
                   <4>[1.0] WARNING: CPU: 0 PID: 1 at kernel/panic.c:1 f+0x1/0x2\n\
                   <3>[1.1] BUG: KASAN: use-after-free in f\n\
                   <3>[1.2] [Firmware Bug]: TSC not synchronous\n\
                   <4>[1.3] WARNING: possible circular locking dependency detected";
        let found: Vec<_> = kernel_warnings(log).iter().map(|line| &line[4..7]).collect();
        assert_eq!(found, ["1.0", "1.1", "1.3"]);
    }
}
