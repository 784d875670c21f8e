// SPDX-License-Identifier: MIT
//! The native source, on kernels with the patch series, on AMD and on Intel: against the ground truth, exit by exit and count by count; with
//! filters that the kernel applies, and refuses; what it leaves behind, which is nothing; and what it loses, which it says.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::{Isa, Level};
use exitregs_lab::counts;
use exitregs_lab::host::{Base, Built, Kernel, Status};
use exitregs_tests::events::{counters, every_script, found_in, nested_page_faults, perf_counters};
use exitregs_tests::exitregs::{exitregs, stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Suite};
use exitregs_tests::truth::compare_counts;
use exitregs_tests::view::{filter, scripted};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for base in Base::ALL {
        let kernel = Kernel::Built(Built::patched(base));
        let amd = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2).program("perf"));
        // Random scripts not on Linux 7: see tests/trace.rs.
        let seeds = if base == Base::Mainline { 0 } else { counts().pick(3, 100) };
        every_script(amd, Isa::Svm, seeds, "native");
        what_views_select(amd, Isa::Svm);
        nested_page_faults(amd, Isa::Svm, "native");
        if base == Base::V6_12 {
            best_source(amd);
            counted(amd);
            two_vms_at_once(amd);
            refused_filters(amd);
            killed(amd);
            a_full_ring_buffer(amd);
        }
        let intel = suite.boot(format!("{kernel} on Intel"), suite::intel(kernel)?.program("perf"));
        every_script(intel, Isa::Vmx, counts().pick(2, 50), "native");
        what_views_select(intel, Isa::Vmx);
        nested_page_faults(intel, Isa::Vmx, "native");
    }
    Ok(())
}

fn native(name: &str, arguments: &[&str]) -> Process {
    trace(name, &[&["--source", "native"], arguments].concat())
}

fn native_stat(name: &str, arguments: &[&str]) -> Process {
    stat(name, &[&["--source", "native"], arguments].concat())
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

/// The filters that say what nobody could ask for before, for L2's MSR accesses and hypercalls, select exactly these exits: in
/// `trace`, in counters of `stat`, and in two counters of `perf stat` at once.
fn what_views_select(boot: &mut Boot, isa: Isa) {
    const VIEWS: [(&str, &str, usize); 2] = [("msr", "msr", 10), ("hypercall", "hypercall", 5)];
    let of_l2 = |view| filter(view, isa, Level::L2).expect("the views are there");
    for (script, view, least) in VIEWS {
        let guest = Guest::new("guest", script).repeat(3);
        let run = guest.process();
        let traces = vec![
            native("where", &["--where", &of_l2(view)]),
            native("view", &["--view", view, "--level", "l2"]),
            native("none", &["--where", &format!("{} && is_protected == 1", of_l2(view))]),
        ];
        let scenario =
            Scenario::new(format!("{view} of L2")).then(while_running(traces, |scenario| scenario.run(run)));
        boot.test(scenario, move |played| {
            played.succeeded(&["guest", "where", "view", "none"])?;
            let expected = scripted(view, isa, &guest.truth(played)?);
            ensure!(expected.len() >= least, "the script has only {} of them", expected.len());
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
    counters(boot, isa, "native");
    perf_counters(boot, isa, "native");
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
        let why = "the kernel refuses the filter for kvm_exit: Field not found\n";
        let asked = "  | requests == 0x1\n  | ^^^^^^^^\n";
        // A counter is of one level.
        let of_level = "  | is_nested == 0 && requests == 0x1\n  |                   ^^^^^^^^\n";
        for (name, marked) in [("field", asked), ("stat-field", asked), ("count-field", of_level)] {
            played.failed(name, 1, &[why, marked])?;
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
