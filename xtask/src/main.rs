// SPDX-License-Identifier: MIT
//! `cargo xtask`: the developer commands of this repository.

mod bench;
mod demo;
mod dist;
mod lab;
mod module;
mod patches;
mod setup;
mod test;

use std::process::{self, ExitCode};

use clap::{Parser, Subcommand};
use exitregs_lab::binaries;

/// Develop, test and release exitregs
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Setup(setup::Arguments),
    Test(test::Arguments),
    Soak(test::SoakArguments),
    Lab(lab::Arguments),
    Module(module::Arguments),
    Dist(dist::Arguments),
    Bench(bench::Arguments),
    Patches(patches::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Soak(arguments) => test::soak(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
        Command::Module(arguments) => module::run(&arguments),
        Command::Dist(arguments) => dist::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Patches(arguments) => patches::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// The cargo that runs this, in the top folder of the checkout.
fn cargo() -> process::Command {
    let mut command = process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(binaries::workspace());
    command
}
