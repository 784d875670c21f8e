// SPDX-License-Identifier: MIT
//! `exitregs trace` against the ground truth, exit by exit: level, reason, operands, registers at both ends, result.
//! Nothing is lost, nothing is invented, and what cannot be known is printed as unknown.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::Isa;
use exitregs_lab::counts;
use exitregs_lab::host::{Base, Built, Kernel};
use exitregs_lab::script::builtins;
use exitregs_tests::exitregs::{exitregs, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Exit};
use exitregs_tests::scenario::Scenario;
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::{Extent, compare, covers_both_levels};

/// How CAP_BPF and CAP_PERFMON alone let the programs read a KVM that is made of modules, and one that is built in.
const CHECKED: &str = "checked reads (raw_tp)";
const TYPED: &str = "typed pointers (tp_btf)";

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for kernel in Kernel::STOCK {
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2).memory_mib(4096));
        named_scripts(boot, Isa::Svm);
        random_scripts(boot);
        several_vcpus(boot);
        two_vms_at_once(boot);
        without_admin(boot, CHECKED);
        lines_for_people(boot, Isa::Svm);
        file_of_its_owner(boot);
        a_million(boot);
    }
    let newest = Kernel::Built(Built::plain(Base::Mainline));
    for (kernel, access) in [(Kernel::Stock6_12, CHECKED), (newest, TYPED)] {
        let boot = suite.boot(format!("{kernel} on Intel"), suite::intel(kernel)?);
        named_scripts(boot, Isa::Vmx);
        random_scripts(boot);
        without_admin(boot, access);
        lines_for_people(boot, Isa::Vmx);
    }
    // QEMU (7.2) leaves the type of an injected event in EXITINTINFO when that is no longer valid, and Linux 7 then emulates
    // no instruction: a random script that has L1 inject an exception may end there.
    for base in Base::ALL {
        let kernel = Kernel::Built(Built::plain(base));
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2));
        named_scripts(boot, Isa::Svm);
        if base != Base::Mainline {
            random_scripts(boot);
        }
        without_admin(boot, TYPED);
    }
    Ok(())
}

/// One guest after the other under one `trace`, each of them then compared with what it did.
fn compared(boot: &mut Boot, name: &str, guests: Vec<Guest>, least: usize) {
    let steps =
        |scenario| guests.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let scenario = Scenario::new(name).then(while_running(vec![trace("trace", &[])], steps));
    boot.test(scenario, move |played| {
        played.succeeded(&["trace"])?;
        let exits = record::exits(played, "trace")?;
        let mut found = 0;
        for guest in &guests {
            found += found_in(&exits, guest, played).with_context(|| format!("guest {}", guest.name()))?;
        }
        ensure!(found >= least, "only {found} exits were compared, not {least}");
        Ok(())
    });
}

fn found_in(exits: &[Exit], guest: &Guest, played: &Played) -> Result<usize> {
    played.succeeded(&[guest.name()])?;
    compare(&guest.truth(played)?, exits, played.pid(guest.name())?, Extent::Whole)
}

fn named_scripts(boot: &mut Boot, isa: Isa) {
    let guests: Vec<_> = builtins(isa).map(|script| Guest::new(script.name, script.name).repeat(2)).collect();
    let one_each = guests.len();
    compared(boot, "every named script", guests, one_each);
}

fn random_scripts(boot: &mut Boot) {
    let (seeds, ops) = counts().pick((4, 100), (100, 400));
    let guests = (0..seeds).map(|seed| Guest::random(format!("seed-{seed}"), seed, ops)).collect();
    compared(boot, "random scripts", guests, seeds as usize * 50);
}

fn several_vcpus(boot: &mut Boot) {
    let guests = vec![
        Guest::new("two", "basic").vcpus(2).repeat(3),
        Guest::random("three", 1_000, 60).vcpus(3).repeat(2),
    ];
    compared(boot, "several vCPUs at once", guests, 300);
}

