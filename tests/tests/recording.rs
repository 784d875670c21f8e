// SPDX-License-Identifier: MIT
//! `exitregs record` and `report` against the ground truth: counts, nested round trips, and what is left of recordings
//! that were broken off.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::Isa;
use exitregs_lab::counts;
use exitregs_lab::host::Kernel;
use exitregs_lab::script::builtins;
use exitregs_lab::truth::{Exits, Handled, Line};
use exitregs_tests::exitregs::{exitregs, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::Table;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::compare_counts;
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    let boot = suite.boot("6.12", suite::host(Kernel::Stock6_12)?.smp(2));
    counted(boot);
    round_trips(boot, "bpf");
    killed(boot);
    a_full_disk(boot);
    rings(boot);
    let name = "v6.12+patched";
    let boot = suite.boot(name, suite::host(name.parse()?)?.smp(2));
    round_trips(boot, "native");
    Ok(())
}

fn record(name: &str, arguments: &[&str]) -> Process {
    let output = format!("{name}.arrow");
    exitregs(name, ["record", "-o", &output].into_iter().chain(arguments.iter().copied()))
}

/// `exitregs report --json` of what the process `of` recorded, called `OF-report`.
fn report(of: &str, arguments: &[&str]) -> Process {
    let (name, file) = (format!("{of}-report"), format!("{of}.arrow"));
    exitregs(&name, ["report", "--json", &file].into_iter().chain(arguments.iter().copied()))
}

fn json<T: for<'de> Deserialize<'de>>(played: &Played, process: &str) -> Result<T> {
    let text = played.stdout(process)?;
    serde_json::from_str(&text).with_context(|| format!("{process} printed {text}"))
}

/// What `report --json` prints, of which the rows are as `stat` prints them.
fn rows(played: &Played, process: &str) -> Result<Table> {
    let mut object: Value = json(played, process)?;
    let members = object.as_object_mut().context("no object")?;
    for other in ["timeline", "lost", "uncounted", "undecided"] {
        members.remove(other).with_context(|| format!("the report has no {other}"))?;
    }
    members.insert("at_s".to_owned(), 0.into());
    Ok(serde_json::from_value(object)?)
}

/// What was recorded is what happened: each count of every script.
fn counted(boot: &mut Boot) {
    let guests: Vec<_> =
        builtins(Isa::Svm).map(|script| Guest::new(script.name, script.name).repeat(2)).collect();
    let all = guests.clone();
    let run = |scenario| all.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let scenario = Scenario::new("counts")
        .then(while_running(vec![record("all", &[])], run))
        .run(report("all", &[]))
        .run(Process::shell("mode", "stat -c %a all.arrow >&2"));
    boot.test(scenario, move |played| {
        played.failed("all", 0, &[" exits recorded, 0 lost"])?;
        played.succeeded(&["all-report", "mode"])?;
        ensure!(played.stderr("mode")?.trim() == "600", "others may read the recording");
        let table = rows(played, "all-report")?;
        for guest in &guests {
            played.succeeded(&[guest.name()])?;
            compare_counts(&guest.truth(played)?, &table.rows, played.pid(guest.name())?)
                .with_context(|| format!("guest {}", guest.name()))?;
        }
        Ok(())
    });
}

/// A row of `--nested --json`.
#[derive(Debug, Deserialize)]
struct Trips {
    exit: What,
    exits: u64,
    l0_alone: u64,
    reflected: u64,
    forced: u64,
    reflected_or_forced: u64,
    not_entered: u64,
    broken: u64,
    l1_exits: u64,
    l1_exits_p99: u64,
    total_ns: u64,
    l0_ns: u64,
    l1_ns: u64,
    reentry_ns: u64,
}

#[derive(Debug, Deserialize)]
struct What {
    reason: String,
    detail_text: String,
}

#[derive(Debug, Deserialize)]
struct Nested {
    nested: Vec<Trips>,
}

/// L2's exits whose L1 makes 0, 1, 7 and 40 exits of its own, and the last VMRUN: live and from a recording.
fn round_trips(boot: &mut Boot, source: &'static str) {
    let guest = Guest::new("guest", "multiplication").repeat(counts().pick(20, 2_000));
    let run = guest.process();
    let live = exitregs("live", ["stat", "--nested", "--json", "-o", "live.json", "--source", source]);
    let processes = vec![live, record("recorded", &["--source", source])];
    let scenario = Scenario::new("nested round trips")
        .then(while_running(processes, |scenario| scenario.run(run)))
        .run(report("recorded", &["--nested"]));
    boot.test(scenario, move |played| {
        played.succeeded(&["guest", "live", "recorded", "recorded-report"])?;
        let lines = guest.truth(played)?;
        let live: Nested = serde_json::from_str(&played.read("live.json")?)?;
        as_scripted(&lines, &live).context("live")?;
        as_scripted(&lines, &json(played, "recorded-report")?).context("from the recording")
    });
}

