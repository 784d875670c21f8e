// SPDX-License-Identifier: MIT
//! `cargo xtask bench`: what exitregs costs, beside what others cost that do a part of the same.

mod overhead;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure what watching exits and reporting on them costs
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Overhead(overhead::Arguments),
    Report(report::Arguments),
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Overhead(arguments) => overhead::run(arguments),
        What::Report(arguments) => report::run(arguments),
    }
}
