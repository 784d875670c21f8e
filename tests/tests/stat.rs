// SPDX-License-Identifier: MIT
//! `exitregs stat` against the ground truth: every count by level and by MSR, hypercall, CPUID leaf and port, in each of
//! its forms.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::Isa;
use exitregs_lab::counts;
use exitregs_lab::host::{Base, Built, Kernel};
use exitregs_lab::script::builtins;
use exitregs_tests::exitregs::{exitregs, stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Row};
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::{compare_counts, covers_both_levels};

/// How CAP_BPF and CAP_PERFMON alone let the programs read a KVM that is made of modules, and one that is built in.
const CHECKED: &str = "checked reads (raw_tp)";
const TYPED: &str = "typed pointers (tp_btf)";

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    let seeds = counts().pick(3, 50);
    for kernel in Kernel::STOCK {
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2));
        every_script(boot, Isa::Svm, seeds);
        by_vcpu(boot);
        intervals(boot);
        other_forms(boot);
        limited_rows(boot);
        a_command(boot);
        statuses_of_commands(boot);
        a_duration(boot);
        without_admin(boot, CHECKED);
    }
    let newest = Kernel::Built(Built::plain(Base::Mainline));
    for (kernel, access) in [(Kernel::Stock6_12, CHECKED), (newest, TYPED)] {
        let boot = suite.boot(format!("{kernel} on Intel"), suite::intel(kernel)?);
        every_script(boot, Isa::Vmx, seeds);
        without_admin(boot, access);
    }
    // Not random ones on Linux 7: see tests/trace.rs.
    for base in Base::ALL {
        let kernel = Kernel::Built(Built::plain(base));
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2));
        every_script(boot, Isa::Svm, if base == Base::Mainline { 0 } else { seeds });
        without_admin(boot, TYPED);
    }
    Ok(())
}

fn counted(played: &Played, guest: &Guest, rows: &[Row]) -> Result<u64> {
    played.succeeded(&[guest.name()])?;
    compare_counts(&guest.truth(played)?, rows, played.pid(guest.name())?)
        .with_context(|| format!("guest {}", guest.name()))
}

fn every_script(boot: &mut Boot, isa: Isa, seeds: u64) {
    let mut guests: Vec<_> =
        builtins(isa).map(|script| Guest::new(script.name, script.name).repeat(2)).collect();
    let ops = counts().pick(100, 1_000);
    guests.extend((0..seeds).map(|seed| Guest::random(format!("seed-{seed}"), 2_000 + seed, ops)));
    let all = guests.clone();
    let run = |scenario| all.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let scenario = Scenario::new("every script").then(while_running(vec![stat("stat", &[])], run));
    boot.test(scenario, move |played| {
        played.succeeded(&["stat"])?;
        let table = record::table(played, "stat")?;
        for guest in &guests {
            counted(played, guest, &table.rows)?;
        }
        Ok(())
    });
}

fn by_vcpu(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic").vcpus(2).repeat(counts().pick(10, 2_000));
    let run = guest.process();
    let scenario = Scenario::new("by vCPU")
        .then(while_running(vec![stat("vcpus", &["--per-vcpu"]), stat("vms", &[])], |scenario| {
            scenario.run(run)
        }));
    boot.test(scenario, move |played| {
        played.succeeded(&["vcpus", "vms"])?;
        let vcpus = record::table(played, "vcpus")?.rows;
        counted(played, &guest, &vcpus)?;
        ensure!(vcpus.iter().all(|row| row.vcpu.is_some()), "a row has no vCPU");
        let vms = record::table(played, "vms")?.rows;
        counted(played, &guest, &vms)?;
        ensure!(vms.iter().all(|row| row.vcpu.is_none()), "a row has a vCPU");
        ensure!(exits(&vms) == exits(&vcpus), "{} exits, but {} by vCPU", exits(&vms), exits(&vcpus));
        Ok(())
    });
}

fn exits(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.exits).sum()
}

