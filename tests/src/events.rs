// SPDX-License-Identifier: MIT
//! Tests of every source whose events have the registers and the level, whoever made them.

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::{Isa, Level};
use exitregs_lab::counts;
use exitregs_lab::script::builtins;

use crate::exitregs::{trace, while_running};
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