fn two_vms_at_once(boot: &mut Boot) {
    let guests = [Guest::new("one", "basic").repeat(4), Guest::new("other", "basic").repeat(4)];
    let [one, other] = guests.clone();
    let all =
        while_running(vec![trace("both", &[]), trace("only", &["--vm", "{pid:one}"])], move |scenario| {
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
        ensure!(only.iter().all(|exit| exit.vm_name == "exitregs-guest"), "a VM is called otherwise");
        let pid = played.pid("one")?;
        ensure!(only.iter().all(|exit| exit.vm == pid), "--vm let another VM through");
        Ok(())
    });
}

/// With CAP_BPF and CAP_PERFMON alone, whichever way the programs then read the kernel: the same results.
fn without_admin(boot: &mut Boot, access: &'static str) {
    let guest = Guest::new("guest", "basic").vcpus(2).repeat(2);
    let process = trace("trace", &[]).unprivileged(&["bpf", "perfmon"]);
    let run = guest.process();
    let scenario = Scenario::new("with CAP_BPF and CAP_PERFMON only")
        .then(while_running(vec![process], |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.failed("trace", 0, &[access])?;
        let truth = guest.truth(played)?;
        covers_both_levels(&truth)?;
        found_in(&record::exits(played, "trace")?, &guest, played).map(drop)
    });
}

/// The lines without --json say the same as those with it.
fn lines_for_people(boot: &mut Boot, isa: Isa) {
    // How many of these there are is the host's affair.
    let asked = match isa {
        Isa::Svm => "exit_reason != npf",
        Isa::Vmx => "exit_reason != ept_violation",
    };
    let guest = Guest::new("guest", "basic");
    let run = guest.process();
    let scenario = Scenario::new("lines for people").then(while_running(
        vec![trace("json", &["--where", asked]), exitregs("text", ["trace", "--where", asked])],
        |scenario| scenario.run(run),
    ));
    boot.test(scenario, move |played| {
        played.succeeded(&["json", "text", "guest"])?;
        let exits = record::exits(played, "json")?;
        found_in(&exits, &guest, played)?;
        let text = played.stdout("text")?;
        let (heading, lines) = text.split_once('\n').context("no lines")?;
        ensure!(heading.contains("EXIT = RESULT"), "the heading is {heading:?}");
        ensure!(!text.contains('\x1b'), "colours in a pipe");
        let lines: Vec<_> = lines.lines().collect();
        ensure!(lines.len() == exits.len(), "{} lines for {} exits", lines.len(), exits.len());
        // Exits of one reading of the ring buffer are in order; across readings an L2 exit may come later.
        for exit in &exits {
            let result = exit.result.as_ref().map(|result| format!(" = {result}")).unwrap_or_default();
            let shown = format!("L{}   {}{result}  ", exit.level, exit.operation);
            let place = format!("exitregs-guest:{}/{}", exit.vm, exit.vcpu);
            let found = lines.iter().any(|line| line.contains(&shown) && line.contains(&place));
            ensure!(found, "no line has {place} and {shown:?} in\n{text}");
        }
        Ok(())
    });
}

/// Guest registers are guest data.
fn file_of_its_owner(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic");
    let run = guest.process();
    let tracing = while_running(vec![trace("trace", &[])], |scenario| scenario.run(run));
    let look = exitregs_tests::scenario::Process::shell("mode", "stat -c %a trace.json");
    boot.test(Scenario::new("a file that only its owner may read").then(tracing).run(look), |played| {
        let mode = played.stdout("mode")?;
        ensure!(mode == "600\n", "its mode is {mode}");
        Ok(())
    });
}

/// Many exits: a hundred times fewer in a small run, so that what is counted here is the same.
fn a_million(boot: &mut Boot) {
    // On each of two kernels.
    let (rounds, exits) = counts().pick((1, 5_000), (10, 50_000));
    for round in 0..rounds {
        let guest = Guest::new("guest", "basic").vcpus(2).repeat(exits / 80);
        compared(boot, &format!("many exits, {round}"), vec![guest], exits as usize);
    }
}