/// What came in each interval adds up to what came.
fn intervals(boot: &mut Boot) {
    let guests = ["first", "second", "third"].map(|name| Guest::new(name, "basic").repeat(2));
    let runs = guests.clone();
    let scenario = Scenario::new("intervals")
        .then(while_running(vec![stat("deltas", &["--interval", "50ms"]), stat("total", &[])], |scenario| {
            runs.iter().fold(scenario, |scenario, guest| scenario.run(guest.process()).sleep(200))
        }));
    boot.test(scenario, move |played| {
        played.succeeded(&["deltas", "total"])?;
        let deltas = record::tables(played, "deltas")?;
        let filled = deltas.iter().filter(|table| !table.rows.is_empty()).count();
        ensure!(filled >= guests.len(), "exits in only {filled} of {} intervals", deltas.len());
        for pair in deltas.windows(2) {
            let (before, after) = (pair[0].at_s, pair[1].at_s);
            ensure!(before < after, "{after} s after {before} s");
            let elapsed = pair[1].elapsed_s;
            ensure!((after - before - elapsed).abs() < 0.001, "{before} to {after} s is not {elapsed} s");
        }

        let mut sum: BTreeMap<_, Row> = BTreeMap::new();
        for row in deltas.into_iter().flat_map(|table| table.rows) {
            ensure!(row.exits > 0, "an interval has a row of nothing: {row:?}");
            let key = (row.vm, row.level, row.exit_reason, row.detail.clone());
            let Some(whole) = sum.get_mut(&key) else {
                sum.insert(key, row);
                continue;
            };
            whole.exits += row.exits;
            whole.not_ended += row.not_ended;
            whole.total_ns += row.total_ns;
        }
        let total = record::table(played, "total")?.rows;
        for row in &total {
            let key = (row.vm, row.level, row.exit_reason, row.detail.clone());
            let whole = sum.get(&key).with_context(|| format!("no interval had {row:?}"))?;
            let (parts, at_once) = ((whole.exits, whole.not_ended), (row.exits, row.not_ended));
            ensure!(parts == at_once, "{key:?}: {parts:?} in intervals, {at_once:?} in all");
        }
        ensure!(sum.len() == total.len(), "{} rows in intervals, {} in all", sum.len(), total.len());
        guests.iter().try_for_each(|guest| counted(played, guest, &total).map(drop))
    });
}

/// CSV and the table for people have the numbers of the JSON.
fn other_forms(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic").repeat(3);
    let run = guest.process();
    let forms = vec![
        stat("json", &["--sort", "count"]),
        exitregs("csv", ["stat", "--csv", "--sort", "count"]),
        exitregs("table", ["stat", "--sort", "count"]),
    ];
    let scenario = Scenario::new("CSV and table").then(while_running(forms, |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["json", "csv", "table"])?;
        let rows = record::table(played, "json")?.rows;
        counted(played, &guest, &rows)?;

        let text = played.stdout("csv")?;
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let heading = reader.headers()?.clone();
        let column = |name: &str| {
            heading.iter().position(|it| it == name).with_context(|| format!("no column {name}"))
        };
        let columns = [
            "vm",
            "vm_name",
            "vcpu",
            "level",
            "isa",
            "exit_reason",
            "reason",
            "detail",
            "exits",
            "not_ended",
        ];
        let columns = columns.into_iter().map(column).collect::<Result<Vec<_>>>()?;
        let mut found = Vec::new();
        for record in reader.records() {
            let record = record?;
            found.push(columns.iter().map(|column| record[*column].to_owned()).collect::<Vec<_>>());
        }
        let mut expected: Vec<_> = rows
            .iter()
            .map(|row| {
                let Row {
                    vm, vm_name, level, isa, exit_reason, reason, detail_text, exits, not_ended, ..
                } = row;
                [
                    vm.to_string(),
                    vm_name.clone(),
                    String::new(),
                    level.to_string(),
                    isa.clone(),
                    format!("{exit_reason:#x}"),
                    reason.clone(),
                    detail_text.clone(),
                    exits.to_string(),
                    not_ended.to_string(),
                ]
                .to_vec()
            })
            .collect();
        // Rows of equal count are ordered by their times, which differ.
        found.sort();
        expected.sort();
        ensure!(found == expected, "the CSV has\n{found:?}\nthe JSON\n{expected:?}");

        let text = played.stdout("table")?;
        ensure!(!text.contains('\x1b'), "colours in a pipe");
        for row in &rows {
            let name = format!("exitregs-guest:{}", row.vm);
            let words =
                [&name, &format!("L{}", row.level), &row.reason, &row.detail_text, &row.exits.to_string()];
            let shown = |line: &str| {
                let mut rest = line;
                words.iter().all(|word| match rest.find(word.as_str()) {
                    Some(at) => {
                        rest = &rest[at + word.len()..];
                        true
                    }
                    None => false,
                })
            };
            ensure!(text.lines().any(shown), "no line has {words:?} in\n{text}");
        }
        let sum = exits(&rows);
        ensure!(text.contains(&format!("\n{sum} exits in ")), "the table does not say {sum} exits\n{text}");
        Ok(())
    });
}

