// SPDX-License-Identifier: MIT
//! `exitregs generate`: man pages and completions, from the same definitions as the command line.

use crate::cli::Cli;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

/// The arguments of `exitregs generate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where man/ and completions/ are made
    directory: PathBuf,
}

/// Runs it.
///
/// # Errors
/// A file cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (man, completions) = (arguments.directory.join("man"), arguments.directory.join("completions"));
    for directory in [&man, &completions] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    clap_mangen::generate_to(Cli::command(), &man)
        .with_context(|| format!("cannot write to {}", man.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "exitregs", &completions)
            .with_context(|| format!("cannot write to {}", completions.display()))?;
    }
    Ok(())
}
