// SPDX-License-Identifier: MIT
//! What goes wrong: clear words, the right exit status, nothing left behind. (The last is checked after every scenario of
//! every suite.)

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_lab::counts;
use exitregs_lab::host::{Kernel, Status};
use exitregs_tests::exitregs::{exitregs, stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Suite};
use exitregs_tests::truth::{Extent, compare, compare_counts, detail};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for kernel in Kernel::STOCK {
        let boot = suite.boot(kernel.to_string(), suite::host(kernel)?.smp(2));
        without_privileges(boot);
        wrong_arguments(boot);
        without_patches(boot);
        without_btf(boot);
        output_that_cannot_be_written(boot);
        a_reader_that_has_enough(boot);
        signals(boot);
        a_command_is_ended_too(boot);
        killed(boot);
        a_guest_that_dies(boot);
        a_guest_that_is_killed(boot);
        several_at_once(boot);
        a_full_ring_buffer(boot);
    }
    Ok(())
}

/// A guest that goes on until it is killed.
fn endless() -> Guest {
    Guest::new("guest", "mix").endless()
}

fn without_privileges(boot: &mut Boot) {
    let scenario = Scenario::new("no privileges")
        .run(exitregs("trace", ["trace"]).unprivileged(&[]))
        .run(exitregs("stat", ["stat"]).unprivileged(&[]))
        .run(exitregs("only-bpf", ["trace"]).unprivileged(&["bpf"]))
        .run(exitregs("only-perfmon", ["stat"]).unprivileged(&["perfmon"]))
        .run(exitregs("doctor", ["doctor"]).unprivileged(&[]));
    boot.test(scenario, |played| {
        for name in ["trace", "stat", "only-bpf", "only-perfmon"] {
            played.failed(name, 1, &["no permission", "CAP_BPF and CAP_PERFMON", "setcap"])?;
            ensure!(played.stdout(name)?.is_empty(), "{name} printed something");
        }
        played.failed("doctor", 1, &[])?;
        let text = played.stdout("doctor")?;
        ensure!(text.contains("none of CAP_BPF, CAP_PERFMON") && text.contains("setcap"), "{text}");
        Ok(())
    });
}

fn wrong_arguments(boot: &mut Boot) {
    let long = vec!["rax == 1"; 65].join(" && ");
    let cases: [(&[&str], &[&str]); 28] = [
        (&[], &["Usage"]),
        (&["no-such-command"], &["no-such-command"]),
        (&["trace", "--no-such-option"], &["--no-such-option"]),
        (&["trace", "--view", "no-such-view"], &["no-such-view", "msr-write"]),
        (&["stat", "--view", "nested-page-fault"], &["--view", "stat counts exits"]),
        (&["trace", "--level", "l3"], &["l3", "l2"]),
        (&["trace", "--vcpu", "first"], &["first"]),
        (&["trace", "--reason", "no-such-reason"], &["--reason", "no-such-reason"]),
        (&["trace", "--reason", "0xno"], &["--reason", "0xno"]),
        (&["trace", "--vm", "4194305"], &["--vm", "there is no process 4194305"]),
        (&["stat", "--vm", "no-such-vm"], &["--vm", "no running VM is called `no-such-vm`"]),
        (&["trace", "--where", "rcx = 5"], &["--where", "  | rcx = 5\n", "\n  |     ^", "== != <"]),
        (&["stat", "--where", "rcx == 5 && rdi == 1"], &["there is no field `rdi`", "^^^", "guest_rip"]),
        (&["trace", "--where", "is_nested"], &["a field alone is not a condition", "is_nested == 1"]),
        (&["trace", "--where", ""], &["--where", "expected a field's name"]),
        (&["trace", "--where", "(rax == 1"], &["never closed", "\n  | ^"]),
        (&["stat", "--where", "rax == 18446744073709551616"], &["does not fit into 64 bits"]),
        (&["trace", "--where", &long], &["the filter takes 129 operations", "64 at most"]),
        (&["trace", "--hypercall-abi", "vmware"], &["vmware", "hyperv"]),
        (&["trace", "--duration", "0"], &["more than zero"]),
        (&["stat", "--interval", "5parsecs"], &["parsecs"]),
        (&["trace", "--buffer-size", "3"], &["power of two"]),
        (&["stat", "--json", "--csv"], &["--csv"]),
        (&["doctor", "now"], &["now"]),
        (&["events", "install", "--file", "module.ko"], &["--file", "--source module"]),
        (&["views", "msrs"], &["msrs", "msr-write"]),
        (&["views", "msr", "--vendor", "arm"], &["--vendor", "svm"]),
        (&["views", "nested-page-fault", "--level", "l1"], &["--level", "nested page faults are of L2"]),
    ];
    let mut scenario = Scenario::new("wrong arguments");
    let mut expected = Vec::new();
    for (number, (arguments, words)) in cases.into_iter().enumerate() {
        let name = format!("case-{number}");
        scenario = scenario.run(exitregs(&name, arguments.iter().copied()));
        let words: Vec<_> = words.iter().copied().map(str::to_owned).collect();
        expected.push((name, arguments.join(" "), words));
    }
    boot.test(scenario, move |played| {
        for (name, arguments, words) in &expected {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            played.failed(name, 2, &words).with_context(|| format!("exitregs {arguments}"))?;
            ensure!(played.stdout(name)?.is_empty(), "exitregs {arguments}: something on standard output");
        }
        Ok(())
    });
}

