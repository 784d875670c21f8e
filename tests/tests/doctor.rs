// SPDX-License-Identifier: MIT
//! `exitregs doctor`, and the others, on hosts that lack something.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_lab::host::{Kernel, Kvm, Lockdown};
use exitregs_tests::exitregs::{exitregs, stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::{Extent, compare, compare_counts};
use serde::Deserialize;

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for kernel in Kernel::STOCK {
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.kvm(Kvm::NotLoaded));
        kvm_comes_and_goes(boot, kernel);
    }
    let host = suite::host(Kernel::Stock6_12)?.lockdown(Lockdown::Integrity);
    locked_down_for_integrity(suite.boot("lockdown=integrity", host));
    let host = suite::host(Kernel::Stock6_12)?.lockdown(Lockdown::Confidentiality);
    locked_down_for_confidentiality(suite.boot("lockdown=confidentiality", host));
    let host = suite::host(Kernel::Stock6_1)?.kernel_parameter("kvm_amd.nested=0");
    without_nesting(suite.boot("nested=0", host));
    Ok(())
}

/// What `doctor --json` prints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    works: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    name: String,
    finding: String,
    is: String,
    remedy: Option<String>,
}

impl Report {
    /// Checks what one line says.
    fn says(&self, name: &str, finding: &str, words: &[&str]) -> Result<()> {
        let check = self.checks.iter().find(|check| check.name == name);
        let check = check.with_context(|| format!("nothing about {name}: {self:?}"))?;
        ensure!(check.finding == finding, "{name} should be {finding}: {check:?}");
        let text = format!("{} {}", check.is, check.remedy.as_deref().unwrap_or_default());
        ensure!(words.iter().all(|word| text.contains(word)), "{name} should say {words:?}: {check:?}");
        // A source lacks what another line has the remedy for.
        let has_remedy = finding != "ok" && name != "source bpf";
        ensure!(has_remedy == check.remedy.is_some(), "a remedy for what is well, or none: {check:?}");
        Ok(())
    }
}

/// `doctor` for people and for programs.
fn examined(name: &str) -> impl FnOnce(Scenario) -> Scenario {
    let (text, json) = (exitregs(name, ["doctor"]), exitregs(&format!("{name}-json"), ["doctor", "--json"]));
    move |scenario| scenario.run(text).run(json)
}

/// What it found. Both forms say the same, and the exit status whether exitregs works.
fn report(played: &Played, name: &str) -> Result<Report> {
    let json = format!("{name}-json");
    let report: Report =
        serde_json::from_str(&played.stdout(&json)?).context("doctor --json makes no sense")?;
    let text = played.stdout(name)?;
    for check in &report.checks {
        ensure!(text.contains(&check.is), "the text lacks {check:?}:\n{text}");
        let remedy = check.remedy.as_deref().unwrap_or_default();
        ensure!(text.contains(remedy), "the text lacks the remedy of {check:?}:\n{text}");
    }
    for process in [name, &json] {
        played.failed(process, i32::from(!report.works), &[])?;
        ensure!(played.stderr(process)?.is_empty(), "{process} complains");
    }
    Ok(report)
}

