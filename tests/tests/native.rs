// SPDX-License-Identifier: MIT
//! The native source, on kernels with the patch series: against the ground truth, exit by exit and count by count; with
//! filters that the kernel applies, and refuses; what it leaves behind, which is nothing; and what it loses, which it says.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::flags::PageFaultError;
use exitregs_common::isa::Isa;
use exitregs_lab::counts;
use exitregs_lab::host::{Kernel, Status};
use exitregs_lab::script::builtins;
use exitregs_lab::truth::{Exits, Handled, Line};
use exitregs_tests::exitregs::{exitregs, stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Exit, NestedPageFault};
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::{self, Extent, compare, compare_counts};
use nix::sys::signal::Signal;
use serde::Deserialize;

/// What a nested guest's MSR accesses are selected by, on AMD.
const MSR_OF_L2: &str = "exit_reason == 0x7c && is_nested == 1";

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    let name = "v6.12+patched";
    let kernel: Kernel = name.parse()?;
    let boot = suite.boot(name, suite::host(kernel)?.smp(2));
    best_source(boot);
    every_script(boot, counts().pick(3, 100));
    counted(boot);
    two_vms_at_once(boot);
    msr_accesses_of_l2(boot);
    counters(boot);
    nested_page_faults(boot);
    refused_filters(boot);
    killed(boot);
    a_full_ring_buffer(boot);
    let newer = "mainline+patched";
    // Not random ones on Linux 7: see tests/trace.rs.
    every_script(suite.boot(newer, suite::host(newer.parse()?)?.smp(2)), 0);
    Ok(())
}

fn native(name: &str, arguments: &[&str]) -> Process {
    trace(name, &[&["--source", "native"], arguments].concat())
}

fn native_stat(name: &str, arguments: &[&str]) -> Process {
    stat(name, &[&["--source", "native"], arguments].concat())
}

fn found_in(exits: &[Exit], guest: &Guest, played: &Played) -> Result<usize> {
    played.succeeded(&[guest.name()])?;
    compare(&guest.truth(played)?, exits, played.pid(guest.name())?, Extent::Whole)
        .with_context(|| format!("guest {}", guest.name()))
}

/// `trace` chooses it by itself, `doctor` tells it, and the kernel's fields are as expected.
fn best_source(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic");
    let run = guest.process();
    let scenario = Scenario::new("the best source")
        .run(exitregs("doctor", ["doctor"]))
        .then(while_running(vec![trace("trace", &[])], |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["doctor"])?;
        let text = played.stdout("doctor")?;
        let line = text.lines().find(|line| line.contains("source native")).context("doctor is silent")?;
        ensure!(line.starts_with("OK") && line.contains("have the registers"), "{line}");
        played.failed(
            "trace",
            0,
            &["tracing by the native source", "this kernel's events have the registers"],
        )?;
        found_in(&record::exits(played, "trace")?, &guest, played).map(drop)
    });
}

/// All four registers at exit and entry, L1 and L2, results and which L2 it was: as the bpf source is tested.
fn every_script(boot: &mut Boot, seeds: u64) {
    let mut guests: Vec<_> =
        builtins(Isa::Svm).map(|script| Guest::new(script.name, script.name).repeat(2)).collect();
    let ops = counts().pick(100, 400);
    guests.extend((0..seeds).map(|seed| Guest::random(format!("seed-{seed}"), 6_000 + seed, ops)));
    if seeds > 0 {
        guests.push(Guest::random("vcpus", 7_000, 60).vcpus(2).repeat(2));
    }
    let all = guests.clone();
    let run = |scenario| all.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let scenario = Scenario::new("every script").then(while_running(vec![native("trace", &[])], run));
    boot.test(scenario, move |played| {
        played.succeeded(&["trace"])?;
        let exits = record::exits(played, "trace")?;
        let mut found = 0;
        for guest in &guests {
            found += found_in(&exits, guest, played)?;
        }
        ensure!(found >= 50 * guests.len(), "only {found} exits were compared");
        Ok(())
    });
}

fn counted(boot: &mut Boot) {
    let guests = [
        Guest::new("basic", "basic").vcpus(2).repeat(3),
        Guest::new("two-guests", "two-guests").repeat(3),
        Guest::random("random", 8_000, 150),
    ];
    let all = guests.clone();
    let run = |scenario| all.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let stats = vec![native_stat("stat", &[]), native_stat("by-vcpu", &["--per-vcpu"])];
    boot.test(Scenario::new("counts").then(while_running(stats, run)), move |played| {
        played.succeeded(&["stat", "by-vcpu"])?;
        for name in ["stat", "by-vcpu"] {
            let table = record::table(played, name)?;
            for guest in &guests {
                played.succeeded(&[guest.name()])?;
                let pid = played.pid(guest.name())?;
                compare_counts(&guest.truth(played)?, &table.rows, pid)
                    .with_context(|| format!("{name}, guest {}", guest.name()))?;
            }
        }
        Ok(())
    });
}