/// What only patched kernels have.
fn without_patches(boot: &mut Boot) {
    let scenario = Scenario::new("no patches")
        .run(exitregs("trace", ["trace", "--source", "native"]))
        .run(exitregs("stat", ["stat", "--source", "native"]))
        .run(exitregs("faults", ["trace", "--source", "bpf", "--view", "nested-page-fault"]))
        .run(exitregs("views", ["views", "msr", "--tool", "perf-stat"]))
        .run(exitregs("views-l2", ["views", "msr", "--level", "l2"]));
    boot.test(scenario, |played| {
        played.succeeded(&["views"])?;
        let views = played.stdout("views")?;
        let commands: Vec<_> =
            views.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        ensure!(commands == ["perf stat -a -e kvm:kvm_exit --filter 'exit_reason == 0x7c'"], "{views}");
        ensure!(views.matches("kvm:kvm_exit has no is_nested").count() == 2, "{views}");
        played.failed("views-l2", 1, &["tell nothing of this", "exitregs events install"])?;
        let lacks = "kvm_exit has no is_nested, is_protected, rax, rbx, rcx, rdx";
        played.failed("trace", 1, &[lacks, "patch series"])?;
        played.failed("stat", 1, &[lacks, "patch series"])?;
        played.failed(
            "faults",
            1,
            &["this source has no nested page faults", "--source native, module or tprobe"],
        )
    });
}

/// A kernel without BTF, with that of vmlinux alone, and with BTF that is none.
fn without_btf(boot: &mut Boot) {
    let with = |name: &str, files: &str, command: &str| {
        let line = format!(
            "mkdir {name} && {files} && mount -o bind {name} /sys/kernel/btf && exec exitregs {command}"
        );
        Process::shell(name, line).under(["unshare", "-m"])
    };
    let scenario = Scenario::new("no BTF")
        .run(with("none", "true", "trace"))
        .run(with("none-stat", "true", "stat"))
        .run(with("no-modules", "cp /sys/kernel/btf/vmlinux no-modules/", "trace"))
        .run(with("damaged", "for i in vmlinux kvm kvm_amd; do echo BTF > damaged/$i; done", "trace"))
        .run(with(
            "halved",
            "for i in vmlinux kvm kvm_amd; do head -c 40000 /sys/kernel/btf/$i > halved/$i; done",
            "stat",
        ))
        .run(with("doctor", "true", "doctor"));
    boot.test(scenario, |played| {
        let remedy = "CONFIG_DEBUG_INFO_BTF";
        played.failed("none", 1, &["no BTF: /sys/kernel/btf/vmlinux is missing", remedy])?;
        played.failed("none-stat", 1, &["no BTF: /sys/kernel/btf/vmlinux is missing", remedy])?;
        played.failed("no-modules", 1, &["no BTF: /sys/kernel/btf/kvm is missing", remedy])?;
        played.failed("damaged", 1, &["/sys/kernel/btf/vmlinux"])?;
        played.failed("halved", 1, &["/sys/kernel/btf/"])?;
        played.failed("doctor", 1, &[])?;
        let text = played.stdout("doctor")?;
        ensure!(
            text.contains("no BTF: /sys/kernel/btf/vmlinux is missing") && text.contains(remedy),
            "{text}"
        );
        Ok(())
    });
}

