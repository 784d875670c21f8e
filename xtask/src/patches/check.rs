// SPDX-License-Identifier: MIT
//! `cargo xtask patches check`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use exitregs_lab::cache;
use exitregs_lab::host::Base;
use exitregs_lab::host::kernel::config::KvmAs;
use exitregs_lab::host::requirements::{self, KERNEL_BUILD, KERNEL_CLANG, PERF_BUILD};
use exitregs_lab::patches::Series;

use super::base::Applied;
use super::checkpatch;
use super::compile::{Compilation, Compiler, Target, is_text};

/// Whether the series apply to the base that they name, please checkpatch.pl, and compile commit by commit
///
/// KVM is compiled with W=1 and warnings as errors, with gcc and clang, built in and as modules, and at the end of the
/// series with PROVE_LOCKING; selftests and perf as far as a series has to do with them. Prints what is wrong; the exit
/// status is 1 if anything is.
#[derive(Args)]
pub struct Arguments {
    /// Only these: mainline, v6.12, perf
    #[arg(value_name = "SERIES", value_parser = ["mainline", "v6.12", "perf"])]
    series: Vec<String>,
    /// Compile each commit once: gcc, KVM built in; of perf only the files that are touched
    #[arg(long)]
    quick: bool,
}

/// Checks the series one after the other.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let all = ["mainline", "v6.12", "perf"].map(str::to_owned);
    let names = if arguments.series.is_empty() { &all[..] } else { &arguments.series };
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let findings =
            check(name, arguments.quick).with_context(|| format!("cannot check the series {name}"))?;
        for finding in &findings {
            println!("{finding}");
            code = ExitCode::FAILURE;
        }
        println!("{name}: {}", if findings.is_empty() { "ok" } else { "NOT ok" });
    }
    Ok(code)
}

/// Returns what is wrong with a series.
fn check(name: &str, quick: bool) -> Result<Vec<String>> {
    let base = Base::ALL.into_iter().find(|base| base.name() == name).unwrap_or(Base::Mainline);
    let targets = targets(name, quick);
    let clang = if quick { &[][..] } else { &KERNEL_CLANG };
    requirements::install(&[&KERNEL_BUILD[..], clang, &PERF_BUILD].concat())?;
    let source = base.source()?;
    let series = Series::read(name)?;
    let folder = cache::folder(&format!("check/{name}"))?;
    let _lock = cache::lock(&folder)?;

    let start = Instant::now();
    let applied = match Applied::new(&source, &series) {
        Ok(applied) => applied,
        Err(error) => return Ok(vec![format!("{name}: {error:#}")]),
    };
    progress(name, "git am", start);
    let start = Instant::now();
    let mut findings = checkpatch::check(&source, &series)?;
    progress(name, "checkpatch", start);

    for path in &applied.touched {
        let known = is_text(path) || targets.iter().any(|(target, _)| target.concerns(path));
        ensure!(known, "nobody knows how to compile {}", path.display());
    }
    for (target, commits) in targets {
        let start = Instant::now();
        let compilation = Compilation::prepare(&folder, base, &source, target)?;
        progress(name, &format!("{target}: prepared"), start);
        for (number, commit) in (1..).zip(&applied.commits) {
            let wanted = match commits {
                Commits::Last => number == applied.commits.len(),
                Commits::Each => applied.changed(commit)?.iter().any(|path| target.concerns(path)),
            };
            if !wanted {
                continue;
            }
            let start = Instant::now();
            if let Err(error) = compilation.compile(&applied, commit) {
                findings.push(format!("{name}/{number} {target}: {error:#}"));
            }
            progress(name, &format!("{target}: {number}/{}", applied.commits.len()), start);
        }
    }
    Ok(findings)
}

/// Which commits are compiled.
#[derive(Clone, Copy, Debug)]
enum Commits {
    /// All that change something of the target.
    Each,
    /// The last one.
    Last,
}

/// What is compiled of a series.
fn targets(name: &str, quick: bool) -> Vec<(Target, Commits)> {
    let kvm = |compiler, kvm_as| (Target::Kvm { compiler, kvm_as, prove_locking: false }, Commits::Each);
    match (name, quick) {
        ("perf", true) => vec![(Target::PerfFiles, Commits::Each)],
        ("perf", false) => vec![(Target::Perf, Commits::Each)],
        (_, true) => vec![kvm(Compiler::Gcc, KvmAs::BuiltIn), (Target::Selftests, Commits::Each)],
        (_, false) => {
            let locking =
                Target::Kvm { compiler: Compiler::Gcc, kvm_as: KvmAs::BuiltIn, prove_locking: true };
            vec![
                kvm(Compiler::Gcc, KvmAs::BuiltIn),
                kvm(Compiler::Gcc, KvmAs::Modules),
                kvm(Compiler::Clang, KvmAs::BuiltIn),
                kvm(Compiler::Clang, KvmAs::Modules),
                (locking, Commits::Last),
                (Target::Selftests, Commits::Each),
            ]
        }
    }
}

fn progress(name: &str, what: &str, start: Instant) {
    eprintln!("patches: {name}: {what} ({:.1} s)", start.elapsed().as_secs_f32());
}