/// `--vm` takes a VM's vCPU threads, those that it starts later as well, and no other's.
fn two_vms_at_once(boot: &mut Boot) {
    let guests = [Guest::new("one", "basic").vcpus(2).repeat(2), Guest::new("other", "basic").repeat(4)];
    let [one, other] = guests.clone();
    let all = while_running(vec![native("both", &[]), native("only", &["--vm", "{pid:one}"])], |scenario| {
        scenario.press_enter("one").press_enter("other").end("one").end("other")
    });
    let scenario = Scenario::new("two VMs at once").then(one.start()).then(other.start()).then(all);
    boot.test(scenario, move |played| {
        played.succeeded(&["both", "only"])?;
        let (both, only) = (record::exits(played, "both")?, record::exits(played, "only")?);
        for guest in &guests {
            found_in(&both, guest, played)?;
        }
        found_in(&only, &guests[0], played)?;
        let pid = played.pid("one")?;
        ensure!(only.iter().all(|exit| exit.vm == pid), "--vm let another VM through");
        Ok(())
    });
}

/// The MSR accesses of L2 that a script has, in their order.
fn scripted_msr_accesses(lines: &[Line]) -> Vec<(Option<u64>, u64, u64)> {
    let msr = |line: &&Line| line.level == 2 && line.exit_reason.as_deref() == Some("msr");
    let lines = lines.iter().filter(msr).filter(|line| line.exits == Exits::Once);
    lines.map(|line| (Some(line.rip), line.before.rcx, line.before.rax)).collect()
}

/// The filter that says what nobody could ask for before selects exactly these exits, in the kernel.
fn msr_accesses_of_l2(boot: &mut Boot) {
    let guest = Guest::new("guest", "msr").repeat(3);
    let run = guest.process();
    let traces = vec![
        native("where", &["--where", MSR_OF_L2]),
        native("view", &["--view", "msr", "--level", "l2"]),
        native("none", &["--where", "exit_reason == 0x7c && is_nested == 1 && is_protected == 1"]),
    ];
    let scenario =
        Scenario::new("MSR accesses of L2").then(while_running(traces, |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["guest", "where", "view", "none"])?;
        let expected = scripted_msr_accesses(&guest.truth(played)?);
        ensure!(expected.len() >= 10, "the script has only {} MSR accesses of L2", expected.len());
        for name in ["where", "view"] {
            let exits = record::exits(played, name)?;
            let found: Vec<_> =
                exits.iter().map(|exit| (exit.exit.guest_rip, exit.exit.rcx, exit.exit.rax)).collect();
            ensure!(found == expected, "{name}: found {found:x?}\nexpected {expected:x?}");
        }
        ensure!(
            record::exits(played, "none")?.is_empty(),
            "a filter that selects nothing selected something"
        );
        Ok(())
    });
}

/// What `stat --count-only --json` prints.
#[derive(Debug, Deserialize)]
struct Counts {
    counters: Vec<Counter>,
}

#[derive(Debug, Deserialize)]
struct Counter {
    view: Option<String>,
    level: Option<u8>,
    filter: Option<String>,
    count: u64,
}

/// Counters with different filters count at once.
fn counters(boot: &mut Boot) {
    let count = |name: &str, guest: &Guest, arguments: &[&str]| {
        let output = format!("{name}.json");
        let argv = guest.argv();
        let command = argv.iter().map(String::as_str);
        let words = ["stat", "--count-only", "--json", "-o", &output].into_iter();
        exitregs(name, words.chain(arguments.iter().copied()).chain(["--"]).chain(command))
    };
    let guests = [Guest::new("filters", "msr").repeat(3), Guest::new("views", "basic").repeat(3)];
    let [filters, views] = &guests;
    let cpuid = "exit_reason == 0x72 && is_nested == 0";
    let scenario = Scenario::new("perf counters")
        .run(count("by-filter", filters, &["--where", MSR_OF_L2, "--where", cpuid]))
        .run(count("by-view", views, &["--view", "msr,cpuid,hypercall"]));
    boot.test(scenario, move |played| {
        played.succeeded(&["by-filter", "by-view"])?;
        let counts = |name: &str| -> Result<Vec<Counter>> {
            let counts: Counts = serde_json::from_str(&played.read(&format!("{name}.json"))?)?;
            Ok(counts.counters)
        };
        let [filters, views] = &guests;
        let scripted = |guest: &Guest, level: u8, reason: &str| -> Result<(u64, u64)> {
            let bounds = truth::counts(&guest.truth(played)?, false);
            let of = bounds.iter().filter(|((_, l, r, _), _)| *l == level && r == reason);
            Ok(of.fold((0, 0), |(least, most), (_, b)| (least + b.least, most + b.most)))
        };
        let check = |counter: &Counter, (least, most): (u64, u64)| {
            ensure!(
                least > 0 && (least..=most).contains(&counter.count),
                "{counter:?}: not {least} to {most}"
            );
            Ok(())
        };
        let by_filter = counts("by-filter")?;
        ensure!(by_filter.len() == 2 && by_filter[0].filter.as_deref() == Some(MSR_OF_L2), "{by_filter:?}");
        check(&by_filter[0], scripted(filters, 2, "msr")?)?;
        let cpuid = scripted(filters, 1, "cpuid")?;
        ensure!((cpuid.0..=cpuid.1).contains(&by_filter[1].count), "{by_filter:?}");
        let by_view = counts("by-view")?;
        ensure!(by_view.len() == 6, "{by_view:?}");
        for counter in &by_view {
            let (view, level) = (counter.view.as_deref(), counter.level);
            let (view, level) = view.zip(level).context("a counter of no view or level")?;
            check(counter, scripted(views, level, view)?)?;
        }
        Ok(())
    });
}

