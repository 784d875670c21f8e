// SPDX-License-Identifier: MIT
//! The project's own programs as static release binaries, for emulated hosts and for distribution.

use std::collections::BTreeMap;
use std::env;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

/// The target that static binaries are built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The lab's own programs.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Process 1 of an emulated host.
    pub init: PathBuf,
    /// All programs of the package by name, `exitregs-lab-init` among them.
    pub all: BTreeMap<String, PathBuf>,
}

/// Builds the lab's programs, once per process.
///
/// # Errors
/// If cargo fails; its messages are in the error or, if that is a terminal, on standard error.
pub fn lab() -> Result<Lab> {
    let all = programs("exitregs-lab")?;
    let init = all.get("exitregs-lab-init").context("exitregs-lab has no program exitregs-lab-init")?.clone();
    Ok(Lab { init, all })
}

/// Builds the `exitregs` command, once per process, and returns its path.
///
/// # Errors
/// If cargo fails; its messages are in the error or, if that is a terminal, on standard error.
pub fn tool() -> Result<PathBuf> {
    programs("exitregs")?.remove("exitregs").context("the package exitregs has no program exitregs")
}

/// The top folder of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("lab/ lies in the workspace")
}

/// The folder for everything that is built: `target/` unless `CARGO_TARGET_DIR` names another.
pub fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The programs of a package of the workspace by name, built on the first call for it.
///
/// # Errors
/// If cargo fails; its messages are in the error or, if that is a terminal, on standard error.
pub fn programs(package: &str) -> Result<BTreeMap<String, PathBuf>> {
    static BUILT: Mutex<BTreeMap<String, BTreeMap<String, PathBuf>>> = Mutex::new(BTreeMap::new());
    // A panic while it was held cannot have left the map half changed: it is written in one go.
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(programs) = built.get(package) {
        return Ok(programs.clone());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--bins", "--message-format=json-render-diagnostics"]);
    command.args(["--package", package, "--target", TARGET]);
    // A folder of its own: cargo may be running in the usual one right now, waiting for this very process.
    command.arg("--target-dir").arg(target_folder().join("static"));
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.current_dir(workspace()).stdin(Stdio::null());
    // A person sees cargo's progress; for a program that reads our messages, cargo's are noise unless it fails.
    if std::io::stderr().is_terminal() {
        command.stderr(Stdio::inherit());
    }
    let output =
        command.output().with_context(|| format!("cannot run cargo in {}", workspace().display()))?;
    ensure!(
        output.status.success(),
        "cannot build the static binaries of {package}\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );

    let mut programs = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).context("cargo's messages are no JSON")?;
        if let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str())
        {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    built.insert(package.to_owned(), programs.clone());
    Ok(programs)
}
