// SPDX-License-Identifier: MIT
//! `cargo xtask setup`: installs what building and testing need.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use exitregs_lab::host::Kernel;
use exitregs_lab::host::kernel::rust;
use exitregs_lab::host::requirements::{self, AMD, INTEL, KERNEL_BUILD, PERF_BUILD, Requirement};

/// Install what building and testing need: Debian packages, rustup components, kernels
///
/// Does nothing when all of it is there. The other commands do this by themselves.
#[derive(Args)]
pub struct Arguments {
    /// Also look for newer versions of the kernels
    #[arg(long)]
    update: bool,
}

/// What building the tool needs: libbpf is compiled from source and linked with a static libelf and zlib.
pub const BUILD: [Requirement; 7] = [
    Requirement::new("clang", "clang"),
    Requirement::new("gcc", "gcc"),
    Requirement::new("make", "make"),
    Requirement::new("pkg-config", "pkg-config"),
    Requirement::new("/usr/include/libelf.h", "libelf-dev"),
    Requirement::new("/usr/include/zlib.h", "zlib1g-dev"),
    Requirement::new("/usr/include/linux/bpf.h", "linux-libc-dev"),
];

/// The programs whose view of an event the tests, and whose cost the benchmarks, compare with ours.
pub const PEERS: [Requirement; 4] = [
    Requirement::new("bpftool", "bpftool"),
    Requirement::new("bpftrace", "bpftrace"),
    Requirement::new("perf", "linux-perf"),
    Requirement::new("trace-cmd", "trace-cmd"),
];

/// Subcommand of cargo and the rustup component that has it.
const COMPONENTS: [(&str, &str); 2] = [("fmt", "rustfmt"), ("clippy", "clippy")];

/// Installs everything and says what was done.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let done = all(arguments.update)?;
    let what = if done.is_empty() {
        "nothing to install".to_owned()
    } else {
        format!("installed {}", done.join(", "))
    };
    eprintln!("setup: {what} ({:.1} s)", start.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing of everything and returns its names.
pub fn all(update_kernels: bool) -> Result<Vec<String>> {
    let requirements = [&BUILD[..], &AMD, &INTEL, &PEERS, &KERNEL_BUILD, &PERF_BUILD].concat();
    let packages = requirements::install(&requirements)?;
    let mut done: Vec<_> = packages.into_iter().chain(components()?).map(str::to_owned).collect();
    done.extend(rust::install()?);
    for kernel in Kernel::STOCK {
        let cached = kernel.cached()?.map(|image| image.release);
        let image = if update_kernels { kernel.fetch()? } else { kernel.image()? };
        if cached.as_ref() != Some(&image.release) {
            done.push(format!("Linux {}", image.release));
        }
    }
    Ok(done)
}

/// Installs the rustup components that are missing and returns their names.
fn components() -> Result<Vec<&'static str>> {
    let mut done = Vec::new();
    for (subcommand, component) in COMPONENTS {
        let probe = crate::cargo()
            .args([subcommand, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !probe.context("cannot run cargo")?.success() {
            eprintln!("rustup component add {component}");
            let status =
                Command::new("rustup").args(["component", "add", component]).stdout(Stdio::null()).status();
            let status = status.with_context(|| {
                format!(
                    "`cargo {subcommand}` is missing and so is rustup: install {component} as you did cargo"
                )
            })?;
            ensure!(status.success(), "`rustup component add {component}` failed");
            done.push(component);
        }
    }
    Ok(done)
}
