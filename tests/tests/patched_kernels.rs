// SPDX-License-Identifier: MIT
//! Kernels with the series of `patches/`, booted: their events are what `common/` says, KVM's selftests, the series' own
//! among them, pass as before, and the code that enters the guest is the same as without.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use exitregs_common::event::{Event, Field, HEADER_SIZE, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::Isa;
use exitregs_lab::host::{Base, Built, Command, Emulator, Host, Kernel, Outcome, Status};
use exitregs_lab::selftests::Selftests;

const PATCHED: fn(Base) -> Built = Built::patched;
const PLAIN: fn(Base) -> Built = Built::plain;

/// For all the selftests of a host: an emulated Intel host takes a minute or two.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// The series' own selftest.
const OWN: &str = "nested_tracepoints_test";
/// Selftests with nested guests, those of a vendor that both bases have.
const fn nested(isa: Isa) -> &'static [&'static str] {
    match isa {
        Isa::Svm => &[
            "nested_exceptions_test",
            "hyperv_svm_test",
            "smm_test",
            "state_test",
            "svm_int_ctl_test",
            "svm_nested_shutdown_test",
            "svm_vmcall_test",
        ],
        Isa::Vmx => &[
            "nested_exceptions_test",
            "hyperv_evmcs",
            "smm_test",
            "state_test",
            "vmx_apic_access_test",
            "vmx_invalid_nested_guest_state",
        ],
    }
}

/// Those that were renamed, or came, after 6.12. On newer kernels most are for both vendors.
const fn nested_of(base: Base, isa: Isa) -> &'static [&'static str] {
    match (base, isa) {
        (Base::V6_12, Isa::Svm) => &[],
        (Base::V6_12, Isa::Vmx) => &[
            "vmx_close_while_nested_test",
            "vmx_dirty_log_test",
            "vmx_set_nested_state_test",
            "vmx_tsc_adjust_test",
        ],
        (Base::Mainline, _) => &[
            "nested_close_kvm_test",
            "nested_dirty_log_test",
            "nested_emulation_test",
            "nested_set_state_test",
            "nested_tdp_fault_test",
            "nested_tsc_adjust_test",
        ],
    }
}

/// A field line of a `format` file: type, name, offset, size, signed.
type Line = (String, String, usize, usize, bool);

/// The lines of a `format` file, but for those that every event has.
fn lines(format: &str) -> Vec<Line> {
    let parse = |line: &str| -> Option<Line> {
        let mut parts = line.trim().split(';').map(str::trim);
        let (c_type, name) = parts.next()?.strip_prefix("field:")?.rsplit_once(' ')?;
        let mut number = |name| parts.next()?.strip_prefix(name)?.parse::<usize>().ok();
        Some((
            c_type.to_owned(),
            name.to_owned(),
            number("offset:")?,
            number("size:")?,
            number("signed:")? != 0,
        ))
    };
    let lines: Vec<_> = format.lines().filter_map(parse).collect();
    lines.into_iter().filter(|(_, name, ..)| !name.starts_with("common_")).collect()
}

/// What the lines have to be, on a kernel whose event lacks the fields `absent`: the others move up.
fn expected(fields: &[Field], absent: &[&str]) -> Vec<Line> {
    for name in absent {
        assert!(fields.iter().any(|field| field.name == *name && field.optional), "{name} may not be absent");
    }
    let mut end = HEADER_SIZE;
    let mut lines = Vec::new();
    for field in fields.iter().filter(|field| !absent.contains(&field.name)) {
        let offset = end.next_multiple_of(field.size);
        end = offset + field.size;
        lines.push((field.c_type.to_owned(), field.name.to_owned(), offset, field.size, false));
    }
    lines
}

fn format_of<E: Event>(outcome: &Outcome, absent: &[&str]) {
    let path = format!("/sys/kernel/tracing/events/kvm/{}/format", E::NAME);
    let text = String::from_utf8(outcome.files.read(&path).unwrap()).unwrap();
    assert_eq!(lines(&text), expected(E::FIELDS, absent), "{}:\n{text}", E::NAME);
    // What `perf script` and `trace-cmd report` print by.
    for field in E::FIELDS.iter().filter(|field| field.is_common()) {
        assert!(text.contains(&format!("REC->{}", field.name)), "{} is not printed:\n{text}", field.name);
    }
}

/// Runs a selftest, and again if it fails: on the emulated AMD host `state_test` does once in fifty times, with the series and
/// without it: its guest gets a #UD.
const SOME_TIMES: &str =
    "for turn in 1 2 3; do \"$0\"; status=$?; [ $status = 0 ] && break; done; exit $status";

