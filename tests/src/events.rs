// SPDX-License-Identifier: MIT
//! Tests of every source whose events have the registers and the level, whoever made them.

use anyhow::{Context, Result, ensure};
use exitregs_common::flags::PageFaultError;
use exitregs_common::isa::{Isa, Level};
use exitregs_common::vmx::EptViolation;
use exitregs_lab::counts;
use exitregs_lab::script::builtins;
use exitregs_lab::truth::{Handled, Line};
use serde::Deserialize;

use crate::exitregs::{exitregs, stat, trace, while_running};
use crate::guest::Guest;
use crate::record::{self, Exit, NestedPageFault, NestedPageFaultFields};
use crate::scenario::{Process, Scenario};
use crate::suite::{Boot, Played};
use crate::truth::{Extent, compare};
use crate::view::{bounds, filter, selects};

/// How many of a guest's exits were compared with its truth.
///
/// # Errors
/// If one is not as the truth has it, or the guest failed.
pub fn found_in(exits: &[Exit], guest: &Guest, played: &Played) -> Result<usize> {
    played.succeeded(&[guest.name()])?;
    compare(&guest.truth(played)?, exits, played.pid(guest.name())?, Extent::Whole)
        .with_context(|| format!("guest {}", guest.name()))
}

/// All four registers at exit and entry, L1 and L2, results and which L2 it was: as the bpf source is tested.
pub fn every_script(boot: &mut Boot, isa: Isa, seeds: u64, source: &str) {
    let mut guests: Vec<_> =
        builtins(isa).map(|script| Guest::new(script.name, script.name).repeat(2)).collect();
    let ops = counts().pick(100, 400);
    guests.extend((0..seeds).map(|seed| Guest::random(format!("seed-{seed}"), 6_000 + seed, ops)));
    if seeds > 0 && isa == Isa::Svm {
        // The Intel host has one CPU.
        guests.push(Guest::random("vcpus", 7_000, 60).vcpus(2).repeat(2));
    }
    let all = guests.clone();
    let run = |scenario| all.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let scenario =
        Scenario::new("every script").then(while_running(vec![trace("trace", &["--source", source])], run));
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

/// Two counters of `perf stat` on the source's `kvm_exit`, each with its own filter.
pub fn perf_counters(boot: &mut Boot, isa: Isa, source: &str) {
    const COUNTED: [(&str, Level); 2] = [("msr", Level::L2), ("hypercall", Level::L1)];

    let event = if source == "native" { "kvm:kvm_exit" } else { "exitregs:kvm_exit" };
    let events = |name: &str| (source == "tprobe").then(|| exitregs(name, ["events", name]));
    let guest = Guest::new("guest", "basic").repeat(3);
    let mut perf: Vec<_> = ["perf", "stat", "-a", "-x", ",", "-o", "perf.csv"].map(str::to_owned).to_vec();
    for (view, level) in COUNTED {
        let filter = filter(view, isa, level).expect("the views are there");
        perf.extend(["-e", event, "--filter", &filter].map(str::to_owned));
    }
    let process = Process { argv: [perf, vec!["--".to_owned()], guest.argv()].concat(), ..guest.process() };
    let processes = events("install").into_iter().chain([process]).chain(events("remove"));
    let scenario = processes.fold(Scenario::new("perf stat with two filters"), Scenario::run);
    boot.test(scenario, move |played| {
        let truth = guest.truth(played)?;
        let text = played.read("perf.csv")?;
        let counts: Vec<u64> = text.lines().filter_map(|line| line.split(',').next()?.parse().ok()).collect();
        ensure!(counts.len() == COUNTED.len(), "perf stat says\n{text}");
        for ((view, level), count) in COUNTED.into_iter().zip(counts) {
            let (least, most) = bounds(&truth, view, isa, level);
            ensure!(
                least > 0 && (least..=most).contains(&count),
                "{view} at {level}: {count}, not {least} to {most}"
            );
        }
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

/// Counters of `exitregs stat` with different filters count at once, of all VMs or of one.
pub fn counters(boot: &mut Boot, isa: Isa, source: &str) {
    const VIEWS: [&str; 2] = ["--view", "msr,cpuid,hypercall"];
    let count = |name: &str, arguments: &[&str]| {
        stat(name, &[&["--count-only", "--source", source], arguments].concat())
    };
    let during = |name: &str, guest: &Guest, arguments: &[&str]| {
        let stat = count(name, &[arguments, &["--"]].concat());
        Process { argv: [stat.argv, guest.argv()].concat(), ..stat }
    };
    let guests = ["msr", "basic", "basic"].into_iter().zip(["filters", "views", "one"]);
    let guests: Vec<_> = guests.map(|(script, name)| Guest::new(name, script).repeat(3)).collect();
    let other = Guest::new("other", "basic").repeat(2);
    let wanted = [("msr", Level::L2), ("cpuid", Level::L1)];
    let texts = wanted.map(|(view, level)| filter(view, isa, level).expect("the views are there"));
    let scenario = Scenario::new("counters of stat")
        .run(during("by-filter", &guests[0], &["--where", &texts[0], "--where", &texts[1]]))
        .run(during("by-view", &guests[1], &VIEWS))
        .then(guests[2].start())
        .then(other.start())
        .then(while_running(
            vec![count("of-one", &[&VIEWS[..], &["-p", "{pid:one}"]].concat())],
            |scenario| scenario.press_enter("one").press_enter("other").end("one").end("other"),
        ));
    boot.test(scenario, move |played| {
        played.succeeded(&["by-filter", "by-view", "of-one", "one", "other"])?;
        let counts = |name: &str| -> Result<Vec<Counter>> {
            let counts: Counts = serde_json::from_str(&played.read(&format!("{name}.json"))?)?;
            Ok(counts.counters)
        };
        let check = |counter: &Counter, guest: &Guest, view: &str, level: Level| {
            let (least, most) = bounds(&guest.truth(played)?, view, isa, level);
            ensure!((least..=most).contains(&counter.count), "{counter:?}: not {least} to {most}");
            Ok(least)
        };
        let by_filter = counts("by-filter")?;
        ensure!(by_filter.len() == 2, "{by_filter:?}");
        for ((counter, text), (view, level)) in by_filter.iter().zip(&texts).zip(wanted) {
            ensure!(counter.filter.as_ref() == Some(text), "{counter:?}: not {text}");
            let least = check(counter, &guests[0], view, level)?;
            ensure!(least > 0 || view != "msr", "the script has no MSR accesses of L2");
        }
        for (name, guest) in [("by-view", &guests[1]), ("of-one", &guests[2])] {
            let by_view = counts(name)?;
            ensure!(by_view.len() == 6, "{by_view:?}");
            for counter in &by_view {
                let (view, level) = (counter.view.as_deref(), counter.level);
                let (view, level) = view.zip(level).context("a counter of no view or level")?;
                let level = Level::from_is_nested(level - 1);
                ensure!(check(counter, guest, view, level)? > 0, "the script has none of {counter:?}");
            }
        }
        Ok(())
    });
}

/// Each page fault that goes to L1 has its line, with L2's registers and what L1 is told; none is invented.
pub fn nested_page_faults(boot: &mut Boot, isa: Isa, source: &'static str) {
    let fetch = match isa {
        Isa::Svm => PageFaultError::FETCH.bits(),
        Isa::Vmx => EptViolation::ACC_INSTR.bits(),
    };
    // Dynamic events lack what KVM computes after the probe: the tool joins that, the kernel cannot filter it.
    let (field, mask) = match source {
        "tprobe" => ("gpa", 0x1000),
        _ => ("guest_error_code", fetch),
    };
    let condition = format!("{field} & {mask:#x}");
    let faults_of = |name: &str, arguments: &[&str]| {
        trace(name, &[&["--source", source, "--view", "nested-page-fault"], arguments].concat())
    };
    let guest = Guest::new("guest", "page-fault").repeat(2);
    let run = guest.process();
    let traces = vec![
        trace("all", &["--source", source]),
        faults_of("faults", &[]),
        faults_of("some", &["--where", &condition]),
        trace("l1", &["--source", source, "--level", "l1"]),
    ];
    // No other source of a host has them.
    let text = exitregs("text", ["trace", "--view", "nested-page-fault", "-o", "text.txt"]);
    let traces = traces.into_iter().chain([text]).collect();
    let scenario =
        Scenario::new("nested page faults").then(while_running(traces, |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["guest", "all", "faults", "some", "l1", "text"])?;
        let faults = record::nested_page_faults(played, "all")?;
        same_faults(&faults, &record::nested_page_faults(played, "faults")?)?;
        ensure!(record::exits(played, "faults")?.is_empty(), "exits that nobody asked for");
        let value = |fault: &NestedPageFaultFields| match field {
            "gpa" => fault.gpa,
            _ => fault.guest_error_code,
        };
        let some = faults.iter().filter(|fault| value(&fault.nested_page_fault) & mask != 0);
        same_faults(&some.cloned().collect::<Vec<_>>(), &record::nested_page_faults(played, "some")?)?;
        ensure!(record::nested_page_faults(played, "l1")?.is_empty(), "a nested page fault of L1's");
        let lines = played.read("text.txt")?;
        ensure!(lines.lines().count() == faults.len() + 1, "{} faults, but\n{lines}", faults.len());
        ensure!(faults.iter().all(|fault| lines.contains(&fault.operation)), "{faults:?}, but\n{lines}");
        let has_rip = source != "tprobe" || isa == Isa::Svm;
        ensure!(
            faults.iter().all(|fault| fault.nested_page_fault.guest_rip.is_some() == has_rip),
            "{faults:?}"
        );
        expected_faults(isa, &guest.truth(played)?, &faults)
    });
}

fn same_faults(expected: &[NestedPageFault], found: &[NestedPageFault]) -> Result<()> {
    let without_time = |faults: &[NestedPageFault]| -> Vec<_> {
        faults.iter().map(|fault| NestedPageFault { time_ns: 0, ..fault.clone() }).collect()
    };
    ensure!(without_time(expected) == without_time(found), "found {found:x?}\nexpected {expected:x?}");
    Ok(())
}

/// Checks nested page faults against the truth.
///
/// # Errors
/// If one is missing, invented or not as the truth has it.
pub fn expected_faults(isa: Isa, lines: &[Line], faults: &[NestedPageFault]) -> Result<()> {
    let mut left = faults.iter().peekable();
    let reflected = |line: &&Line| {
        line.level == 2 && selects("page-fault", isa, line) && line.handled == Some(Handled::Reflected)
    };
    let mut found = 0;
    for line in lines.iter().filter(reflected) {
        let is_lines = |fault: &NestedPageFault| {
            let event = fault.nested_page_fault;
            let registers = [event.rax, event.rbx, event.rcx, event.rdx];
            event.guest_rip.is_none_or(|rip| rip == line.rip) && line.before == registers.into()
        };
        let first = left.peek().with_context(|| format!("no fault for {line:?}"))?;
        ensure!(is_lines(first), "{first:x?}, should be of {line:x?}");
        while let Some(fault) = left.next_if(|fault| is_lines(fault)) {
            let event = fault.nested_page_fault;
            ensure!(Some(event.gpa) == line.operands.gpa, "{fault:x?}: the address is not {line:x?}'s");
            ensure!((fault.level, fault.l2) == (2, line.vmcb12), "{fault:x?}, should be of {line:x?}");
            // What L1 is told is of the same access; whether the page was there L1's tables say, not L0's.
            let (access, of_address) = match isa {
                Isa::Svm => {
                    let access = PageFaultError::WRITE | PageFaultError::FETCH | PageFaultError::USER;
                    (access.bits(), PageFaultError::GUEST_FINAL.bits())
                }
                Isa::Vmx => {
                    let access = EptViolation::ACC_READ | EptViolation::ACC_WRITE | EptViolation::ACC_INSTR;
                    (access.bits(), EptViolation::GVA_TRANSLATED.bits())
                }
            };
            let same = event.host_error_code & access == event.guest_error_code & access;
            ensure!(same && event.guest_error_code & of_address != 0, "{fault:x?}");
            found += 1;
        }
    }
    ensure!(left.next().is_none() && found > 0, "{found} of {} faults are the script's", faults.len());
    Ok(())
}