fn as_scripted(lines: &[Line], found: &Nested) -> Result<()> {
    let scripted = |line: &&Line| line.level == 2 && line.exits == Exits::Once;
    let mut kinds = 0;
    for (instruction, detail) in [
        ("in", "in 0x60 size 1"),
        ("cpuid", "0x0"),
        ("rdmsr", "rdmsr IA32_APIC_BASE"),
        ("wrmsr", "wrmsr IA32_APIC_BASE"),
    ] {
        let of: Vec<&Line> =
            lines.iter().filter(scripted).filter(|line| line.instruction == instruction).collect();
        ensure!(of.len() >= 20, "the script has {} of {instruction}", of.len());
        let row = found.nested.iter().find(|row| row.exit.detail_text == detail);
        let row = row.with_context(|| format!("no row of {detail}: {found:?}"))?;
        ensure!(row.exits == of.len() as u64, "{} of {instruction}, not {row:?}", of.len());
        let handled = |how: Handled| of.iter().filter(|line| line.handled == Some(how)).count() as u64;
        let expected = (handled(Handled::L0), handled(Handled::Reflected), handled(Handled::Forced));
        ensure!(
            (row.l0_alone, row.reflected, row.forced) == expected && row.reflected_or_forced == 0,
            "{instruction} was handled {expected:?}, not {row:?}"
        );
        ensure!((row.broken, row.not_entered) == (0, 0), "{row:?}");
        // What L1 executed exits each time; a physical interrupt may come on top.
        let l1: u64 = of.iter().map(|line| line.l1_exits.len() as u64).sum();
        ensure!(
            (l1..=l1 + l1 / 10 + 10).contains(&row.l1_exits),
            "{l1} exits of L1 for {instruction}, not {row:?}"
        );
        let most = of.iter().map(|line| line.l1_exits.len() as u64).max().unwrap_or(0);
        ensure!(row.l1_exits_p99 >= most && (most > 0 || row.l1_exits == 0), "{most} at most, not {row:?}");
        ensure!(
            row.total_ns == row.l0_ns + row.l1_ns + row.reentry_ns,
            "the parts are not the whole: {row:?}"
        );
        ensure!(most == 0 || (row.l1_ns > 0 && row.reentry_ns > 0), "{row:?}");
        kinds += 1;
    }
    ensure!(kinds == 4 && found.nested.iter().all(|row| !row.exit.reason.is_empty()), "{found:?}");
    Ok(())
}

/// SIGKILL at some moment: what was written can be read, and is what happened until then.
fn killed(boot: &mut Boot) {
    let times = counts().pick(10, 200);
    let mut scenario = Scenario::new("killed");
    let mut names = Vec::new();
    for number in 0..times {
        let (guest, name) =
            (Guest::new(format!("guest-{number}"), "mix").repeat(20), format!("killed-{number}"));
        // Spread over the second that a batch takes at most, and a little more.
        let milliseconds = 100 + (number * 7_919) % 1_700;
        scenario = scenario
            .start(record(&name, &[]))
            .wait_for(&name, " source with ")
            .start(guest.without_truth().process())
            .sleep(milliseconds)
            .kill(&name, Signal::SIGKILL)
            .end(&name)
            .end(format!("guest-{number}"))
            .run(report(&name, &[]));
        names.push(name);
    }
    boot.test(scenario, move |played| {
        let mut exits = 0;
        for name in &names {
            let report = format!("{name}-report");
            // 1: it says that the recording was not ended.
            played.failed(
                &report,
                1,
                &["what followed is missing", "the report is of what could be read"],
            )?;
            exits += rows(played, &report)?.rows.iter().map(|row| row.exits).sum::<u64>();
        }
        ensure!(exits > 0, "nothing was left of {} recordings", names.len());
        Ok(())
    });
}

/// A small tmpfs: the recording ends with an error, and what had room can be read.
fn a_full_disk(boot: &mut Boot) {
    // Until the disk is full.
    let guest = Guest::new("guest", "mix").endless();
    let full = "mkdir full; mount -t tmpfs -o size=300k none full && exec exitregs record -o full/file";
    let scenario = Scenario::new("a full disk")
        .start(Process::shell("full", full))
        .wait_for("full", " source with ")
        .start(guest.process())
        .end("full")
        .kill("guest", Signal::SIGKILL)
        .end("guest")
        .run(exitregs("report", ["report", "--json", "full/file"]))
        .run(Process::shell("unmount", "umount full"));
    boot.test(scenario, |played| {
        played.failed("full", 1, &["cannot write full/file", "No space left on device"])?;
        played.failed("report", 1, &["what followed is missing"])?;
        let exits: u64 = rows(played, "report")?.rows.iter().map(|row| row.exits).sum();
        ensure!(exits > 100, "only {exits} exits had room");
        Ok(())
    });
}

/// A ring writes when its trigger comes, and only then.
fn rings(boot: &mut Boot) {
    let guest = Guest::new("guest", "multiplication").repeat(50).without_truth();
    let run = guest.process();
    let scenario = Scenario::new("rings")
        .start(record("never", &["--ring", "5s", "--on", "exit > 1h"]))
        .wait_for("never", " source with ")
        .start(record("trip", &["--ring", "5s", "--on", "nested round trip > 1us"]))
        .wait_for("trip", " source with ")
        .start(record("signal", &["--ring", "5s"]))
        .wait_for("signal", " source with ")
        .run(run)
        .kill("signal", Signal::SIGUSR1)
        .end("trip")
        .end("signal")
        .kill("never", Signal::SIGINT)
        .end("never")
        .run(report("trip", &[]))
        .run(report("signal", &[]))
        .run(Process::shell("none", "test ! -e never.arrow"));
    boot.test(scenario, |played| {
        played.failed("trip", 0, &["a nested round trip took "])?;
        played.failed("signal", 0, &["SIGUSR1: wrote "])?;
        played.succeeded(&["never", "trip-report", "signal-report", "none"])?;
        for of in ["trip-report", "signal-report"] {
            ensure!(!rows(played, of)?.rows.is_empty(), "{of} has nothing");
        }
        Ok(())
    });
}
