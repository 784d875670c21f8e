// SPDX-License-Identifier: MIT
//! Tests of every source whose events have the registers and the level, whoever made them.

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::{Isa, Level};
use exitregs_lab::counts;
use exitregs_lab::script::builtins;
use serde::Deserialize;

use crate::exitregs::{stat, trace, while_running};
use crate::guest::Guest;
use crate::record::{self, Exit};
use crate::scenario::{Process, Scenario};
use crate::suite::{Boot, Played};
use crate::truth::{Extent, compare};
use crate::view::{bounds, filter};

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

/// Two counters of `perf stat` on `event`, such as `kvm:kvm_exit`, each with its own filter.
pub fn perf_counters(boot: &mut Boot, isa: Isa, event: &str) {
    const COUNTED: [(&str, Level); 2] = [("msr", Level::L2), ("hypercall", Level::L1)];

    let guest = Guest::new("guest", "basic").repeat(3);
    let mut perf: Vec<_> = ["perf", "stat", "-a", "-x", ",", "-o", "perf.csv"].map(str::to_owned).to_vec();
    for (view, level) in COUNTED {
        let filter = filter(view, isa, level).expect("the views are there");
        perf.extend(["-e", event, "--filter", &filter].map(str::to_owned));
    }
    let process = Process { argv: [perf, vec!["--".to_owned()], guest.argv()].concat(), ..guest.process() };
    boot.test(Scenario::new("perf stat with two filters").run(process), move |played| {
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
