// SPDX-License-Identifier: MIT
//! What the scripted guest says it did is what stock kernels' `kvm:kvm_exit` saw.

use std::collections::BTreeMap;

use exitregs_common::isa::Isa;
use exitregs_lab::host::{Amd, Command, Emulator, Host, Kernel, Outcome};
use exitregs_lab::script::builtins;
use exitregs_lab::truth::{Exits, Handled, Line, Outcome as End, Seen, compare};
use exitregs_lab::{binaries, counts};

/// One command that traces a run of the guest into the folder `/o/NAME`.
fn traced(name: &str, arguments: &str) -> Command {
    Command::shell(format!(
        "set -e
        trace=/sys/kernel/tracing
        mkdir -p /o/{name}
        echo 32768 > $trace/buffer_size_kb
        echo > $trace/trace
        echo 1 > $trace/events/kvm/kvm_exit/enable
        exitregs-guest --truth /o/{name}/truth {arguments}
        echo 0 > $trace/events/kvm/kvm_exit/enable
        cat $trace/per_cpu/cpu*/stats > /o/{name}/stats
        cat $trace/trace > /o/{name}/trace"
    ))
}

fn with_guest<E: Emulator>(host: Host<E>) -> Host<E> {
    let guest = binaries::lab().unwrap().all.remove("exitregs-guest").unwrap();
    host.file(guest, "/usr/bin/exitregs-guest").get("/o")
}

fn host(kernel: Kernel) -> Host<Amd> {
    with_guest(Host::amd(kernel))
}

fn file(outcome: &Outcome, name: &str, file: &str) -> String {
    String::from_utf8(outcome.files.read(format!("/o/{name}/{file}")).unwrap()).unwrap()
}

/// The lines of each vCPU.
fn truth(outcome: &Outcome, name: &str) -> BTreeMap<u32, Vec<Line>> {
    let mut vcpus: BTreeMap<u32, Vec<Line>> = BTreeMap::new();
    for text in file(outcome, name, "truth").lines() {
        let line: Line = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        vcpus.entry(line.vcpu).or_default().push(line);
    }
    vcpus
}

/// The exits of each vCPU, by the names of their threads.
fn seen(outcome: &Outcome, name: &str) -> BTreeMap<u32, Vec<Seen>> {
    let lost = |line: &str| line.starts_with("overrun:") || line.starts_with("dropped events:");
    for line in file(outcome, name, "stats").lines().filter(|line| lost(line)) {
        assert!(line.ends_with(": 0"), "the tracer lost events: {line}");
    }
    let mut vcpus: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
    for line in file(outcome, name, "trace").lines() {
        let Some((head, exit)) = line.split_once(": kvm_exit: ") else { continue };
        let thread = head.trim_start().split_once('-').unwrap().0;
        let vcpu = thread.strip_prefix("vcpu").unwrap().parse().unwrap();
        let (reason, rest) = exit.split_once(" reason ").unwrap().1.split_once(" rip 0x").unwrap();
        let rip = rest.split_once(' ').unwrap().0;
        vcpus.entry(vcpu).or_default().push(Seen {
            reason: reason.to_owned(),
            rip: u64::from_str_radix(rip, 16).unwrap(),
            level: None,
            registers: None,
        });
    }
    vcpus
}

fn assert_same(outcome: &Outcome, name: &str) {
    let (truth, seen) = (truth(outcome, name), seen(outcome, name));
    assert!(truth.keys().eq(seen.keys()), "{name}: vCPUs {:?} and {:?}", truth.keys(), seen.keys());
    for (vcpu, lines) in &truth {
        let differences = compare(lines, &seen[vcpu]);
        let text: Vec<String> = differences.iter().take(10).map(ToString::to_string).collect();
        assert!(differences.is_empty(), "{name}, vCPU {vcpu}: {} differences: {text:#?}", differences.len());
        assert_consistent(name, lines);
    }
}

/// What must hold within the lines of a vCPU.
fn assert_consistent(name: &str, lines: &[Line]) {
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(line.seq, n as u64, "{name}");
        let reaches_l1 = matches!(line.handled, Some(Handled::Reflected | Handled::Forced));
        let exits: Vec<&str> = lines[n + 1..]
            .iter()
            .scan(false, |ran, later| {
                let over = *ran;
                *ran = later.operands.l2.is_some() && later.operands.l2 == line.l2;
                (!over).then_some(later)
            })
            .filter(|later| reaches_l1 && later.level == 1 && later.exit_reason.is_some())
            .map(|later| later.instruction.as_str())
            .collect();
        assert_eq!(line.l1_exits, exits, "{name}: {line:?}");
        // An instruction that L1 skips, or that writes no general register, leaves them alone.
        if matches!(
            line.instruction.as_str(),
            "wrmsr" | "out" | "hlt" | "vmload" | "store" | "wbinvd" | "fetch"
        ) && line.level == 1
            && line.outcome == End::Completed
        {
            assert_eq!(line.after, Some(line.before), "{name}: {line:?}");
        }
        if line.outcome == End::GeneralProtection {
            assert_eq!(line.after, Some(line.before), "{name}: {line:?}");
        }
    }
}

