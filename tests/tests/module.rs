// SPDX-License-Identifier: MIT
//! The kernel module on unpatched kernels, on AMD and on Intel: its events are what `common/` says, and say what the ground
//! truth does; filters, triggers and perf work on them; it refuses what is wrong, and goes away under load.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::event::{Event, KvmEntry, KvmExit};
use exitregs_common::isa::{Isa, Level};
use exitregs_lab::host::{Base, Built, Kernel};
use exitregs_lab::{counts, module};
use exitregs_tests::events::{counters, every_script, found_in, perf_counters};
use exitregs_tests::exitregs::{exitregs, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Suite};
use exitregs_tests::view::{bounds, filter};
use nix::sys::signal::Signal;

/// Where the module lies on the hosts.
const FILE: &str = "/kvm_exitregs.ko";
/// What busybox' insmod exits with is the error's number.
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for base in Base::ALL {
        let built = Built::plain(base);
        let (kernel, file) = (Kernel::Built(built), module::build(built)?);
        let amd = suite::host(kernel)?.smp(2).program("perf").file(&file, FILE);
        let amd = suite.boot(kernel.to_string(), amd);
        refused(amd);
        loaded(amd);
        formats(amd);
        // Random scripts not on Linux 7: see tests/trace.rs.
        let seeds = if base == Base::Mainline { 0 } else { counts().pick(2, 50) };
        every_script(amd, Isa::Svm, seeds, "module");
        counters(amd, Isa::Svm, "module");
        perf_counters(amd, Isa::Svm, "exitregs:kvm_exit");
        tracefs(amd, Isa::Svm);
        load_and_unload(amd);
        let intel = suite::intel(kernel)?.program("perf").file(&file, FILE);
        let intel = suite.boot(format!("{kernel} on Intel"), intel);
        loaded(intel);
        formats(intel);
        every_script(intel, Isa::Vmx, counts().pick(1, 20), "module");
        counters(intel, Isa::Vmx, "module");
        perf_counters(intel, Isa::Vmx, "exitregs:kvm_exit");
        tracefs(intel, Isa::Vmx);
    }
    Ok(())
}

fn insmod(name: &str, parameters: &str) -> Process {
    Process::shell(name, format!("insmod {FILE} {parameters}"))
}

/// Offsets that cannot be right are refused with a message; one that could be, and is not, makes no event and no fault.
fn refused(boot: &mut Boot) {
    const WRONG: [&str; 3] = ["vmcb_offset=0", "vmcb_offset=7", "vmcb_offset=4294967288"];
    let guest = Guest::new("guest", "basic").without_truth();
    let mut scenario =
        Scenario::new("wrong offsets").run(exitregs("without", ["trace", "--source", "module"]));
    for (number, parameter) in WRONG.into_iter().enumerate() {
        scenario = scenario.run(insmod(&format!("wrong-{number}"), parameter));
    }
    // The first place after the vCPU's common part that is aligned, and then the last that is taken.
    let plausible = "base=$(dmesg | sed -n 's/.*multiple of 8 from \\([0-9]*\\) on/\\1/p' | tail -n 1)
        for offset in $base $((base + 8 * 512)) $((base + 16376)); do
            insmod /kvm_exitregs.ko vmcb_offset=$offset && cd /sys/kernel/tracing || exit 1
            echo 1 > events/exitregs/enable
            (cd /tmp && eval \"$1\" > /dev/null) || exit 2
            echo 0 > events/exitregs/enable
            cat trace
            cd / && rmmod kvm_exitregs || exit 3
        done";
    let argv = ["sh", "-c", plausible, "sh"].map(str::to_owned).to_vec();
    let mut process = Process::new("plausible", argv);
    process.argv.push(guest.argv().join(" "));
    let scenario = scenario.run(process).run(Process::new("log", ["dmesg"]));
    boot.test(scenario, move |played| {
        played.failed("without", 1, &["the module kvm_exitregs is not loaded", "insmod"])?;
        for number in 0..WRONG.len() {
            played.failed(&format!("wrong-{number}"), EINVAL, &["Invalid argument"])?;
        }
        let log = played.stdout("log")?;
        for word in ["vmcb_offset is missing", "vmcb_offset=7 cannot be", "vmcb_offset=4294967288 cannot be"]
        {
            ensure!(log.contains(word), "the kernel did not say {word:?}");
        }
        played.succeeded(&["plausible"])
    });
}

/// Loads it for the tests that follow; a second time it is refused. `trace` chooses it, `doctor` tells it.
fn loaded(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic");
    let run = guest.process();
    let scenario = Scenario::new("loaded")
        .run(insmod("first", ""))
        .run(insmod("second", ""))
        .run(exitregs("doctor", ["doctor"]))
        .then(while_running(vec![trace("trace", &[])], |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["first", "doctor"])?;
        played.failed("second", EEXIST, &["File exists"])?;
        let text = played.stdout("doctor")?;
        let line = text.lines().find(|line| line.contains("source module")).context("doctor is silent")?;
        ensure!(line.starts_with("OK"), "{line}");
        played.failed("trace", 0, &["tracing by the module source"])?;
        let found = found_in(&record::exits(played, "trace")?, &guest, played)?;
        ensure!(found > 40, "only {found} exits were compared");
        Ok(())
    });
}

