// SPDX-License-Identifier: MIT
//! The kernel module's machine code: what its probes call. And that DKMS builds it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use exitregs_lab::host::requirements::{self, Requirement};
use exitregs_lab::host::{Base, Built};
use exitregs_lab::module;

/// All that a probe may call: of the kernel, and of `src/helpers.c`. Nothing of these allocates, sleeps or panics.
const ALLOWED: [&str; 11] = [
    "__trace_trigger_soft_disabled",
    "copy_from_kernel_nofault",
    "exitregs_current",
    "exitregs_perf_caller_regs",
    "exitregs_perf_events",
    "exitregs_preempt_disable",
    "exitregs_preempt_enable",
    "perf_trace_buf_alloc",
    "perf_trace_run_bpf_submit",
    "trace_event_buffer_commit",
    "trace_event_buffer_reserve",
];
/// What the compiler puts at the start and the end of a function.
const EMITTED: [&str; 5] = ["__fentry__", "__x86_return_thunk", "__stack_chk_fail", "memcpy", "memset"];

fn probes_call_only_what_they_may(base: Base) {
    let path = module::build(Built::plain(base)).unwrap();
    let output = Command::new("objdump")
        .args(["--disassemble", "--reloc", "--no-show-raw-insn"])
        .arg(path.with_file_name("src").join("kvm_exitregs_main.o"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (mut probe, mut probes, mut called) = (None, BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once('<')) {
            // The end of a mangled path: exit::probe, entry::perf_probe, nested_page_fault::entry_probe …
            probe = ["5probe", "10perf_probe", "11entry_probe"]
                .iter()
                .any(|end| name.ends_with(end))
                .then_some(name);
            probes.extend(probe);
        } else if let Some(name) = probe {
            assert!(!line.contains("\tud2"), "{name} can panic: {line}");
            let Some((_, target)) = line.split_once("R_X86_64_PLT32\t") else {
                // A call that needs no relocation is one to a function nearby.
                let elsewhere = line.contains("\tcall") && !line.contains(&format!("<{name}+"));
                assert!(!elsewhere, "{name}: {line}");
                continue;
            };
            called.insert(target.rsplit_once('-').map_or(target, |(symbol, _)| symbol));
        }
    }
    assert_eq!(probes.len(), 7, "{probes:?}");
    let others: Vec<_> =
        called.iter().filter(|symbol| !ALLOWED.contains(symbol) && !EMITTED.contains(symbol)).collect();
    assert!(others.is_empty(), "probes call {others:?}");
    assert!(called.contains("trace_event_buffer_commit") && called.contains("perf_trace_run_bpf_submit"));
}

#[test]
fn probes_for_v6_12_call_only_what_they_may() {
    probes_call_only_what_they_may(Base::V6_12);
}

#[test]
fn probes_for_mainline_call_only_what_they_may() {
    probes_call_only_what_they_may(Base::Mainline);
}

#[test]
fn dkms_builds_it() {
    requirements::install(&[Requirement::new("dkms", "dkms")]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = module::build_by_dkms(Built::plain(Base::V6_12), folder.path()).unwrap();
    let module = fs::metadata(path).unwrap();
    assert!(module.len() > 10_000, "{module:?}");
}
