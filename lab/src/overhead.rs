// SPDX-License-Identifier: MIT
//! What watching exits costs: the contract between `cargo xtask bench overhead`, which knows what is to be compared, and
//! `exitregs-lab-overhead`, which measures it inside an emulated host.
//!
//! The host's clock counts executed instructions, 1 ns each ([`Amd::icount`](crate::host::Amd::icount)), so every time
//! here is a number of instructions.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::script::Script;

/// Where the plan lies inside the emulated host.
pub const PLAN_PATH: &str = "/exitregs-lab/overhead.json";
/// Where the driver writes what it measured: one [`Measured`] as JSON per line, in the order of the plan.
pub const RESULT_PATH: &str = "/tmp/overhead.jsonl";
/// Folder of the tracefs instance in which a configuration's [`Setting`]s are made. It lives as long as that is measured.
pub const INSTANCE: &str = "/sys/kernel/tracing/instances/overhead";

/// Everything to measure in one boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What the guest does.
    pub workloads: Vec<Workload>,
    /// Ways of watching it, each measured with every workload.
    pub configurations: Vec<Configuration>,
    /// Measured runs of each workload, after one that warms up.
    pub runs: u32,
}

/// A guest that exits often and the same way each time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// What it does. All that it logs must fit in the guest's memory at once: only then is the end of its run seen before
    /// anything else is done.
    pub script: Script,
}

/// A way of watching exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Its name.
    pub name: String,
    /// Install the dynamic events before all else, and remove them at the end.
    pub dynamic_events: bool,
    /// Made in order, before the watcher starts.
    pub settings: Vec<Setting>,
    /// The program that watches.
    pub watcher: Option<Watcher>,
    /// Files to bring back after the last run, before the watcher is stopped and the settings are undone; relative paths
    /// are the instance's.
    pub evidence: Vec<String>,
}

/// A write to a file of the tracefs instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Path inside the instance.
    pub file: String,
    /// What to write.
    pub value: String,
}

/// A program that runs beside the guest; SIGINT ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Where its standard output goes; by default it is kept and comes back.
    pub stdout: Option<String>,
    /// Capabilities that it has as an ordinary user; by default it is root.
    pub capabilities: Option<Vec<String>>,
}

/// What a configuration cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// By workload, in the order of the plan.
    pub workloads: Vec<Vec<Run>>,
    /// What the watcher printed: standard output, standard error.
    pub output: [String; 2],
    /// Content of the files asked for, in order.
    pub evidence: Vec<String>,
    /// Exits since the settings were made, warm-up included.
    pub all_exits: u64,
}

/// One run of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Instructions of the vCPU's thread: the guest's own, KVM's, and what is done there to watch.
    pub vcpu: u64,
    /// Instructions of the machine in the same time: also those of the watcher.
    pub machine: u64,
    /// VM exits (KVM's own count).
    pub exits: u64,
}

/// The path of a file of the tracefs instance; an absolute path stays what it is.
pub fn in_instance(file: &str) -> std::path::PathBuf {
    Path::new(INSTANCE).join(file)
}