fn output_that_cannot_be_written(boot: &mut Boot) {
    let guest = endless();
    let scenario = Scenario::new("output that cannot be written")
        .run(exitregs("no-folder", ["trace", "-o", "no/such/folder/file"]))
        .run(exitregs("stat-no-folder", ["stat", "-o", "no/such/folder/file"]))
        .run(exitregs("stat-full", ["stat", "--duration", "100ms", "-o", "/dev/full"]))
        .run(Process::shell("stdout-full", "exec exitregs doctor > /dev/full"))
        .run(Process::shell("mount", "mkdir small && mount -t tmpfs -o size=64k none small"))
        .then(guest.start())
        .start(exitregs("full", ["trace", "--json", "-o", "small/trace.json"]))
        .wait_for("full", "tracing")
        .press_enter("guest")
        .end("full")
        .kill("guest", Signal::SIGKILL)
        .end("guest")
        .run(Process::shell("written", "wc -c < small/trace.json && umount small"));
    boot.test(scenario, |played| {
        played.succeeded(&["mount", "written"])?;
        for name in ["no-folder", "stat-no-folder"] {
            played.failed(name, 1, &["cannot write no/such/folder/file", "No such file or directory"])?;
        }
        for name in ["stat-full", "stdout-full", "full"] {
            played.failed(name, 1, &["No space left on device"])?;
        }
        let written: u64 = played.stdout("written")?.trim().parse()?;
        ensure!(written > 0, "nothing was written while there was space");
        Ok(())
    });
}

/// `exitregs … | head`
fn a_reader_that_has_enough(boot: &mut Boot) {
    let guest = endless();
    let scenario = Scenario::new("a reader that has enough")
        .then(guest.start())
        .press_enter("guest")
        .start(exitregs("lines", ["trace"]).head(3))
        .start(exitregs("json", ["trace", "--json"]).head(2))
        .start(exitregs("tables", ["stat", "--interval", "50ms"]).head(5))
        .end("lines")
        .end("json")
        .end("tables")
        .kill("guest", Signal::SIGKILL)
        .end("guest");
    boot.test(scenario, |played| {
        for (name, lines) in [("lines", 3), ("json", 2), ("tables", 5)] {
            played.failed(name, 0, &[])?;
            let said = played.stderr(name)?;
            ensure!(!said.to_lowercase().contains("pipe"), "{name} complains: {said}");
            let read = played.stdout(name)?.lines().count();
            ensure!(read == lines, "{name} wrote {read} lines, not {lines}");
        }
        Ok(())
    });
}