/// Without KVM, with its common half, with all of it. A trace keeps the common half from going, not the other; afterwards
/// all of it can go.
fn kvm_comes_and_goes(boot: &mut Boot, kernel: Kernel) {
    let guests = ["before", "after"].map(|name| Guest::new(name, "basic"));
    let [before, after] = guests.clone().map(|guest| guest.process());
    let load_vendor = |name| Process::new(name, ["modprobe", "kvm_amd", "nested=1"]);
    let scenario = Scenario::new("KVM comes and goes")
        .then(examined("no-kvm"))
        .run(exitregs("no-kvm-trace", ["trace"]))
        .run(exitregs("no-kvm-stat", ["stat"]))
        .run(Process::new("load-kvm", ["modprobe", "kvm"]))
        .then(examined("no-vendor"))
        .run(exitregs("no-vendor-trace", ["trace"]))
        .run(exitregs("no-vendor-stat", ["stat"]))
        .run(load_vendor("load-vendor"))
        .then(examined("all"))
        .then(while_running(vec![trace("trace", &[]), stat("stat", &[])], |scenario| {
            scenario
                .run(before)
                .run(Process::shell("reload", "rmmod kvm_amd && ! rmmod kvm"))
                .run(load_vendor("load-vendor-again"))
                .run(after)
        }))
        .run(Process::shell("unload", "rmmod kvm_amd && rmmod kvm && ! grep -w kvm /proc/modules"))
        .then(examined("gone"));
    boot.test(scenario, move |played| {
        let loads = ["load-kvm", "load-vendor", "reload", "load-vendor-again", "unload"];
        played.succeeded(&loads)?;
        played.succeeded(&["trace", "stat", "before", "after"])?;
        for state in ["no-kvm", "gone"] {
            let found = report(played, state)?;
            ensure!(!found.works, "{state}: it should not work");
            found.says("KVM", "missing", &["KVM is not loaded", "modprobe kvm_amd"])?;
            found.says("source bpf", "missing", &["needs what is missing above"])?;
            found.says("BTF", "ok", &["/sys/kernel/btf/vmlinux"])?;
        }
        let found = report(played, "no-vendor")?;
        ensure!(!found.works, "without kvm_amd it should not work");
        found.says("KVM", "missing", &["kvm_exit can never fire here", "load kvm_amd or kvm_intel"])?;
        for (state, words) in [
            ("no-kvm", ["KVM is not loaded", "modprobe kvm_amd"]),
            ("no-vendor", ["kvm_exit can never fire here", "load kvm_amd or kvm_intel"]),
        ] {
            for command in ["trace", "stat"] {
                played.failed(&format!("{state}-{command}"), 1, &words)?;
            }
        }
        let found = report(played, "all")?;
        ensure!(found.works, "it should work: {found:?}");
        found.says("kernel", "ok", &[&kernel.to_string()])?;
        found.says("KVM", "ok", &["SVM (as modules)"])?;
        found.says("nested", "ok", &["nested=Y"])?;
        found.says("BTF", "ok", &["/sys/kernel/btf/kvm_amd", "kvm_exit(kvm_vcpu, u32)"])?;
        found.says("lockdown", "ok", &["none"])?;
        found.says("capabilities", "ok", &["CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN"])?;
        found.says("tracefs", "ok", &["/sys/kernel/tracing"])?;
        found.says("source bpf", "ok", &["typed pointers"])?;
        found.says("source native", "note", &["kvm_exit has no is_nested", "patch series"])?;
        let exits = record::exits(played, "trace")?;
        let rows = record::table(played, "stat")?.rows;
        for guest in &guests {
            let (truth, pid) = (guest.truth(played)?, played.pid(guest.name())?);
            compare(&truth, &exits, pid, Extent::Whole)?;
            compare_counts(&truth, &rows, pid)?;
        }
        Ok(())
    });
}

/// Tracing works as ever.
fn locked_down_for_integrity(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic");
    let run = guest.process();
    let scenario = Scenario::new("works")
        .then(examined("doctor"))
        .then(while_running(vec![trace("trace", &[])], |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["trace", "guest"])?;
        let found = report(played, "doctor")?;
        found.says("lockdown", "ok", &["integrity"])?;
        found.says("source bpf", "ok", &[])?;
        compare(&guest.truth(played)?, &record::exits(played, "trace")?, played.pid("guest")?, Extent::Whole)
            .map(drop)
    });
}

fn locked_down_for_confidentiality(boot: &mut Boot) {
    let scenario = Scenario::new("refused")
        .then(examined("doctor"))
        .run(exitregs("trace", ["trace"]))
        .run(exitregs("stat", ["stat"]));
    boot.test(scenario, |played| {
        let found = report(played, "doctor")?;
        ensure!(!found.works, "it should not work: {found:?}");
        found.says("lockdown", "missing", &["confidentiality", "lockdown=integrity"])?;
        found.says("source bpf", "missing", &["needs what is missing above"])?;
        for command in ["trace", "stat"] {
            played.failed(command, 1, &["locked down for confidentiality", "lockdown=integrity"])?;
        }
        Ok(())
    });
}

/// Works, and says that there will be no L2.
fn without_nesting(boot: &mut Boot) {
    let scenario = Scenario::new("works, with a note").then(examined("doctor"));
    boot.test(scenario, |played| {
        let found = report(played, "doctor")?;
        ensure!(found.works, "it should work: {found:?}");
        found.says("nested", "note", &["nested=N", "modprobe -r kvm_amd && modprobe kvm_amd nested=1"])
    });
}
