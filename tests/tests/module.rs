// SPDX-License-Identifier: MIT
//! The kernel module on unpatched kernels, on AMD and on Intel: its events are what `common/` says, and say what the ground
//! truth does; filters, triggers and perf work on them; it refuses what is wrong, and goes away under load.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::event::{Event, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::{Isa, Level};
use exitregs_lab::host::{Base, Built, Kernel};
use exitregs_lab::{counts, module};
use exitregs_tests::events::{
    counters, every_script, expected_faults, found_in, nested_page_faults, perf_counters,
};
use exitregs_tests::exitregs::{exitregs, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Suite};
use exitregs_tests::view::{bounds, filter};
use nix::sys::signal::Signal;

/// Where the module lies on the hosts.
const FILE: &str = "/kvm_exitregs.ko";
/// And one that was built without KVM's private headers.
const PUBLIC: &str = "/public.ko";
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
        let public = module::build_by_public_headers(built)?;
        let amd = suite::host(kernel)?.smp(2).program("perf").file(&file, FILE).file(&public, PUBLIC);
        let amd = suite.boot(kernel.to_string(), amd);
        refused(amd);
        loaded(amd);
        formats(amd);
        nested_page_faults(amd, Isa::Svm, "module");
        // Random scripts not on Linux 7: see tests/trace.rs.
        let seeds = if base == Base::Mainline { 0 } else { counts().pick(2, 50) };
        every_script(amd, Isa::Svm, seeds, "module");
        counters(amd, Isa::Svm, "module");
        perf_counters(amd, Isa::Svm, "module");
        tracefs(amd, Isa::Svm);
        load_and_unload(amd);
        if base == Base::V6_12 {
            by_offsets(amd, Isa::Svm);
            one_maker(amd);
        }
        let intel = suite::intel(kernel)?.program("perf").file(&file, FILE).file(&public, PUBLIC);
        let intel = suite.boot(format!("{kernel} on Intel"), intel);
        loaded(intel);
        formats(intel);
        nested_page_faults(intel, Isa::Vmx, "module");
        every_script(intel, Isa::Vmx, counts().pick(1, 20), "module");
        counters(intel, Isa::Vmx, "module");
        perf_counters(intel, Isa::Vmx, "module");
        tracefs(intel, Isa::Vmx);
        if base == Base::V6_12 {
            by_offsets(intel, Isa::Vmx);
        }
    }
    // It takes half an hour to build.
    for kernel in counts().pick(vec![], vec![Built::kasan(Base::V6_12)]) {
        let host = suite::host(Kernel::Built(kernel))?.smp(2).file(module::build(kernel)?, FILE);
        load_and_unload(suite.boot(kernel.to_string(), host));
    }
    let kernel = Built::plain(Base::V6_12);
    let file = module::build(kernel)?;
    // KVM is there, and finds nothing to run guests with.
    let host = suite::host(Kernel::Built(kernel))?.kernel_parameter("clearcpuid=svm").file(&file, FILE);
    without_vendor(suite.boot("without SVM", host));
    Ok(())
}

fn insmod(name: &str, parameters: &str) -> Process {
    Process::shell(name, format!("insmod {FILE} {parameters}"))
}