/// Ctrl-C, SIGTERM and a closed terminal end a trace and a count, which then say what there was.
fn signals(boot: &mut Boot) {
    let signals = [("int", Signal::SIGINT), ("term", Signal::SIGTERM), ("hup", Signal::SIGHUP)];
    let guest = endless();
    let mut scenario = Scenario::new("signals").then(guest.start()).press_enter("guest");
    for (name, signal) in signals {
        // One that goes on, and one that surely does something meanwhile.
        let other = Guest::new(format!("guest-{name}"), "basic");
        let (trace, stat) = (format!("trace-{name}"), format!("stat-{name}"));
        scenario = scenario
            .start(exitregs(&trace, ["trace"]))
            .start(exitregs(&stat, ["stat"]))
            .wait_for(&trace, "tracing")
            .wait_for(&stat, "counting")
            .run(other.process())
            .kill(&trace, signal)
            .kill(&stat, signal)
            .end(trace)
            .end(stat);
    }
    let scenario = scenario.kill("guest", Signal::SIGKILL).end("guest");
    boot.test(scenario, move |played| {
        for (name, _) in signals {
            let (trace, stat) = (format!("trace-{name}"), format!("stat-{name}"));
            played.failed(&trace, 0, &[" exits printed, "])?;
            ensure!(played.stdout(&trace)?.lines().count() > 1, "{trace} printed no exits");
            played.failed(&stat, 0, &[])?;
            let table = played.stdout(&stat)?;
            ensure!(
                table.contains("REASON") && table.contains(" exits in "),
                "{stat} printed no table:\n{table}"
            );
        }
        Ok(())
    });
}

/// A command under `stat` or `trace` does not outlive it.
fn a_command_is_ended_too(boot: &mut Boot) {
    let scenario = Scenario::new("a command is ended too")
        .start(exitregs("stat", ["stat", "--", "sh", "-c", "echo begun >&2; exec sleep 1000"]))
        .start(exitregs(
            "trace",
            ["trace", "--", "sh", "-c", "trap '' TERM; echo begun >&2; while true; do sleep 0.1; done"],
        ))
        .wait_for("stat", "begun")
        .wait_for("trace", "begun")
        .kill("stat", Signal::SIGTERM)
        .kill("trace", Signal::SIGTERM)
        .end("stat")
        .end("trace")
        .run(Process::shell("gone", "sleep 0.5; ! pgrep sleep"));
    boot.test(scenario, |played| {
        played.failed("stat", 0, &[])?;
        played.failed("trace", 0, &[])?;
        played.succeeded(&["gone"])
    });
}

/// The kernel itself removes what a killed tracer had loaded.
fn killed(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic").repeat(10);
    let scenario = Scenario::new("SIGKILL")
        .start(exitregs("trace", ["trace"]))
        .start(exitregs("stat", ["stat"]))
        .wait_for("trace", "tracing")
        .wait_for("stat", "counting")
        .then(guest.start())
        .kill("trace", Signal::SIGKILL)
        .kill("stat", Signal::SIGKILL)
        .end("trace")
        .end("stat")
        .then(guest.go());
    boot.test(scenario, |played| {
        for name in ["trace", "stat"] {
            let status = played.status(name)?;
            ensure!(status == Status::Signal(Signal::SIGKILL as i32), "{name}: {status}");
        }
        played.succeeded(&["guest"])
    });
}

/// The VMM kills itself in the middle of its script; the truth ends there, and so do trace and counts.
fn a_guest_that_dies(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic").vcpus(2).repeat(4).die_midway();
    let next = Guest::new("next", "basic");
    let (dies, lives) = (guest.process(), next.process());
    let scenario = Scenario::new("a guest that dies")
        .then(while_running(vec![trace("trace", &[]), stat("stat", &[])], |scenario| {
            scenario.run(dies).run(lives)
        }));
    boot.test(scenario, move |played| {
        played.succeeded(&["trace", "stat", "next"])?;
        let status = played.status("guest")?;
        ensure!(status == Status::Signal(Signal::SIGKILL as i32), "the guest did not die: {status}");
        let exits = record::exits(played, "trace")?;
        compare(&guest.truth(played)?, &exits, played.pid("guest")?, Extent::Beginning)?;
        let truth = next.truth(played)?;
        compare(&truth, &exits, played.pid("next")?, Extent::Whole)?;
        compare_counts(&truth, &record::table(played, "stat")?.rows, played.pid("next")?).map(drop)
    });
}

