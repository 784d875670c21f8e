// SPDX-License-Identifier: MIT
//! The patch series of this repository apply, please checkpatch.pl and compile: each commit of KVM's once in `cargo xtask
//! test`, in every configuration in `cargo xtask soak`. The perf that comes of its series tells levels, and counts right.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use exitregs_lab::host::{self, Base, Built, Host, Kernel};
use exitregs_lab::truth::Line;
use exitregs_lab::{binaries, cache, counts};

fn check(series: &str, options: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["patches", "check", series]).args(options);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (found, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{found}\n{said}");
    assert_eq!(found, format!("{series}: ok\n"));
}

#[test]
fn mainline() {
    check("mainline", counts().pick(&["--quick"], &[]));
}

#[test]
fn v6_12() {
    check("v6.12", counts().pick(&["--quick"], &[]));
}

#[test]
fn perf() {
    check("perf", &[]);
    let perf = cache::folder("check/perf/perf").unwrap().join("build/perf/perf");
    let guest = binaries::lab().unwrap().all.remove("exitregs-guest").unwrap();
    let record = "set -e; mkdir /o
        $0 kvm --host stat record -a -o /o/data exitregs-guest --script mix --repeat 20 --truth /o/truth
        for event in msr hypercall cpuid; do $0 kvm --host -i /o/data stat report --stdio --event $event >/o/$event 2>&1; done";
    let kernel = Kernel::Built(Built::patched(Base::V6_12));
    let outcome = Host::amd(kernel)
        .program(&perf)
        .file(guest, "/usr/bin/exitregs-guest")
        .get("/o")
        .run(host::Command::new(["sh", "-c", record, perf.to_str().unwrap()]))
        .unwrap();
    outcome.last().check().unwrap();
    let read = |name: &str| String::from_utf8(outcome.files.read(format!("/o/{name}")).unwrap()).unwrap();
    let truth: Vec<Line> = read("truth").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in ["msr", "hypercall", "cpuid"] {
        let text = read(event);
        assert_eq!(reported(&text), caused(&truth, event), "{text}");
    }
}

/// How often which level did what, by `perf kvm stat report`, in rows such as `L2 0x1b:R  60  50.00% …`.
fn reported(text: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let level = words.next().filter(|word| matches!(*word, "L1" | "L2"))?;
        Some((format!("{level} {}", words.next()?), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

/// The same by the guest.
fn caused(truth: &[Line], event: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in truth {
        let before = line.before;
        let what = match (event, &*line.instruction) {
            ("msr", "rdmsr") => format!("{:#x}:R", before.rcx as u32),
            ("msr", "wrmsr") => format!("{:#x}:W", before.rcx as u32),
            ("hypercall", "vmmcall") => format!("{:#x}", before.rax),
            ("cpuid", "cpuid") => (before.rax as u32).to_string(),
            _ => continue,
        };
        *counts.entry(format!("L{} {what}", line.level)).or_default() += 1;
    }
    counts
}

#[test]
fn an_unknown_series_is_misuse() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(["patches", "check", "v6.13"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