/// Each page fault that goes to L1 has its line, with L2's registers and what L1 is told; none is invented.
fn nested_page_faults(boot: &mut Boot) {
    let guest = Guest::new("guest", "page-fault").repeat(2);
    let run = guest.process();
    let traces = vec![
        native("all", &[]),
        native("faults", &["--view", "nested-page-fault"]),
        native("some", &["--view", "nested-page-fault", "--where", "guest_error_code & 0x10"]),
        native("l1", &["--level", "l1"]),
    ];
    let text = exitregs("text", ["trace", "--view", "nested-page-fault", "-o", "text.txt"]);
    let traces = traces.into_iter().chain([text]).collect();
    let scenario =
        Scenario::new("nested page faults").then(while_running(traces, |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["guest", "all", "faults", "some", "l1", "text"])?;
        let faults = record::nested_page_faults(played, "all")?;
        same_faults(&faults, &record::nested_page_faults(played, "faults")?)?;
        ensure!(record::exits(played, "faults")?.is_empty(), "exits that nobody asked for");
        let fetches = faults.iter().filter(|fault| fault.nested_page_fault.guest_error_code & 0x10 != 0);
        same_faults(&fetches.cloned().collect::<Vec<_>>(), &record::nested_page_faults(played, "some")?)?;
        ensure!(record::nested_page_faults(played, "l1")?.is_empty(), "a nested page fault of L1's");
        let lines = played.read("text.txt")?;
        ensure!(lines.lines().count() == faults.len() + 1, "{} faults, but\n{lines}", faults.len());
        ensure!(faults.iter().all(|fault| lines.contains(&fault.operation)), "{faults:?}, but\n{lines}");
        expected_faults(&guest.truth(played)?, &faults)
    });
}

fn same_faults(expected: &[NestedPageFault], found: &[NestedPageFault]) -> Result<()> {
    let without_time = |faults: &[NestedPageFault]| -> Vec<_> {
        faults.iter().map(|fault| NestedPageFault { time_ns: 0, ..fault.clone() }).collect()
    };
    ensure!(without_time(expected) == without_time(found), "found {found:x?}\nexpected {expected:x?}");
    Ok(())
}

fn expected_faults(lines: &[Line], faults: &[NestedPageFault]) -> Result<()> {
    let mut left = faults.iter().peekable();
    let reflected = |line: &&Line| {
        line.level == 2
            && line.exit_reason.as_deref() == Some("npf")
            && line.handled == Some(Handled::Reflected)
    };
    let mut found = 0;
    for line in lines.iter().filter(reflected) {
        let is_lines = |fault: &NestedPageFault| {
            let event = fault.nested_page_fault;
            let registers = [event.rax, event.rbx, event.rcx, event.rdx];
            event.guest_rip == line.rip && line.before == registers.into()
        };
        let first = left.peek().with_context(|| format!("no fault for {line:?}"))?;
        ensure!(is_lines(first), "{first:x?}, should be of {line:x?}");
        while let Some(fault) = left.next_if(|fault| is_lines(fault)) {
            let event = fault.nested_page_fault;
            ensure!(Some(event.gpa) == line.operands.gpa, "{fault:x?}: the address is not {line:x?}'s");
            ensure!((fault.level, fault.l2) == (2, line.vmcb12), "{fault:x?}, should be of {line:x?}");
            let [host, guest] =
                [event.host_error_code, event.guest_error_code].map(PageFaultError::from_bits_retain);
            // What L1 is told is of the same access; whether the page was there L1's tables say, not L0's.
            let access = PageFaultError::WRITE | PageFaultError::FETCH | PageFaultError::USER;
            let same = host.bits() & access.bits() == guest.bits() & access.bits();
            ensure!(same && guest.contains(PageFaultError::GUEST_FINAL), "{fault:x?}");
            found += 1;
        }
    }
    ensure!(left.next().is_none() && found > 0, "{found} of {} faults are the script's", faults.len());
    Ok(())
}