/// A VMM killed at any point: trace and counts agree on what there was.
fn a_guest_that_is_killed(boot: &mut Boot) {
    let guest = endless().vcpus(2);
    let start = guest.start();
    let kill = |scenario: Scenario| {
        scenario.press_enter("guest").sleep(500).kill("guest", Signal::SIGKILL).end("guest")
    };
    let scenario = Scenario::new("a guest that is killed")
        .then(start)
        .then(while_running(vec![trace("trace", &[]), stat("stat", &[])], kill));
    boot.test(scenario, |played| {
        played.succeeded(&["trace", "stat"])?;
        let exits = record::exits(played, "trace")?;
        ensure!(!exits.is_empty(), "nothing was traced");
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for exit in exits {
            *counts.entry((exit.level, exit.reason, exit.detail)).or_default() += 1;
        }
        for row in record::table(played, "stat")?.rows {
            let traced = counts.remove(&(row.level, row.reason.clone(), row.detail.clone())).unwrap_or(0);
            ensure!(traced == row.exits, "{row:?}, but {traced} were traced");
        }
        ensure!(counts.is_empty(), "traced, but not counted: {counts:?}");
        Ok(())
    });
}

/// Several instances at once do not disturb each other.
fn several_at_once(boot: &mut Boot) {
    let guest = Guest::new("guest", "basic").vcpus(2).repeat(3);
    let run = guest.process();
    let processes =
        vec![trace("first", &[]), stat("counts", &[]), trace("second", &[]), stat("more-counts", &[])];
    let scenario =
        Scenario::new("several at once").then(while_running(processes, |scenario| scenario.run(run)));
    boot.test(scenario, move |played| {
        played.succeeded(&["first", "second", "counts", "more-counts", "guest"])?;
        let (truth, pid) = (guest.truth(played)?, played.pid("guest")?);
        for trace in ["first", "second"] {
            compare(&truth, &record::exits(played, trace)?, pid, Extent::Whole)?;
        }
        for stat in ["counts", "more-counts"] {
            compare_counts(&truth, &record::table(played, stat)?.rows, pid)?;
        }
        Ok(())
    });
}

/// While the reader stands still, the ring buffer fills: what it has no room for is counted, to the last exit.
fn a_full_ring_buffer(boot: &mut Boot) {
    let guest = Guest::new("guest", "cpuid").repeat(counts().pick(1_000, 20_000));
    let run = guest.process();
    let tracing = trace("trace", &["--buffer-size", "1", "--view", "cpuid", "--level", "l1"]);
    let scenario = Scenario::new("a full ring buffer").then(while_running(vec![tracing], |scenario| {
        scenario.kill("trace", Signal::SIGSTOP).run(run).kill("trace", Signal::SIGCONT)
    }));
    boot.test(scenario, move |played| {
        played.failed("trace", 0, &["the ring buffer was full", "--buffer-size"])?;
        played.succeeded(&["guest"])?;
        let truth = guest.truth(played)?;
        let sent: Vec<_> =
            truth.iter().filter(|line| line.level == 1 && line.instruction == "cpuid").collect();
        let (exits, lost) = record::exits_and_lost(played, "trace")?;
        ensure!(lost > 0, "1 MiB was enough for {} exits", exits.len());
        let all = exits.len() as u64 + lost;
        ensure!(all == sent.len() as u64, "{} printed and {lost} lost, of {}", exits.len(), sent.len());
        // What came first found room.
        for (line, exit) in sent.iter().zip(&exits) {
            let (is, should) = (exit.exit.registers(), line.before);
            ensure!(is == should && exit.exit.guest_rip == Some(line.rip), "{exit:x?} is not {line:x?}");
            ensure!(exit.detail == detail(line), "{exit:x?} is not {line:x?}");
        }
        Ok(())
    });
}
