// SPDX-License-Identifier: MIT
//! `cargo xtask lab`: runs a command inside an emulated host.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use exitregs_lab::binaries;
use exitregs_lab::host::requirements::{self, AMD, INTEL};
use exitregs_lab::host::{Command, Emulator, Host, Kernel, Kvm, Status};

use crate::setup;

/// Run a command inside an emulated host
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    vendor: Vendor,
}

#[derive(Subcommand)]
enum Vendor {
    Amd(Amd),
    Intel(Intel),
}

/// On an AMD host with nested virtualization, emulated by QEMU
///
/// The programs of this checkout are built and put into the PATH of the emulated host. CMD runs there as root; its
/// output and its exit status become those of this command (124 if the time limit ended it).
#[derive(Args)]
struct Amd {
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    smp: u32,
    /// Memory
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// Let the clock count instructions, 1 ns each: costs become repeatable
    #[arg(long)]
    icount: bool,
    #[command(flatten)]
    run: Run,
}

/// On an Intel host with nested virtualization, emulated by Bochs
///
/// As on the AMD host, but slower: it takes half a minute to boot. It has one CPU, and its time passes with the
/// instructions that are executed.
#[derive(Args)]
struct Intel {
    /// Memory
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(512..=2048))]
    memory: u32,
    #[command(flatten)]
    run: Run,
}

/// What to run, whatever the vendor.
#[derive(Args)]
struct Run {
    /// Debian's own: 6.1 or 6.12; or built here: v6.12 or mainline, with +patched or +patched@N for the series of patches/
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// Do not load KVM (modprobe can, inside)
    #[arg(long)]
    no_kvm: bool,
    /// Take a program of this machine along, with its shared libraries
    #[arg(long, value_name = "PROGRAM")]
    with: Vec<PathBuf>,
    /// Take a file or a folder along
    #[arg(long, value_name = "LOCAL:INSIDE")]
    file: Vec<FileInto>,
    /// Bring a file, a folder or what matches a glob pattern back, into the folder that -o names
    #[arg(long, value_name = "PATH", requires = "output")]
    get: Vec<String>,
    /// Folder for what --get brings back, at the paths that it had
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Time limit for the command
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Leave the programs of this checkout out
    #[arg(long)]
    bare: bool,
    /// Show the command's output while it runs
    #[arg(long)]
    live: bool,
    /// Program to run inside, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

/// A file of this machine and its place in the emulated one.
#[derive(Clone, Debug)]
struct FileInto {
    local: PathBuf,
    inside: PathBuf,
}

impl FromStr for FileInto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some((local, inside)) if inside.starts_with('/') => {
                Ok(Self { local: local.into(), inside: inside.into() })
            }
            _ => Err("expected a path here, a colon, and an absolute path inside".to_owned()),
        }
    }
}

/// Runs the command; its status is the result's.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let vendor: &[_] = match arguments.vendor {
        Vendor::Amd(_) => &AMD,
        Vendor::Intel(_) => &INTEL,
    };
    requirements::install(&[vendor, &setup::BUILD].concat())?;
    match arguments.vendor {
        Vendor::Amd(Amd { smp, memory, icount, run }) => {
            on(Host::amd(run.kernel).smp(smp).memory_mib(memory).icount(icount), run)
        }
        Vendor::Intel(Intel { memory, run }) => on(Host::intel(run.kernel).memory_mib(memory), run),
    }
}

fn on<E: Emulator>(host: Host<E>, run: Run) -> Result<ExitCode> {
    let mut host = host
        .kvm(if run.no_kvm { Kvm::NotLoaded } else { Kvm::Loaded })
        .time_limit(Duration::from_secs(run.timeout))
        .live(run.live);
    if !run.bare {
        for program in [binaries::programs("exitregs")?, binaries::lab()?.all]
            .into_iter()
            .flat_map(BTreeMap::into_values)
        {
            let inside = Path::new("/usr/bin").join(program.file_name().context("a program has no name")?);
            host = host.file(program, inside);
        }
    }
    for program in run.with {
        host = host.program(program);
    }
    for FileInto { local, inside } in run.file {
        host = host.file(local, inside);
    }
    for pattern in run.get {
        host = host.get(pattern);
    }

    let outcome = host.run(Command::new(run.command))?;
    if !run.live {
        io::stdout().write_all(&outcome.last().stdout)?;
        io::stderr().write_all(&outcome.last().stderr)?;
    }
    for warning in outcome.kernel_warnings() {
        eprintln!("lab: the kernel says: {warning}");
    }
    if let Some(output) = run.output {
        copy_folder(&outcome.files.root(), &output)?;
    }
    for missing in outcome.files.missing() {
        eprintln!("lab: not brought back: {missing}");
    }
    let status = outcome.status();
    if !matches!(status, Status::Code(_)) {
        eprintln!("lab: {status}");
    }
    Ok(match status.shell_code() {
        0 if !outcome.files.missing().is_empty() => ExitCode::FAILURE,
        code => ExitCode::from(code),
    })
}

/// Copies what is in `from`, if it exists, into `to`.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    if !from.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy_folder(&entry, &target)?;
        } else {
            fs::copy(&entry, &target).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}