/// A filter that the kernel refuses does not run unfiltered, and is refused in the kernel's words.
fn refused_filters(boot: &mut Boot) {
    // Parentheses that our own parser takes and the kernel does not.
    let long = "(".repeat(60) + "rax == 1" + &")".repeat(60);
    let scenario = Scenario::new("filters that the kernel refuses")
        .run(native("field", &["--where", "requests == 1"]))
        .run(native_stat("stat-field", &["--where", "requests == 1"]))
        .run(exitregs("count-field", ["stat", "--count-only", "--where", "requests == 1"]))
        .run(native("deep", &["--duration", "50ms", "--where", &long]));
    boot.test(scenario, move |played| {
        // 7.3's event has the field, 6.12's has not.
        let words =
            ["the kernel refuses the filter for kvm_exit", "Field not found", "Command: ", "requests == 0x1"];
        for name in ["field", "stat-field", "count-field"] {
            played.failed(name, 1, &words)?;
        }
        played.failed("deep", 0, &[])
    });
}

/// What a run leaves that is killed the next one removes, and nothing of anybody else's.
fn killed(boot: &mut Boot) {
    let list = |name: &str| Process::new(name, ["ls", "/sys/kernel/tracing/instances"]);
    let scenario = Scenario::new("SIGKILL")
        .run(Process::shell("others", "mkdir /sys/kernel/tracing/instances/exitregs-of-somebody-else"))
        .start(native("lives", &[]))
        .wait_for("lives", " source with ")
        .start(native("killed", &[]))
        .wait_for("killed", " source with ")
        .kill("killed", Signal::SIGKILL)
        .end("killed")
        .run(list("before"))
        .start(native("terminated", &[]))
        .wait_for("terminated", " source with ")
        .run(list("during"))
        .kill("terminated", Signal::SIGTERM)
        .end("terminated")
        .kill("lives", Signal::SIGINT)
        .end("lives")
        .run(list("after"))
        .run(Process::shell("remove", "rmdir /sys/kernel/tracing/instances/exitregs-of-somebody-else"));
    boot.test(scenario, |played| {
        played.succeeded(&["others", "lives", "terminated", "remove"])?;
        ensure!(played.status("killed")? == Status::Signal(Signal::SIGKILL as i32), "it was not killed");
        let has = |list: &str, name: &str| -> Result<bool> {
            let (list, pid) = (played.stdout(list)?, played.pid(name)?);
            Ok(list.lines().any(|line| line.starts_with(&format!("exitregs-{pid}-"))))
        };
        ensure!(has("before", "killed")? && has("before", "lives")?, "there was nothing to remove");
        ensure!(!has("during", "killed")?, "what the killed one left is still there");
        ensure!(has("during", "lives")?, "what is in use was removed");
        let after: BTreeSet<_> = played.stdout("after")?.lines().map(str::to_owned).collect();
        ensure!(after == BTreeSet::from(["exitregs-of-somebody-else".to_owned()]), "left: {after:?}");
        Ok(())
    });
}

/// While nobody reads, events are overwritten: `trace` says how many, and pairs nothing across the gap.
fn a_full_ring_buffer(boot: &mut Boot) {
    let guest = Guest::new("guest", "cpuid").repeat(counts().pick(2_000, 20_000)).without_truth();
    let run = guest.process();
    let scenario = Scenario::new("a full ring buffer")
        .start(native("trace", &["--buffer-size", "1"]))
        .wait_for("trace", " source with ")
        .kill("trace", Signal::SIGSTOP)
        .run(run)
        .kill("trace", Signal::SIGCONT)
        .sleep(200)
        .kill("trace", Signal::SIGINT)
        .end("trace");
    boot.test(scenario, |played| {
        played.failed("trace", 0, &["the ring buffer was full", "--buffer-size"])?;
        let (exits, lost) = record::exits_and_lost(played, "trace")?;
        ensure!(lost > 0 && !exits.is_empty(), "{} exits, {lost} lost", exits.len());
        for exit in &exits {
            // Of CPUID one knows what it gives.
            let Some(entry) = exit.entry.filter(|_| exit.reason == "cpuid" && exit.level == 1) else {
                continue;
            };
            let goes_on = entry.rip == exit.exit.guest_rip.map(|rip| rip + 2);
            ensure!(goes_on && entry.is_nested == 0, "{exit:x?} is not ended by its entry");
        }
        Ok(())
    });
}
