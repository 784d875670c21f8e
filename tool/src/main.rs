// SPDX-License-Identifier: MIT
//! The `exitregs` command.

use clap::Parser;
use exitregs::cli::{Cli, Command};
use exitregs::commands::{self, doctor, events, exit_status, generate, record, report, stat, trace, views};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Trace(arguments) => trace::run(arguments),
        Command::Stat(arguments) => stat::run(arguments),
        Command::Record(arguments) => record::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Events(arguments) => events::run(arguments),
        Command::Views(arguments) => views::run(arguments),
        Command::Generate(arguments) => generate::run(arguments).map(|()| 0),
    };
    match result {
        Ok(status) => status.into(),
        Err(error) => {
            let status = exit_status(&error);
            if status != 0 {
                commands::complain(&error);
            }
            status.into()
        }
    }
}
