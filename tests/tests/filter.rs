// SPDX-License-Identifier: MIT
//! Filters are applied in the kernel. While a guest runs, one trace takes everything and others what their filters
//! select: each of these must have exactly the exits of the first that the filter selects in user space.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs::filter::Filter;
use exitregs_common::event::{Event, KvmExit};
use exitregs_common::isa::Isa;
use exitregs_common::svm::ExitCode as Svm;
use exitregs_common::view::VIEWS;
use exitregs_lab::counts;
use exitregs_lab::host::Kernel;
use exitregs_tests::exitregs::{stat, trace, while_running};
use exitregs_tests::expression;
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Detail, Exit};
use exitregs_tests::scenario::Scenario;
use exitregs_tests::suite::{self, Boot, Suite};

/// Traces that run at once, beside the one that takes everything.
const AT_ONCE: usize = 11;

/// Options, and which exits they should select.
#[derive(Clone)]
struct Case {
    options: Vec<String>,
    selects: Selects,
}

#[derive(Clone)]
enum Selects {
    /// What a view selects, at a level.
    View(&'static str, Option<u8>),
    /// What a filter's text selects.
    Filter(String),
    /// What something else says.
    Exits(fn(&Exit) -> bool),
}

impl Selects {
    fn selects(&self, exit: &Exit) -> Result<bool> {
        let record = exit.exit.record();
        Ok(match self {
            Self::View(name, level) => {
                let view = VIEWS.iter().find(|view| view.name == *name).context("no such view")?;
                view.predicate(Isa::Svm).selects(&record) && level.is_none_or(|level| level == exit.level)
            }
            Self::Filter(text) => Filter::<KvmExit>::parse(text, Isa::Svm)?.selects(&record),
            Self::Exits(selects) => selects(exit),
        })
    }
}

impl Case {
    fn new(options: &[&str], selects: Selects) -> Self {
        Self { options: options.iter().copied().map(str::to_owned).collect(), selects }
    }
}

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for kernel in Kernel::STOCK {
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2));
        selected_by(boot, "bpf");
    }
    let patched = "v6.12+patched";
    selected_by(suite.boot(patched, suite::host(patched.parse()?)?.smp(2)), "native");
    Ok(())
}

/// All cases, with exits from a source.
fn selected_by(boot: &mut Boot, source: &'static str) {
    selected(boot, "views", views(), source);
    selected(boot, "options", options(), source);
    selected(boot, "random filters", random_filters(counts().pick(11, 330)), source);
}

/// Every view, at each level and at both.
fn views() -> Vec<Case> {
    let mut cases = Vec::new();
    for view in VIEWS.iter().filter(|view| view.event == KvmExit::NAME) {
        let name = view.name;
        cases.push(Case::new(&["--view", name], Selects::View(name, None)));
        cases.push(Case::new(&["--view", name, "--level", "l1"], Selects::View(name, Some(1))));
        cases.push(Case::new(&["--view", name, "--level", "L2"], Selects::View(name, Some(2))));
    }
    cases
}

/// The other options, and several at once: conditions of different ones all apply, values of one are alternatives.
fn options() -> Vec<Case> {
    fn is(exit: &Exit, code: Svm) -> bool {
        exit.exit.exit_reason == u64::from(code.0)
    }
    fn msr_200(exit: &Exit) -> bool {
        matches!(exit.detail, Some(Detail::Msr { msr: 0x200, .. }))
    }
    type Options = (&'static [&'static str], fn(&Exit) -> bool);
    let cases: [Options; 11] = [
        (&["--level", "l2"], |exit| exit.level == 2),
        (&["--reason", "msr"], |exit| is(exit, Svm::MSR)),
        (&["--reason", "VMRUN,0x72"], |exit| is(exit, Svm::VMRUN) || is(exit, Svm::CPUID)),
        (&["--vcpu", "1"], |exit| exit.vcpu == 1),
        (&["--vcpu", "0,1", "--level", "l1"], |exit| exit.level == 1),
        (&["--view", "msr-write,hypercall"], |exit| {
            is(exit, Svm::VMMCALL) || matches!(exit.detail, Some(Detail::Msr { write: true, .. }))
        }),
        (&["--view", "msr", "--level", "l2", "--where", "rcx == 0x200"], |exit| {
            exit.level == 2 && msr_200(exit) && exit.exit.rcx == 0x200
        }),
        // By a name; the upper half of the register, which an MSR access ignores, is compared as well.
        (&["--where", "exit_reason == msr && rcx == MTRRphysBase0"], |exit| {
            msr_200(exit) && exit.exit.rcx == 0x200
        }),
        (&["--where", "exit_reason == 0x7c && rcx == 0x8000000000000200"], |exit| {
            msr_200(exit) && exit.exit.rcx != 0x200
        }),
        (&["--view", "pio", "--where", "!(info1 & 1) && vcpu_id == 0"], |exit| {
            exit.vcpu == 0 && matches!(exit.detail, Some(Detail::Io { is_in: false, .. }))
        }),
        (&["--where", "isa == 1"], |_| false),
    ];
    cases.into_iter().map(|(options, selects)| Case::new(options, Selects::Exits(selects))).collect()
}