/// `--sort`, `-n`: the largest first; halts come last, whatever their count.
fn limited_rows(boot: &mut Boot) {
    let guest = Guest::new("guest", "hlt").repeat(5);
    let run = guest.process();
    let scenario = Scenario::new("order and number of rows").then(while_running(
        vec![
            stat("count", &["--sort", "count"]),
            stat("time", &[]),
            exitregs("three", ["stat", "-n", "3", "--sort", "count"]),
        ],
        |scenario| scenario.run(run),
    ));
    boot.test(scenario, |played| {
        played.succeeded(&["count", "time", "three", "guest"])?;
        let by_count = record::table(played, "count")?.rows;
        let by_time = record::table(played, "time")?.rows;
        ensure!(by_count.iter().any(|row| row.reason == "hlt"), "the guest did not halt");
        let order = |row: &Row, weight: u64| (row.reason == "hlt", std::cmp::Reverse(weight));
        ensure!(
            by_count.is_sorted_by_key(|row| order(row, row.exits)),
            "not in order of exits: {by_count:?}"
        );
        ensure!(
            by_time.is_sorted_by_key(|row| order(row, row.total_ns)),
            "not in order of time: {by_time:?}"
        );
        let text = played.stdout("three")?;
        let busy = by_count.iter().filter(|row| row.reason != "hlt").count();
        let halts = by_count.len() - busy;
        let shown = text.lines().filter(|line| line.starts_with("exitregs-guest:")).count();
        ensure!(shown == 3 + halts, "{shown} rows, not 3 and {halts} of halts:\n{text}");
        ensure!(
            text.contains(&format!("and {} more rows", busy - 3)),
            "it does not say what is not shown:\n{text}"
        );
        Ok(())
    });
}

/// `stat COMMAND` counts the command's exits from the first to the last.
fn a_command(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic").repeat(2);
    let process = stat("stat", &["--"]);
    let process = Process { argv: [process.argv, guest.argv()].concat(), ..process };
    boot.test(Scenario::new("a command").run(process), move |played| {
        played.failed("stat", 0, &["ready "])?;
        let truth = guest.truth(played)?;
        covers_both_levels(&truth)?;
        let rows = record::table(played, "stat")?.rows;
        let vm = rows.first().context("nothing was counted")?.vm;
        compare_counts(&truth, &rows, vm)?;
        ensure!(rows.iter().all(|row| row.vm == vm), "there were other VMs");
        Ok(())
    });
}

/// A command's exit status becomes that of `stat` and `trace`.
fn statuses_of_commands(boot: &mut Boot) {
    let under = |name: &str, command: &str, words: &[&'static str]| {
        exitregs(name, [command, "--"].into_iter().chain(words.iter().copied()).collect::<Vec<_>>())
    };
    let scenario = Scenario::new("a command's exit status")
        .run(under("true", "stat", &["true"]))
        .run(under("seven", "stat", &["sh", "-c", "exit 7"]))
        .run(under("killed", "stat", &["sh", "-c", "kill -9 $$"]))
        .run(under("none", "stat", &["no-such-program"]))
        .run(under("traced-seven", "trace", &["sh", "-c", "exit 7"]))
        .run(under("traced-none", "trace", &["no-such-program"]));
    boot.test(scenario, |played| {
        played.failed("true", 0, &[])?;
        ensure!(played.stdout("true")?.starts_with("no exits in "), "it does not say that there were none");
        played.failed("seven", 7, &[])?;
        played.failed("killed", 128 + 9, &[])?;
        played.failed("none", 1, &["cannot run no-such-program"])?;
        played.failed("traced-seven", 7, &["0 exits printed, 0 lost"])?;
        played.failed("traced-none", 1, &["cannot run no-such-program"])
    });
}

/// `--duration` ends both by themselves, and a command that still runs.
fn a_duration(boot: &mut Boot) {
    let scenario = Scenario::new("a duration")
        .start(stat("stat", &["--duration", "300ms"]))
        .start(trace("trace", &["--duration", "0.3"]))
        .start(exitregs("command", ["stat", "--duration", "300ms", "--", "sleep", "1000"]))
        .end("stat")
        .end("trace")
        .end("command");
    boot.test(scenario, |played| {
        played.failed("trace", 0, &["0 exits printed, 0 lost"])?;
        played.failed("command", 0, &[])?;
        played.failed("stat", 0, &[])?;
        let elapsed = record::table(played, "stat")?.elapsed_s;
        // Late is the machine's fault, early is not.
        ensure!((0.3..30.0).contains(&elapsed), "300 ms took {elapsed} s");
        Ok(())
    });
}

/// With CAP_BPF and CAP_PERFMON alone: perhaps other programs, the same counts.
fn without_admin(boot: &mut Boot, access: &'static str) {
    let guest = Guest::new("guest", "basic").vcpus(2).repeat(2);
    let run = guest.process();
    let process = stat("stat", &["--per-vcpu"]).unprivileged(&["bpf", "perfmon"]);
    let scenario = Scenario::new("with CAP_BPF and CAP_PERFMON only")
        .then(while_running(vec![process], |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.failed("stat", 0, &[access])?;
        counted(played, &guest, &record::table(played, "stat")?.rows).map(drop)
    });
}
