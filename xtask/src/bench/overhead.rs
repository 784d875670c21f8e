// SPDX-License-Identifier: MIT
//! `cargo xtask bench overhead`: instructions that a VM exit costs more because somebody watches.

mod outcome;
mod ways;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use exitregs_lab::binaries;
use exitregs_lab::host::requirements::{self, AMD};
use exitregs_lab::host::{Command, Host, Kernel};
use exitregs_lab::module;
use exitregs_lab::overhead::{Measured, PLAN_PATH, Plan, RESULT_PATH, Workload};
use exitregs_lab::script::{Guest, Op, Script, Step, Value};

use crate::setup;
use outcome::Report;
use ways::{Needs, UNTRACED, Way};

/// Instructions that a VM exit costs more because somebody watches: exitregs beside perf, bpftrace and the kernel's own
///
/// An emulated AMD host, whose clock counts executed instructions, runs the same guest once for each way of watching.
/// docs/benchmarks.md has the method and a full result.
#[derive(Args)]
pub struct Arguments {
    /// Debian's kernel of this series: 6.1 or 6.12
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// Only the ways whose name contains this, besides what all are compared with
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Exits of a run
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1000..=25_000))]
    exits: u32,
    /// Runs of each workload, after one that warms up; their median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Time limit for all of it
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

/// A workload and how it is called.
pub struct Work {
    /// In the table.
    pub name: &'static str,
    /// In sentences.
    pub description: &'static str,
    workload: Workload,
}

/// What the guest does. Each is bounded by 25,000 exits, which fit in its log at once.
fn works(exits: u32) -> [Work; 2] {
    let step = |op| Step { op, set: Default::default(), dirty: false, l1: None, times: 1 };
    let script = |description: &str, guests: Vec<Guest>, op, repeat| Script {
        description: description.to_owned(),
        guests,
        steps: vec![step(op)],
        repeat,
    };
    let cpuid = Op::Cpuid { leaf: 0.into(), subleaf: 0.into() };
    // Each is two exits: L2's, and the VMRUN with which L1 goes back to it.
    let hypercall = Op::Hypercall { nr: Value::fixed(5), args: Vec::new() };
    let l2 = Op::L2 { guest: 0, repeat: exits / 2, steps: vec![step(hypercall)] };
    [
        Work {
            name: "L1",
            description: "L1's cpuid, which KVM handles",
            workload: Workload { script: script("cpuid at L1", Vec::new(), cpuid, exits) },
        },
        Work {
            name: "L2",
            description: "L2's vmmcall, which KVM passes on to L1, and L1's vmrun",
            workload: Workload { script: script("vmmcall at L2", vec![Guest::default()], l2, 1) },
        },
    ]
}

/// Where the module lies on the host.
const MODULE: &str = "/kvm_exitregs.ko";

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    requirements::install(&[&AMD[..], &setup::BUILD, &setup::PEERS].concat())?;
    let ways: Vec<Way> = ways::all()
        .into_iter()
        .filter(|way| match way.needs {
            Needs::Nothing => true,
            Needs::Patches => arguments.kernel.to_string().contains("+patched"),
            Needs::Module => matches!(arguments.kernel, Kernel::Built(_)),
            // Where the module is loaded it has the events' names.
            Needs::DynamicEvents => arguments.kernel == Kernel::Stock6_12,
        })
        .filter(|way| {
            let name = way.name.to_lowercase();
            arguments.only.is_empty()
                || way.name == UNTRACED
                || way.reference
                || arguments.only.iter().any(|only| name.contains(&only.to_lowercase()))
        })
        .collect();
    for only in &arguments.only {
        ensure!(
            ways.iter().any(|way| way.name.to_lowercase().contains(&only.to_lowercase())),
            "no way of watching is called {only:?}; there are: {}",
            ways::all().iter().map(|way| way.name).collect::<Vec<_>>().join(", ")
        );
    }
    let works = works(arguments.exits);
    let plan = Plan {
        workloads: works.iter().map(|work| work.workload.clone()).collect(),
        configurations: ways.iter().map(Way::configuration).collect(),
        runs: arguments.runs,
    };

    let release = arguments.kernel.image()?.release;
    let plan_file = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
    serde_json::to_writer(&plan_file, &plan)?;
    let mut host = Host::amd(arguments.kernel)
        .icount(true)
        .memory_mib(3072)
        .time_limit(Duration::from_secs(arguments.timeout))
        .file(plan_file.path(), PLAN_PATH)
        .get(RESULT_PATH)
        .live(true);
    for program in binaries::programs("exitregs")?.into_values().chain(binaries::lab()?.all.into_values()) {
        let inside = Path::new("/usr/bin").join(program.file_name().context("a program has no name")?);
        host = host.file(program, inside);
    }
    for program in ways.iter().filter_map(|way| way.program) {
        host = host.program(program);
    }
    let mut commands = vec![Command::new(["exitregs-lab-overhead"])];
    if let Kernel::Built(kernel) = arguments.kernel {
        host = host.file(module::build(kernel)?, MODULE);
        commands.insert(0, Command::new(["insmod", MODULE]));
    }
    eprintln!(
        "bench: measuring {} ways of watching on Linux {release}; each takes some seconds to a minute",
        ways.len()
    );
    let outcome = host.run_each(commands)?;
    // Their words have come through while they ran.
    outcome
        .commands
        .iter()
        .try_for_each(|command| command.check().map(drop))
        .context("the measurement failed")?;
    let text = outcome.files.read(RESULT_PATH)?;
    let measured = serde_json::Deserializer::from_slice(&text)
        .into_iter()
        .collect::<Result<Vec<Measured>, _>>()
        .context("the emulated host sent a damaged result")?;

    let report = Report::new(release, &works, &ways, &measured)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}
