// SPDX-License-Identifier: MIT
//! Runs a command and says what it took.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use wait4::Wait4;

/// What a run took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Seconds from the start to the end.
    pub wall_s: f64,
    /// Seconds of all CPUs, user and system, of all processes of the command.
    pub cpu_s: f64,
    /// MiB that its largest process had in memory; not less than this program, which it is forked from, has.
    pub peak_mib: u64,
}

impl Measured {
    /// The middle of each; there is one at least.
    pub fn median(runs: Vec<Self>) -> Self {
        let middle = |of: fn(&Self) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self {
            wall_s: middle(|run| run.wall_s),
            cpu_s: middle(|run| run.cpu_s),
            peak_mib: runs.iter().map(|run| run.peak_mib).max().unwrap_or(0),
        }
    }
}

/// Runs a shell's `command`, in which `FILE` stands for `file`, with `tool` in its `PATH`; what it prints is thrown away.
///
/// # Errors
/// It cannot be started, or fails.
pub fn once(command: &str, file: &Path, tool: &Path) -> Result<Measured> {
    let tools = tool.parent().map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(tools.into_iter().chain(env::split_paths(&path)))?;
    let line = command.replace("FILE", "\"$FILE\"");
    let begun = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", &line])
        .env("PATH", path)
        .env("FILE", file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {command}"))?;
    let used = child.wait4().with_context(|| format!("cannot wait for {command}"))?;
    let wall_s = begun.elapsed().as_secs_f64();
    ensure!(
        used.status.success(),
        "{}: {}",
        line.replace("\"$FILE\"", &file.display().to_string()),
        used.status
    );
    let usage = used.rusage;
    Ok(Measured {
        wall_s,
        cpu_s: (usage.utime + usage.stime).as_secs_f64(),
        peak_mib: usage.maxrss / (1 << 20),
    })
}
