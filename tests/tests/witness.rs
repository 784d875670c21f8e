// SPDX-License-Identifier: MIT
//! Others who watch the same exits at the same time see the same: `perf stat` counts as many of each reason, and the
//! kernel's own kvm_exit event has, one by one, the same fields.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::svm::ExitCode as Svm;
use exitregs_lab::counts;
use exitregs_lab::host::Kernel;
use exitregs_tests::exitregs::{stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Detail, Row};
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Suite};
use exitregs_tests::truth::covers_both_levels;

/// What `perf stat` counts apart: all exits, and those of the reasons that scripts have most of.
const COUNTED: [Counted; 9] = [
    Counted { filter: "", selects: |_| true },
    Counted { filter: "exit_reason == 0x7c", selects: |row| is(row, Svm::MSR) },
    Counted { filter: "exit_reason == 0x7c && info1 == 1", selects: |row| is(row, Svm::MSR) && writes(row) },
    Counted { filter: "exit_reason == 0x72", selects: |row| is(row, Svm::CPUID) },
    Counted { filter: "exit_reason == 0x7b", selects: |row| is(row, Svm::IOIO) },
    Counted { filter: "exit_reason == 0x81", selects: |row| is(row, Svm::VMMCALL) },
    Counted { filter: "exit_reason == 0x80", selects: |row| is(row, Svm::VMRUN) },
    Counted { filter: "exit_reason == 0x78", selects: |row| is(row, Svm::HLT) },
    Counted { filter: "exit_reason == 0x400", selects: |row| is(row, Svm::NPF) },
];

struct Counted {
    /// In the kernel's language.
    filter: &'static str,
    /// The rows of `stat` with the same exits.
    selects: fn(&Row) -> bool,
}

fn is(row: &Row, code: Svm) -> bool {
    row.exit_reason == u64::from(code.0)
}

fn writes(row: &Row) -> bool {
    matches!(row.detail, Some(Detail::Msr { write: true, .. }))
}

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for kernel in Kernel::STOCK {
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2).program("perf"));
        witnessed(boot, "a mixture on two vCPUs", Guest::new("guest", "mix").vcpus(2));
        let (ops, turns) = counts().pick((150, 2), (1_000, 50));
        witnessed(boot, "a random script", Guest::random("guest", 3_000, ops).repeat(turns));
    }
    Ok(())
}

/// One guest; `trace`, `stat`, `perf stat` and an instance of tracefs all at once.
fn witnessed(boot: &mut Boot, name: &str, guest: Guest) {
    let instance = "/sys/kernel/tracing/instances/witness";
    let set_up = format!(
        "mkdir {instance} && echo 32768 > {instance}/buffer_size_kb && echo 1 > {instance}/events/kvm/kvm_exit/enable"
    );
    let mut perf: Vec<String> =
        ["perf", "stat", "-a", "-x", ",", "-o", "perf.csv"].map(str::to_owned).to_vec();
    for counted in COUNTED {
        perf.extend(["-e", "kvm:kvm_exit"].map(str::to_owned));
        if !counted.filter.is_empty() {
            perf.extend(["--filter", counted.filter].map(str::to_owned));
        }
    }
    perf.push("--".to_owned());
    let stat = stat("stat", &["--"]);
    let counting = Process { argv: [stat.argv, perf, guest.argv()].concat(), ..stat };
    let scenario = Scenario::new(name)
        .run(Process::shell("set-up", set_up))
        .then(while_running(vec![trace("trace", &[])], |scenario| scenario.run(counting)))
        .run(Process::new("tracefs", ["cat".to_owned(), format!("{instance}/trace")]))
        .run(Process::new("remove", ["rmdir", instance]));
    boot.test(scenario, move |played| {
        played.succeeded(&["set-up", "trace", "stat", "tracefs", "remove"])?;
        covers_both_levels(&guest.truth(played)?)?;
        let rows = record::table(played, "stat")?.rows;
        let perf = perf_counts(&played.read("perf.csv")?)?;
        ensure!(
            perf.len() == COUNTED.len(),
            "perf stat counted {} events, not {}",
            perf.len(),
            COUNTED.len()
        );
        for (counted, perf) in COUNTED.iter().zip(perf) {
            let ours: u64 = rows.iter().filter(|row| (counted.selects)(row)).map(|row| row.exits).sum();
            ensure!(ours == perf, "{:?}: exitregs stat counted {ours}, perf stat {perf}", counted.filter);
        }

        let stock = stock_exits(&played.stdout("tracefs")?)?;
        let mut ours: BTreeMap<u32, Vec<Stock>> = BTreeMap::new();
        for exit in record::exits(played, "trace")? {
            ours.entry(exit.vcpu).or_default().push(Stock {
                reason: exit.reason,
                numbers: [
                    exit.exit.guest_rip,
                    exit.exit.info1,
                    Some(exit.exit.info2),
                    exit.exit.intr_info,
                    exit.exit.error_code,
                ]
                .map(|number| number.expect("on SVM all are known")),
            });
        }
        ensure!(stock.keys().eq(ours.keys()), "vCPUs {:?}, but {:?} here", stock.keys(), ours.keys());
        for (vcpu, stock) in stock {
            let ours = &ours[&vcpu];
            let differ = stock.iter().zip(ours).position(|(stock, ours)| stock != ours);
            if let Some(number) = differ {
                anyhow::bail!(
                    "vCPU {vcpu}: exit {number} is {:x?}, but {:x?} in tracefs",
                    ours[number],
                    stock[number]
                );
            }
            ensure!(
                stock.len() == ours.len(),
                "vCPU {vcpu}: {} exits, but {} in tracefs",
                ours.len(),
                stock.len()
            );
        }
        Ok(())
    });
}