fn scripts_are_what_happens<E: Emulator>(host: Host<E>, isa: Isa, seeds: u64) {
    let mut runs: Vec<(String, String)> = builtins(isa)
        .map(|builtin| (builtin.name.to_owned(), format!("--script {} --repeat 3", builtin.name)))
        .collect();
    for seed in 0..seeds {
        runs.push((format!("random-{seed}"), format!("--random {seed} --ops 150")));
    }
    let outcome = with_guest(host)
        .time_limit(std::time::Duration::from_secs(counts().pick(600, 6000)))
        .run_each(runs.iter().map(|(name, arguments)| traced(name, arguments)))
        .unwrap();
    for ((name, _), command) in runs.iter().zip(&outcome.commands) {
        command.check().unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_same(&outcome, name);
    }
    assert_eq!(outcome.commands.len(), runs.len());
}

#[test]
fn scripts_are_what_happens_on_6_1() {
    scripts_are_what_happens(Host::amd(Kernel::Stock6_1), Isa::Svm, counts().pick(6, 200));
}

#[test]
fn scripts_are_what_happens_on_6_12() {
    scripts_are_what_happens(Host::amd(Kernel::Stock6_12), Isa::Svm, counts().pick(6, 200));
}

#[test]
fn scripts_are_what_happens_on_intel() {
    scripts_are_what_happens(Host::intel(Kernel::Stock6_12), Isa::Vmx, counts().pick(4, 100));
}

#[test]
fn several_vcpus_and_a_full_log_lose_nothing() {
    let repeat: u32 = counts().pick(2000, 50_000);
    let outcome = host(Kernel::Stock6_12)
        .smp(2)
        .time_limit(std::time::Duration::from_secs(counts().pick(200, 3000)))
        .run_each([
            traced("two", &format!("--script basic --vcpus 2 --repeat {}", counts().pick(100, 500))),
            Command::shell(format!(
                "exitregs-guest --script mix --vcpus 2 --repeat {repeat} --timeout 2000 --truth /dev/stdout"
            )),
        ])
        .unwrap();
    outcome.commands[0].check().unwrap();
    assert_same(&outcome, "two");
    // More than the log holds: the guest had to have it read, which is in the truth as well.
    outcome.commands[1].check().unwrap();
    let text = outcome.commands[1].stdout_text();
    let mut next = [0; 2];
    let mut turn = [0; 2];
    for line in text.lines().map(|text| serde_json::from_str::<Line>(text).unwrap()) {
        let vcpu = line.vcpu as usize;
        assert_eq!(line.seq, next[vcpu]);
        assert!(line.turn == turn[vcpu] || line.turn == turn[vcpu] + 1, "{line:?} after turn {}", turn[vcpu]);
        next[vcpu] += 1;
        turn[vcpu] = line.turn;
    }
    for lines in next {
        // 16 instructions of the script, 3 VMRUNs, the end of the block; and the last port write.
        let script = u64::from(repeat) * 20 + 1;
        assert!(lines > script && lines < script + script / 1000, "{lines} lines, {script} of the script");
    }
}

#[test]
fn what_goes_wrong_is_said_and_a_guest_that_dies_leaves_the_truth_until_then() {
    let outcome = host(Kernel::Stock6_1)
        .run_each([
            Command::shell("exitregs-guest --script basic --repeat 9 --die-midway --truth /dev/stdout"),
            Command::shell("exitregs-guest --script basic --repeat 9 --truth /dev/stdout"),
            Command::shell("exitregs-guest --script mix --repeat 1000000 --timeout 2 --truth /dev/null"),
            Command::shell("exitregs-guest --script none"),
            Command::shell("exitregs-guest --start-on-line </dev/null"),
            Command::shell("echo | exitregs-guest --start-on-line --truth /dev/null"),
            Command::shell(
                "exitregs-guest --wait-for /go --truth /waited & sleep 1; test ! -s /waited && touch /go && wait $!",
            ),
            Command::shell("rmmod kvm_amd; modprobe kvm_amd nested=0; exitregs-guest"),
            Command::shell("rmmod kvm_amd; exitregs-guest"),
        ])
        .unwrap();
    let lines = |n: usize| -> Vec<Line> {
        outcome.commands[n].stdout_text().lines().map(|text| serde_json::from_str(text).unwrap()).collect()
    };
    let (dead, whole) = (lines(0), lines(1));
    assert!(!outcome.commands[0].status.success());
    outcome.commands[1].check().unwrap();
    let last = dead.last().unwrap();
    assert_eq!((last.outcome, last.level), (End::Left, 2), "{last:?}");
    assert!(
        dead.len() > whole.len() / 3 && dead.len() < whole.len() * 2 / 3,
        "{} of {}",
        dead.len(),
        whole.len()
    );
    assert!(whole.iter().all(|line| line.exits != Exits::Never));
    for (n, status, message) in [
        (2, 1, "the guest was not done after 2s"),
        (3, 2, "--list shows them all"),
        (4, 1, "standard input ended"),
        (5, 0, "ready "),
        (6, 0, "ready "),
        (7, 1, "nested=1"),
        (8, 1, "cannot open /dev/kvm"),
    ] {
        let command = &outcome.commands[n];
        assert_eq!(command.status, exitregs_lab::host::Status::Code(status), "{command:?}");
        assert!(command.stderr_text().contains(message), "{command:?}");
    }
}