fn random_filters(count: u64) -> Vec<Case> {
    let seeds = 0..count;
    seeds
        .map(|seed| {
            let text = expression::random(seed);
            Case::new(&["--where", &text], Selects::Filter(text.clone()))
        })
        .collect()
}

/// Runs the cases, some at once, while a guest does a bit of everything.
fn selected(boot: &mut Boot, name: &str, cases: Vec<Case>, source: &'static str) {
    let several = cases.len() > AT_ONCE;
    for (number, cases) in cases.chunks(AT_ONCE).enumerate() {
        let name = if several { format!("{name}, {number}") } else { name.to_owned() };
        at_once(boot, &name, cases.to_vec(), source);
    }
}

fn at_once(boot: &mut Boot, name: &str, cases: Vec<Case>, source: &str) {
    let common = ["--source", source, "--buffer-size", "4"];
    let guest = Guest::random("guest", 4_000, 250).vcpus(2);
    let mut processes = vec![trace("all", &common)];
    for (number, case) in cases.iter().enumerate() {
        let options: Vec<_> = case.options.iter().map(String::as_str).collect();
        processes.push(trace(&format!("trace-{number}"), &[&common, &options[..]].concat()));
    }
    // The programs that count have the same filters: one such for each boot.
    let counted: Vec<_> =
        ["--source", source].into_iter().chain(cases[0].options.iter().map(String::as_str)).collect();
    processes.push(stat("stat", &counted));
    let run = guest.process();
    boot.test(
        Scenario::new(name).then(while_running(processes, |scenario| scenario.run(run))),
        move |played| {
            let all = record::exits(played, "all")?;
            played.succeeded(&["guest", "all", "stat"])?;
            let mut telling = 0;
            for (number, case) in cases.iter().enumerate() {
                let trace = format!("trace-{number}");
                played.failed(&trace, 0, &[])?;
                let mut expected = Vec::new();
                for exit in &all {
                    if case.selects.selects(exit)? {
                        expected.push(exit.clone());
                    }
                }
                telling += usize::from((1..all.len()).contains(&expected.len()));
                let said = played.stderr(&trace)?;
                ensure!(!said.contains("left out"), "{:?} left out exits that it could decide", case.options);
                same(&expected, &record::exits(played, &trace)?)
                    .with_context(|| format!("{:?}", case.options))?;
                if number == 0 {
                    same_counts(&expected, &record::table(played, "stat")?.rows)
                        .with_context(|| format!("stat {:?}", case.options))?;
                }
            }
            let count = cases.len();
            let few = "filters selected some exits and not all: the others would pass unread";
            ensure!(telling > 0, "none of {count} {few}");
            Ok(())
        },
    );
}

/// Whether two traces have the same exits with the same ends. Their times differ.
fn same(expected: &[Exit], found: &[Exit]) -> Result<()> {
    let by_vcpu = |exits: &[Exit]| {
        let mut by_vcpu: BTreeMap<(u32, u32), Vec<Exit>> = BTreeMap::new();
        for exit in exits {
            let mut exit = Exit { time_ns: 0, took_ns: None, l0_ns: None, ..exit.clone() };
            // Requests come in at any time.
            exit.exit.requests = None;
            by_vcpu.entry((exit.vm, exit.vcpu)).or_default().push(exit);
        }
        by_vcpu
    };
    let (expected, found) = (by_vcpu(expected), by_vcpu(found));
    for (key, expected) in &expected {
        let found = found.get(key).map(Vec::as_slice).unwrap_or_default();
        if let Some((expected, found)) =
            expected.iter().zip(found).find(|(expected, found)| expected != found)
        {
            anyhow::bail!("{key:?}: found {found:x?}\nexpected {expected:x?}");
        }
        ensure!(
            found.len() == expected.len(),
            "{key:?}: {} exits, should be {}",
            found.len(),
            expected.len()
        );
    }
    let other = found.keys().find(|key| !expected.contains_key(key));
    ensure!(other.is_none(), "exits of {other:?}, which should have none");
    Ok(())
}

fn same_counts(expected: &[Exit], rows: &[record::Row]) -> Result<()> {
    let mut counts: BTreeMap<_, u64> = BTreeMap::new();
    for exit in expected {
        *counts.entry((exit.vm, exit.level, exit.exit.exit_reason, exit.detail.clone())).or_default() += 1;
    }
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|row| ((row.vm, row.level, row.exit_reason, row.detail.clone()), row.exits))
        .collect();
    ensure!(found == counts, "counted {found:?}\nexpected {counts:?}");
    Ok(())
}
