// SPDX-License-Identifier: MIT
//! The command during which `trace` and `stat` run.

use anyhow::{Context, Result};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long a command may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(2);

/// A command that was started, or none; killed if dropped while it runs.
pub(crate) struct Child {
    process: Option<Process>,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `command`, the program and its arguments; nothing if it is empty.
    pub(crate) fn start(command: &[String]) -> Result<Self> {
        let process = match command.split_first() {
            Some((program, arguments)) => {
                let process = Command::new(program).args(arguments).spawn();
                Some(process.with_context(|| format!("cannot run {program}"))?)
            }
            None => None,
        };
        Ok(Self { process, status: None })
    }

    /// Whether there is a command, running or not.
    pub(crate) fn exists(&self) -> bool {
        self.process.is_some()
    }

    /// Whether the command has ended; false without one.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        if let (Some(process), None) = (&mut self.process, self.status) {
            self.status = process.try_wait().context("cannot wait for the command")?;
        }
        Ok(self.status.is_some())
    }

    /// The command's exit status as a shell has it: 128 and the signal's number, if a signal ended it. 0 without a
    /// command, and for one that still runs: it is asked to end (SIGTERM), and killed if it does not within
    /// [`PATIENCE`].
    pub(crate) fn exit_code(mut self) -> Result<u8> {
        if let (Some(process), None) = (&mut self.process, self.status) {
            // Ctrl-C reaches the command as well; --duration and SIGTERM do not.
            // SAFETY: the process has not been waited for, so the pid is still its own.
            unsafe { libc::kill(process.id() as libc::pid_t, libc::SIGTERM) };
            let asked = Instant::now();
            while asked.elapsed() < PATIENCE && self.status.is_none() {
                std::thread::sleep(Duration::from_millis(5));
                self.status = process.try_wait().context("cannot wait for the command")?;
            }
            // Dropping kills what is left.
            return Ok(0);
        }
        Ok(self.status.map_or(0, |status| {
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
        }))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let (Some(process), None) = (&mut self.process, self.status) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Child;

    fn run(command: &[&str]) -> u8 {
        let mut child =
            Child::start(&command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).unwrap();
        while !child.has_ended().unwrap() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.exit_code().unwrap()
    }

    #[test]
    fn exit_statuses_are_a_shells() {
        assert_eq!(run(&["true"]), 0);
        assert_eq!(run(&["sh", "-c", "exit 3"]), 3);
        assert_eq!(run(&["sh", "-c", "kill -TERM $$"]), 143);
        assert_eq!(Child::start(&[]).unwrap().exit_code().unwrap(), 0);
        assert_eq!(Child::start(&["sleep".to_owned(), "60".to_owned()]).unwrap().exit_code().unwrap(), 0);
        assert!(Child::start(&["/nonexistent".to_owned()]).is_err());
    }
}
