// SPDX-License-Identifier: MIT
//! `cargo xtask patches`: whether the series of `patches/` are fit to be sent.

mod base;
mod check;
mod checkpatch;
mod compile;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Check the patch series
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Arguments),
}

/// Runs the subcommand.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Check(arguments) => check::run(arguments),
    }
}
