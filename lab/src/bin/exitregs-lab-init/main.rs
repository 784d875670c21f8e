// SPDX-License-Identifier: MIT
//! Process 1 of an emulated host: brings the system up, does its job, writes the answer, powers off.
//!
//! Started with arguments it is the step between process 1 and a command that runs as another user: see
//! [`privileges`].

mod answer;
mod commands;
mod privileges;
mod system;

use std::convert::Infallible;
use std::process::ExitCode;

use anyhow::{Context, Result};
use exitregs_lab::host::job::{self, Job};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if std::process::id() != 1 {
        let Err(error) = privileges::exec(&mut arguments);
        eprintln!("exitregs-lab-init: {error:#}");
        return ExitCode::from(127);
    }
    if let Err(error) = run() {
        println!("{}{error:#}", job::INIT_ERROR);
    }
    // An emulator need not send what a serial line still holds when the machine is switched off. If this fails, there is
    // no console to say so on.
    let _ = tcdrain(std::io::stdout());
    // Reached only if it fails; when process 1 exits the kernel panics, which the other side sees.
    let Err::<Infallible, _>(error) = reboot(RebootMode::RB_POWER_OFF);
    println!("{}cannot power off: {error}", job::INIT_ERROR);
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    system::mount_all()?;
    let text = std::fs::read(job::JOB_PATH).with_context(|| format!("cannot read {}", job::JOB_PATH))?;
    let job: Job = serde_json::from_slice(&text).context("cannot understand the job")?;
    system::load_modules(&job.modules)?;
    system::raise_loopback()?;
    let finished = commands::run_all(&job)?;
    answer::write(&job, finished)
}
