// SPDX-License-Identifier: MIT
//! `cargo xtask demo`: the main job, shown on real exits.

use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use exitregs_lab::binaries;
use exitregs_lab::host::requirements::{self, AMD};
use exitregs_lab::host::{Command, Host, Kernel};

use crate::setup;

/// See every exit's registers: installs, builds, runs a nested guest, and shows its exits
///
/// On a host with nested virtualization, as root, the guest runs right here; elsewhere on an emulated AMD host.
#[derive(Args)]
pub struct Arguments {
    /// Use the emulated host even if this one would do
    #[arg(long)]
    lab: bool,
    /// Debian's kernel of this series for the emulated host: 6.1 or 6.12
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
}

/// The script that the guest runs: L1 and L2 with MSRs, hypercalls, CPUID and port I/O.
const GUEST: &str = "exitregs-guest --script demo --truth /dev/null 2>/dev/null";

/// One thing to show: a heading, what is run, and whether a failure spoils the demo.
struct Scene {
    heading: &'static str,
    shown: &'static str,
    line: String,
}

fn scenes() -> [Scene; 2] {
    [
        Scene {
            heading: "Where do the exits of a nested guest go? Counted and timed in the kernel:",
            shown: "exitregs stat -n 15 -- GUEST",
            line: format!("exitregs stat -n 15 -- sh -c '{GUEST} --repeat 200'"),
        },
        Scene {
            heading: "And what exactly did it do? MSRs and hypercalls of L1 and L2, with results:",
            shown: "exitregs trace -n 20 --view msr,hypercall --hypercall-abi kvm -- GUEST",
            line: format!(
                "exitregs trace -n 20 --view msr,hypercall --hypercall-abi kvm -- sh -c 'exec {GUEST} --repeat 2' 2>/dev/null"
            ),
        },
    ]
}

/// Runs the demo.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut steps = Steps::new(4);
    steps.next("installing what is needed (Debian packages; nothing if all is there)");
    requirements::install(&setup::BUILD)?;

    steps.next("building exitregs and the scripted guest (a minute or two the first time)");
    let tool = binaries::tool()?;
    let guest =
        binaries::lab()?.all.remove("exitregs-guest").context("the lab has no program exitregs-guest")?;

    let here = !arguments.lab && works_here(&tool, &guest)?;
    if here {
        steps.next("this host can do it: it has nested virtualization, and we are root");
    } else {
        steps.next(
            "this host has no usable SVM or VMX, or we are not root: fetching an emulator and a stock Debian kernel",
        );
        requirements::install(&AMD)?;
        arguments.kernel.image()?;
    }
    steps.next(if here {
        "running the guest under exitregs"
    } else {
        "booting an emulated AMD host on that unmodified kernel and running the guest there (half a minute)"
    });
    let outputs = if here { run_here(&tool, &guest)? } else { run_in_lab(arguments.kernel, &tool, &guest)? };
    steps.done();

    let mut out = std::io::stdout().lock();
    for (scene, output) in scenes().iter().zip(outputs) {
        writeln!(out, "\n{}\n\n$ {}", scene.heading, scene.shown)?;
        out.write_all(&output)?;
    }
    writeln!(out, "\nWhat next?")?;
    for (command, what) in next_steps(here, &tool) {
        writeln!(out, "  {command}\n      {what}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn next_steps(here: bool, tool: &Path) -> Vec<(String, &'static str)> {
    let tool = tool.display();
    let mut next = vec![(format!("{tool} doctor"), "what this host can do, and what it lacks")];
    if here {
        next.push((format!("{tool} stat --level l2 --duration 5"), "what your own L2 guests exit for"));
        next.push((
            format!("{tool} trace --view msr-write -n 50"),
            "which MSRs your guests write, and with what",
        ));
    } else {
        let lab = "cargo xtask lab amd --live --";
        next.push((
            format!("{lab} exitregs trace -- exitregs-guest --script demo"),
            "every exit of the demo's guest",
        ));
        next.push((format!("{lab} exitregs-guest --list"), "the other scripts that the guest knows"));
    }
    next.push(("cargo xtask dist".to_owned(), "a tarball and a .deb for hosts without Rust"));
    next
}

/// Whether the guest can run here and its exits can be seen.
fn works_here(tool: &Path, guest: &Path) -> Result<bool> {
    let doctor = process::Command::new(tool).args(["doctor", "--json"]).output();
    let doctor = doctor.with_context(|| format!("cannot run {}", tool.display()))?;
    if !doctor.status.success() {
        return Ok(false);
    }
    // The guest itself knows best whether it can run: nested SVM, /dev/kvm, permissions.
    let guest = process::Command::new(guest).args(["--script", "demo", "--truth", "/dev/null"]).output();
    Ok(guest.is_ok_and(|output| output.status.success()))
}

fn run_here(tool: &Path, guest: &Path) -> Result<Vec<Vec<u8>>> {
    let mut folders: Vec<PathBuf> =
        [tool, guest].iter().filter_map(|path| Some(path.parent()?.to_owned())).collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(folders).context("a folder's name cannot be in PATH")?;
    let run = |scene: &Scene| {
        let mut command = process::Command::new("sh");
        command.arg0("sh").args(["-c", &scene.line]).env("PATH", &path);
        if colour() {
            command.env("CLICOLOR_FORCE", "1");
        }
        let output = command.output().context("cannot run a shell")?;
        ensure!(
            output.status.success(),
            "{}\n{}",
            scene.line,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output.stdout)
    };
    scenes().iter().map(run).collect()
}

fn run_in_lab(kernel: Kernel, tool: &Path, guest: &Path) -> Result<Vec<Vec<u8>>> {
    let host = Host::amd(kernel)
        .file(tool, "/usr/bin/exitregs")
        .file(guest, "/usr/bin/exitregs-guest")
        .time_limit(Duration::from_secs(300));
    let outcome = host.run_each(scenes().iter().map(|scene| {
        let command = Command::shell(&scene.line);
        if colour() { command.env("CLICOLOR_FORCE", "1") } else { command }
    }))?;
    outcome.commands.iter().map(|finished| Ok(finished.check()?.stdout.clone())).collect()
}

fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Says on standard error which step is under way, and how long each took.
struct Steps {
    number: u32,
    of: u32,
    begun: Option<Instant>,
}

impl Steps {
    fn new(of: u32) -> Self {
        Self { number: 0, of, begun: None }
    }

    fn next(&mut self, what: &str) {
        self.done();
        self.number += 1;
        eprintln!("[{}/{}] {what}", self.number, self.of);
        self.begun = Some(Instant::now());
    }

    fn done(&mut self) {
        if let Some(begun) = self.begun.take() {
            eprintln!("      done in {:.1} s", begun.elapsed().as_secs_f32());
        }
    }
}
