// SPDX-License-Identifier: MIT
//! Bytes of an exit in a recording.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use exitregs_lab::binaries;
use serde::{Deserialize, Serialize};

use super::File;
use super::inputs::Inputs;

/// Bytes of a recording of the same exits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sizes {
    /// What is different.
    what: String,
    exits: u64,
    bytes: u64,
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} bytes an exit, {}", self.bytes as f64 / self.exits as f64, self.what)
    }
}

/// Those of the recording as it is, and of others that are made of it.
pub fn of(inputs: &Inputs) -> Result<Vec<Sizes>> {
    const PROGRAM: &str = "exitregs-recording-sizes";
    let program = binaries::programs("exitregs-tests")?.remove(PROGRAM);
    let program = program.with_context(|| format!("the tests have no program {PROGRAM}"))?;
    let output = Command::new(program).arg(inputs.path(File::Recording)).output();
    let output = output.with_context(|| format!("cannot run {PROGRAM}"))?;
    ensure!(output.status.success(), "{PROGRAM}: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).with_context(|| format!("{PROGRAM} printed nonsense"))
}