/// Offsets that cannot be right are refused with a message; one that could be, and is not, makes no event and no fault.
fn refused(boot: &mut Boot) {
    const WRONG: [&str; 5] = [
        "vmcb_offset=0",
        "vmcb_offset=7",
        "vmcb_offset=4294967288",
        "fault_address_offset=12",
        "fault_address_offset=64",
    ];
    let guest = Guest::new("guest", "basic").without_truth();
    let mut scenario =
        Scenario::new("wrong offsets").run(exitregs("without", ["trace", "--source", "module"]));
    for (number, parameter) in WRONG.into_iter().enumerate() {
        scenario = scenario.run(insmod(&format!("wrong-{number}"), parameter));
    }
    // The first place after the vCPU's common part that is aligned, and then the last that is taken.
    let plausible =
        "base=$(dmesg | sed -n 's/.*vmcb_offset=7 cannot be: .* from \\([0-9]*\\) on.*/\\1/p' | tail -n 1)
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
        played.failed(
            "without",
            1,
            &["the module kvm_exitregs is not loaded", "events install --source module"],
        )?;
        for number in 0..WRONG.len() {
            played.failed(&format!("wrong-{number}"), EINVAL, &["Invalid argument"])?;
        }
        let log = played.stdout("log")?;
        for word in WRONG.map(|parameter| match parameter {
            "vmcb_offset=0" => "vmcb_offset is missing".to_owned(),
            other => format!("{other} cannot be"),
        }) {
            ensure!(log.contains(&word), "the kernel did not say {word:?}");
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
    let expected = [
        (KvmExit::NAME, KvmExit::format().to_string()),
        (KvmEntry::NAME, KvmEntry::format().to_string()),
        (KvmNestedPageFault::NAME, KvmNestedPageFault::format().to_string()),
    ];
    let scenario =
        expected.iter().fold(Scenario::new("formats"), |scenario, (name, _)| scenario.run(cat(name)));
    boot.test(scenario, move |played| {
        for (name, expected) in &expected {
            let text = played.stdout(name)?;
            let (_, own) = text.split_once("\n\n").with_context(|| format!("{name}: {text}"))?;
            ensure!(own == *expected, "{name}: found\n{own}expected\n{expected}");
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

/// Cycles in one round of [`load_and_unload`]: as many as the slowest kernel does in the time that a process has.
const CYCLES: i64 = 10;

/// Loads, enables, disables and unloads it, again and again, while guests exit all the time; sometimes unloads it enabled. It
/// leaves no memory behind.
fn load_and_unload(boot: &mut Boot) {
    // kmemleak, where the kernel has it, looks for every object that nobody points to any more.
    const LEAKS: &str = "/sys/kernel/debug/kmemleak";
    let rounds: Vec<_> = (0..counts().pick(1, 1000 / CYCLES)).map(|round| format!("round-{round}")).collect();
    let guests = ["mix", "page-fault"].map(|script| Guest::new(script, script).endless());
    let clear = format!(
        "[ -e /sys/module/kvm_exitregs ] && rmmod kvm_exitregs
        mount -t debugfs none /sys/kernel/debug 2> /dev/null
        [ ! -e {LEAKS} ] || echo clear > {LEAKS}"
    );
    let cycles = |count: i64| {
        format!(
            "cd /sys/kernel/tracing
            for cycle in $(seq {count}); do
                insmod {FILE} || exit 1
                echo 1 > events/exitregs/enable || exit 2
                until grep -q ' kvm_exit: ' trace; do sleep 0.1; done
                until grep -q ' kvm_nested_page_fault: ' trace; do sleep 0.1; done
                [ $((cycle % 3)) = 0 ] || echo 0 > events/exitregs/enable
                rmmod kvm_exitregs || exit 3
                [ -e events/exitregs ] && exit 4
            done
            true"
        )
    };
    // It prints what each cycle might leave some of, in KiB. KASAN keeps what was freed until its cache is shrunk.
    let used = "for shrink in /sys/kernel/slab/*/shrink; do echo 1 > $shrink; done
        awk '/^(SUnreclaim|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo";
    let look = format!(
        "[ ! -e {LEAKS} ] || {{ echo scan > {LEAKS}; sleep 5; echo scan > {LEAKS}; grep -A 20 exitregs {LEAKS}; }}
        true"
    );
    let [mix, faults] = guests.map(|guest| guest.process());
    let scenario = Scenario::new("load and unload under load")
        .run(Process::shell("clear", clear))
        .start(mix)
        .start(faults)
        .run(Process::shell("begin", cycles(2)))
        .run(Process::shell("first", used))
        .then(|scenario| {
            let run = |scenario: Scenario, name: &String| scenario.run(Process::shell(name, cycles(CYCLES)));
            rounds.iter().fold(scenario, run)
        })
        .run(Process::shell("last", used))
        .run(Process::shell("look", look))
        .kill("mix", Signal::SIGKILL)
        .end("mix")
        .kill("page-fault", Signal::SIGKILL)
        .end("page-fault");
    boot.test(scenario, move |played| {
        let names: Vec<_> = rounds.iter().map(String::as_str).collect();
        played.succeeded(&["begin", "first", "last"])?;
        played.succeeded(&names)?;
        let used = |name: &str| -> Result<i64> { Ok(played.stdout(name)?.trim().parse()?) };
        let (grown, cycles) = (used("last")? - used("first")?, CYCLES * rounds.len() as i64);
        // The guests' own memory comes and goes meanwhile.
        ensure!(grown < 1024 + 4 * cycles, "the kernel's memory has grown by {grown} KiB in {cycles} cycles");
        let leaks = played.stdout("look")?;
        ensure!(leaks.is_empty(), "{leaks}");
        Ok(())
    });
}

fn install(name: &str, file: &str) -> Process {
    exitregs(name, ["events", "install", "--source", "module", "--file", file])
}

/// Where only the type information tells where KVM has what: loaded with that, the events are the same.
fn by_offsets(boot: &mut Boot, isa: Isa) {
    let (basic, faults) = (Guest::new("basic", "basic"), Guest::new("faults", "page-fault"));
    let run = [&basic, &faults].map(Guest::process);
    let scenario = Scenario::new("offsets by BTF")
        .run(exitregs("absent", ["events", "remove"]))
        .run(Process::shell("without", format!("insmod {PUBLIC} || dmesg | tail -n 1")))
        .run(exitregs("none", ["events", "remove", "--source", "module"]))
        .run(install("install", PUBLIC))
        .run(exitregs("list", ["events", "list"]))
        .then(while_running(vec![trace("trace", &["--source", "module"])], |scenario| {
            run.into_iter().fold(scenario, Scenario::run)
        }))
        .run(exitregs("remove", ["events", "remove"]));
    boot.test(scenario, move |played| {
        played.succeeded(&["absent", "without", "none", "list", "remove"])?;
        let (without, expected) = (
            played.stdout("without")?,
            match isa {
                Isa::Svm => "vmcb_offset is missing",
                // It can do without all but nested page faults.
                Isa::Vmx => "",
            },
        );
        ensure!(without.contains(expected) && without.is_empty() == expected.is_empty(), "{without}");
        played.failed("install", 0, &["loaded /public.ko with ", "fault_address_offset="])?;
        let list = played.stdout("list")?;
        ensure!(list.lines().count() == 3 && list.contains("exitregs/kvm_exit kvm_exitregs "), "{list}");
        ensure!(list.contains(" vmcb_offset=") == (isa == Isa::Svm), "{list}");
        let exits = record::exits(played, "trace")?;
        for guest in [&basic, &faults] {
            let found = found_in(&exits, guest, played)?;
            ensure!(found >= 10, "only {found} exits of {} were compared", guest.name());
        }
        expected_faults(isa, &faults.truth(played)?, &record::nested_page_faults(played, "trace")?)
    });
}

/// Dynamic events and the module do not get into each other's way, nor is either taken from who uses it.
fn one_maker(boot: &mut Boot) {
    const INSTANCE: &str = "/sys/kernel/tracing/instances/others";
    let event = format!("{INSTANCE}/events/exitregs/kvm_exit");
    let tprobe = |name: &str| exitregs(name, ["events", "install"]);
    let remove = |name: &str| exitregs(name, ["events", "remove"]);
    let force = |name: &str| exitregs(name, ["events", "remove", "--force"]);
    let perf = ["perf", "stat", "-a", "-e", "exitregs:kvm_exit"];
    let scenario = Scenario::new("one maker of events")
        .run(install("no-file", "/no/such/file.ko"))
        .run(install("no-module", "/init"))
        .run(exitregs("not-installed", ["events", "install", "--source", "module"]))
        .run(tprobe("tprobe"))
        .run(install("both", FILE))
        .run(remove("remove-tprobe"))
        .run(install("module", FILE))
        .run(install("again", FILE))
        .run(tprobe("tprobe-too"))
        .run(trace("trace-too", &["--source", "tprobe"]))
        .run(Process::shell("use", format!("mkdir {INSTANCE} && echo 1 > {event}/enable")))
        .run(remove("busy"))
        .run(force("force"))
        .run(Process::shell("after", format!("rmdir {INSTANCE}; ls /sys/module/kvm_exitregs")))
        .run(install("for-perf", FILE))
        .start(Process::new("perf", perf))
        .run(Process::shell(
            "wait",
            "until [ $(cat /sys/module/kvm_exitregs/refcnt) != 0 ]; do sleep 0.1; done",
        ))
        .run(force("perf-uses-it"))
        .kill("perf", Signal::SIGINT)
        .end("perf")
        .run(remove("end"))
        .run(exitregs("list", ["events", "list"]));
    boot.test(scenario, |played| {
        played.failed("no-file", 1, &["cannot load /no/such/file.ko", "No such file"])?;
        played.failed("no-module", 1, &["cannot load /init", "it was not built for this kernel"])?;
        played.failed("not-installed", 1, &["kvm_exitregs.ko is not below /lib/modules/", "--file"])?;
        played.succeeded(&["tprobe", "remove-tprobe", "module", "use", "for-perf", "wait", "end", "list"])?;
        played.failed(
            "both",
            1,
            &["dynamic events have the names of the module's", "exitregs events remove"],
        )?;
        played.failed("again", 0, &["they are there already"])?;
        for name in ["tprobe-too", "trace-too"] {
            played.failed(name, 1, &["the module kvm_exitregs is loaded", "exitregs events remove"])?;
        }
        played.failed("busy", 1, &["exitregs:kvm_exit is in use", "it is enabled in", "others"])?;
        played.failed("force", 0, &["removed the module kvm_exitregs"])?;
        played.failed("after", 1, &["/sys/module/kvm_exitregs"])?;
        played.failed("perf-uses-it", 1, &["the module kvm_exitregs is in use", "perf"])?;
        ensure!(played.stdout("list")?.is_empty(), "some are left");
        Ok(())
    });
}

/// A processor that has neither extension: KVM is there, and no vendor's half.
fn without_vendor(boot: &mut Boot) {
    const ENODEV: i32 = 19;
    let scenario = Scenario::new("KVM without a vendor")
        .run(insmod("insmod", ""))
        .run(install("install", FILE))
        .run(Process::new("log", ["dmesg"]));
    boot.test(scenario, |played| {
        played.failed("insmod", ENODEV, &["No such device"])?;
        played.failed("install", 1, &["SVM to KVM"])?;
        let log = played.stdout("log")?;
        ensure!(log.contains("this processor has neither VMX nor SVM"), "the kernel did not say why");
        Ok(())
    });
}
