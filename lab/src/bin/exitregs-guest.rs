// SPDX-License-Identifier: MIT
//! A KVM guest that executes a script of VM exits at L1 and at L2 and writes what it did.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, Parser, error::ErrorKind};
use exitregs_lab::guest::vmm::{self, Config, Truth, Vm};
use exitregs_lab::script::{self, BUILTIN, Script};

/// Runs a KVM guest whose L1 and L2s do a script of VM exits, and writes the ground truth: one line of JSON for each
/// instruction that exits, with RAX, RBX, RCX and RDX before and after it.
///
/// Exit status: 0 if the guest did its script, 1 if not, 2 for misuse.
#[derive(Parser, Debug)]
#[command(name = "exitregs-guest", version)]
struct Arguments {
    /// A built-in script.
    #[arg(long, value_name = "NAME", group = "what", default_value = "basic")]
    script: String,

    /// A script in a file (JSON).
    #[arg(long, value_name = "FILE", group = "what")]
    file: Option<PathBuf>,

    /// A script made from this number.
    #[arg(long, value_name = "SEED", group = "what")]
    random: Option<u64>,

    /// Instructions of a random script.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "random")]
    ops: u32,

    /// Turns of the script, instead of its own number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,

    /// vCPUs; each does the whole script, with register values of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: u32,

    /// Where the truth goes; by default to standard output.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,

    /// When the VM is ready, wait until this file exists.
    #[arg(long, value_name = "FILE")]
    wait_for: Option<PathBuf>,

    /// When the VM is ready, wait for a line on standard input.
    #[arg(long)]
    start_on_line: bool,

    /// When the VM is ready, wait so many seconds.
    #[arg(long, value_name = "SECONDS")]
    delay: Option<f64>,

    /// Give up after so many seconds, the waiting not counted.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,

    /// Kill this process (SIGKILL) in the middle of the script.
    #[arg(long)]
    die_midway: bool,

    /// List the built-in scripts.
    #[arg(long, group = "what")]
    list: bool,

    /// Print the script instead of running it.
    #[arg(long)]
    print: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exitregs-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for builtin in BUILTIN {
            println!("{:<18} {}", builtin.name, builtin.script()?.description);
        }
        return Ok(());
    }
    let script = choose(arguments)?;
    if arguments.print {
        serde_json::to_writer_pretty(io::stdout().lock(), &script)?;
        println!();
        return Ok(());
    }
    let config = Config {
        vcpus: arguments.vcpus,
        repeat: arguments.repeat.unwrap_or(script.repeat),
        timeout: seconds(arguments.timeout, "--timeout"),
        die_midway: arguments.die_midway,
        script,
    };
    let vm = Vm::new(&config)?;
    let truth: Truth = match &arguments.truth {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write the truth to {}", path.display()))?;
            Arc::new(Mutex::new(BufWriter::with_capacity(1 << 20, file)))
        }
        None => Arc::new(Mutex::new(BufWriter::new(io::stdout()))),
    };
    eprintln!("ready {}", std::process::id());
    wait(arguments)?;
    vm.run(&truth)
}

fn choose(arguments: &Arguments) -> Result<Script> {
    let isa = vmm::host_isa();
    let script = if let Some(path) = &arguments.file {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a script", path.display()))?
    } else if let Some(seed) = arguments.random {
        script::random(seed, arguments.ops, isa)
    } else {
        let Some(builtin) = BUILTIN.iter().find(|builtin| builtin.name == arguments.script) else {
            misuse(&format!("there is no script {:?}; --list shows them all", arguments.script));
        };
        builtin.script()?
    };
    script.check(isa).context("the script is not possible")?;
    Ok(script)
}

fn wait(arguments: &Arguments) -> Result<()> {
    if arguments.start_on_line {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line).context("cannot read standard input")?;
        ensure!(read > 0, "standard input ended before a line came");
    }
    if let Some(path) = &arguments.wait_for {
        while !path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
            thread::sleep(Duration::from_millis(10));
        }
    }
    if let Some(delay) = arguments.delay {
        let end = Instant::now() + seconds(delay, "--delay");
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::sleep(left);
        }
    }
    Ok(())
}

fn seconds(value: f64, option: &str) -> Duration {
    Duration::try_from_secs_f64(value)
        .unwrap_or_else(|_| misuse(&format!("{option}: {value} is no number of seconds")))
}

fn misuse(message: &str) -> ! {
    Arguments::command().error(ErrorKind::InvalidValue, message).exit()
}