/// The `format` files are what `common/` says, to the letter.
fn formats(boot: &mut Boot) {
    let cat = |event: &str| {
        Process::new(event, ["cat", &format!("/sys/kernel/tracing/events/exitregs/{event}/format")])
    };
    let scenario = Scenario::new("formats").run(cat(KvmExit::NAME)).run(cat(KvmEntry::NAME));
    boot.test(scenario, |played| {
        for (name, expected) in
            [(KvmExit::NAME, KvmExit::format().to_string()), (KvmEntry::NAME, KvmEntry::format().to_string())]
        {
            let text = played.stdout(name)?;
            let (_, own) = text.split_once("\n\n").with_context(|| format!("{name}: {text}"))?;
            ensure!(own == expected, "{name}: found\n{own}expected\n{expected}");
        }
        Ok(())
    });
}

/// Two instances with a filter each, a histogram, and the text of a record.
fn tracefs(boot: &mut Boot, isa: Isa) {
    const COUNTED: [(&str, Level); 2] = [("msr", Level::L2), ("hypercall", Level::L1)];
    let guest = Guest::new("guest", "basic").repeat(3);
    let [msr, hypercall] =
        COUNTED.map(|(view, level)| filter(view, isa, level).expect("the views are there"));
    let script = format!(
        "cd /sys/kernel/tracing
        mkdir instances/one instances/two
        echo '{msr}' > instances/one/events/exitregs/kvm_exit/filter || exit 1
        echo '{hypercall}' > instances/two/events/exitregs/kvm_exit/filter || exit 1
        echo is_nested > instances/two/events/exitregs/kvm_exit/filter && exit 2
        echo '{hypercall}' > instances/two/events/exitregs/kvm_exit/filter || exit 1
        echo 'hist:keys=is_nested' > events/exitregs/kvm_exit/trigger || exit 3
        echo 1 > instances/one/events/exitregs/kvm_exit/enable
        echo 1 > instances/two/events/exitregs/kvm_exit/enable
        cd - > /dev/null
        {} || exit 4
        cd /sys/kernel/tracing
        echo 0 > instances/one/events/exitregs/kvm_exit/enable
        echo 0 > instances/two/events/exitregs/kvm_exit/enable
        grep -c ' kvm_exit: exit_reason 0x' instances/one/trace
        grep -c ' kvm_exit: exit_reason 0x' instances/two/trace
        grep -c '^{{ is_nested:' events/exitregs/kvm_exit/hist
        echo '!hist:keys=is_nested' > events/exitregs/kvm_exit/trigger
        rmdir instances/one instances/two",
        guest.argv().join(" "),
    );
    boot.test(Scenario::new("tracefs").run(Process::shell(guest.name(), script)), move |played| {
        let truth = guest.truth(played)?;
        let text = played.stdout(guest.name())?;
        let found: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(found.len() == 3 && found[2] == 2, "{text}");
        for ((view, level), count) in COUNTED.into_iter().zip(found) {
            let (least, most) = bounds(&truth, view, isa, level);
            ensure!(least > 0 && (least..=most).contains(&count), "{view}: {count}, not {least} to {most}");
        }
        Ok(())
    });
}

/// Loads, enables, disables and unloads it, again and again, while a guest exits all the time; sometimes unloads it enabled.
fn load_and_unload(boot: &mut Boot) {
    let cycles = counts().pick(10, 1000);
    let guest = Guest::new("guest", "mix").repeat(1_000_000).without_truth();
    let script = format!(
        "rmmod kvm_exitregs
        cd /sys/kernel/tracing
        for cycle in $(seq {cycles}); do
            insmod {FILE} || exit 1
            echo 1 > events/exitregs/enable
            until grep -q ' kvm_exit: ' trace; do sleep 0.1; done
            [ $((cycle % 3)) = 0 ] || echo 0 > events/exitregs/enable
            rmmod kvm_exitregs || exit 3
            [ -e events/exitregs ] && exit 4
        done
        echo done"
    );
    let scenario = Scenario::new("load and unload under load")
        .start(guest.process())
        .run(Process::shell("cycles", script))
        .kill(guest.name(), Signal::SIGKILL)
        .end(guest.name());
    boot.test(scenario, |played| {
        played.succeeded(&["cycles"])?;
        ensure!(played.stdout("cycles")? == "done\n", "the cycles were not done");
        Ok(())
    });
}