/// Boots a host and runs the selftests; their statuses by name.
fn selftests<E: Emulator>(host: Host<E>, programs: &[PathBuf]) -> (BTreeMap<String, Status>, Outcome) {
    let mut host = host.get("/sys/kernel/tracing/events/kvm/*/format").time_limit(TIME_LIMIT);
    let mut commands = Vec::new();
    for program in programs {
        let inside = Path::new("/opt").join(program.file_name().unwrap());
        host = host.file(program, &inside);
        commands.push(Command::new(["sh", "-c", SOME_TIMES, inside.to_str().unwrap()]));
    }
    let outcome = host.run_each(commands).unwrap();
    assert_eq!(outcome.kernel_warnings(), [""; 0], "{}", outcome.kernel_log);
    let names = programs.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    let statuses = names.zip(outcome.commands.iter().map(|command| command.status)).collect();
    (statuses, outcome)
}

fn events_and_selftests<E: Emulator>(base: Base, isa: Isa, host: fn(Kernel) -> Host<E>) {
    let programs = {
        let tree = PATCHED(base).tree().unwrap();
        let names: Vec<_> = [&[OWN], nested(isa), nested_of(base, isa)].concat();
        Selftests::new(&tree).unwrap().build(&names).unwrap()
    };
    let (mut patched, outcome) = selftests(host(Kernel::Built(PATCHED(base))), &programs);
    let (absent_exit, absent_entry) = match base {
        Base::V6_12 => (&["requests"][..], &["intr_info", "error_code"][..]),
        Base::Mainline => (&[][..], &[][..]),
    };
    format_of::<KvmExit>(&outcome, absent_exit);
    format_of::<KvmEntry>(&outcome, absent_entry);
    format_of::<KvmNestedPageFault>(&outcome, &[]);

    let (mut plain, _) = selftests(host(Kernel::Built(PLAIN(base))), &programs);
    let said = || outcome.commands[0].stdout_text() + &outcome.commands[0].stderr_text();
    assert_eq!(patched.remove(OWN), Some(Status::Code(0)), "{}", said());
    let without = plain.remove(OWN).unwrap();
    assert!(matches!(without, Status::Code(code) if code != 0), "{OWN} without the patches: {without}");
    assert_eq!(patched, plain);
    assert!(patched.values().filter(|status| status.success()).count() >= 4, "{patched:?}");
}

#[test]
fn v6_12_has_the_events_and_passes_the_selftests_on_amd() {
    events_and_selftests(Base::V6_12, Isa::Svm, Host::amd);
}

#[test]
fn mainline_has_the_events_and_passes_the_selftests_on_amd() {
    events_and_selftests(Base::Mainline, Isa::Svm, Host::amd);
}

#[test]
fn v6_12_has_the_events_and_passes_the_selftests_on_intel() {
    events_and_selftests(Base::V6_12, Isa::Vmx, Host::intel);
}

#[test]
fn mainline_has_the_events_and_passes_the_selftests_on_intel() {
    events_and_selftests(Base::Mainline, Isa::Vmx, Host::intel);
}

/// The instructions of a function in an object file of a kernel, without what depends on where it lies.
fn instructions(kernel: Built, object: &str, function: &str) -> Vec<String> {
    let tree = kernel.tree().unwrap();
    let output = std::process::Command::new("objdump")
        .args(["--disassemble", "--reloc", "--no-show-raw-insn", "--no-addresses"])
        .arg(tree.build_folder().join("arch/x86/kvm").join(object))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().skip_while(|line| *line != format!("<{function}>:")).skip(1);
    lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().map(|word| unplaced(word, function)).collect();
            words.join(" ")
        })
        .collect()
}

/// A word of the disassembly, without the offset from anything but the function itself.
fn unplaced<'a>(word: &'a str, function: &str) -> &'a str {
    let inside = word.trim_matches(['<', '>']);
    match inside.split_once('+') {
        Some((symbol, _)) if symbol != function => symbol,
        _ => inside,
    }
}

fn same_code(base: Base) {
    for (object, function) in [("svm/svm.o", "svm_vcpu_run"), ("vmx/vmx.o", "vmx_vcpu_run")] {
        let plain = instructions(PLAIN(base), object, function);
        let patched = instructions(PATCHED(base), object, function);
        assert!(plain.len() > 100, "{function}: {plain:#?}");
        assert!(
            plain.iter().any(|line| line.contains("kvm_exit")),
            "{function} does not call the tracepoint: {plain:#?}"
        );
        assert_eq!(plain, patched, "{function}");
    }
}

#[test]
fn untraced_exits_of_v6_12_run_the_same_instructions() {
    same_code(Base::V6_12);
}

#[test]
fn untraced_exits_of_mainline_run_the_same_instructions() {
    same_code(Base::Mainline);
}