/// The counts of `perf stat -x ,`, in the order of the events.
fn perf_counts(csv: &str) -> Result<Vec<u64>> {
    let lines = csv.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let count = line.split(',').next().unwrap_or_default();
            count.parse().with_context(|| format!("perf stat did not count: {line}"))
        })
        .collect()
}

/// What both the kernel's own event and ours have of an exit: RIP, info1, info2, intr_info, error_code.
#[derive(Debug, PartialEq, Eq)]
struct Stock {
    reason: String,
    numbers: [u64; 5],
}

/// The kvm_exit events of a tracefs `trace` file by vCPU, in their order.
fn stock_exits(text: &str) -> Result<BTreeMap<u32, Vec<Stock>>> {
    let entries = text.lines().find_map(|line| line.split_once("entries-in-buffer/entries-written: "));
    let (kept, written) = entries
        .and_then(|(_, counts)| counts.split_whitespace().next()?.split_once('/'))
        .context("tracefs does not say how many events it kept")?;
    ensure!(kept == written, "tracefs kept {kept} of {written} events");
    let mut exits: BTreeMap<u32, Vec<Stock>> = BTreeMap::new();
    for event in text.lines().filter_map(|line| line.split_once(": kvm_exit: ").map(|(_, event)| event)) {
        let (vcpu, exit) = stock_exit(event).with_context(|| format!("no kvm_exit: {event}"))?;
        exits.entry(vcpu).or_default().push(exit);
    }
    Ok(exits)
}

/// `vcpu 0 reason msr rip 0x… info1 0x… info2 0x… intr_info 0x… error_code 0x…`
fn stock_exit(event: &str) -> Option<(u32, Stock)> {
    let (vcpu, rest) = event.strip_prefix("vcpu ")?.split_once(" reason ")?;
    let (reason, rest) = rest.split_once(" rip ")?;
    let words: Vec<_> = rest.split_whitespace().collect();
    let value = |word: usize| u64::from_str_radix(words.get(word)?.strip_prefix("0x")?, 16).ok();
    let numbers = [value(0)?, value(2)?, value(4)?, value(6)?, value(8)?];
    let names = [1, 3, 5, 7].map(|word| words.get(word).copied().unwrap_or_default());
    (names == ["info1", "info2", "intr_info", "error_code"])
        .then(|| Some((vcpu.parse().ok()?, Stock { reason: reason.to_owned(), numbers })))?
}
