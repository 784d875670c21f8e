// SPDX-License-Identifier: MIT
//! The dynamic events that an unpatched kernel is given: the patched kernel's, with the same fields, from where BTF says that
//! KVM has them.
//!
//! Source: Documentation/trace/fprobetrace.rst in Linux; arch/x86/kvm/svm/svm.h, vmx/vmx.h and vmx/common.h for the members.

use crate::btf::Types;
use exitregs_common::event::{COMMON_NAMES, Event, Field, GROUP, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::Isa;
use std::fmt;

/// What else the event of nested page faults has, for KVM computes the error codes in the function that the probe is on:
/// whether the hardware reported the fault, ...
pub const FROM_HARDWARE: &str = "from_hardware";
/// ... what the hardware says, which is of this fault only if it did, ...
pub const HARDWARE_ERROR_CODE: &str = "hardware_error_code";
/// ... and on VMX the reason of its exit: that of an EPT misconfiguration says nothing.
pub const HARDWARE_EXIT_REASON: &str = "hardware_exit_reason";

/// The definition of a dynamic event: a line of `dynamic_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The event's name.
    pub name: &'static str,
    /// `t`: on a tracepoint; `f`: on a function's entry.
    kind: char,
    /// The tracepoint or function.
    pub on: &'static str,
    /// `name=fetch:type`, in the order of the event's fields.
    arguments: Vec<String>,
}

impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{GROUP}/{} {}", self.kind, self.name, self.on)?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

/// Where a probe finds a value.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// An argument, from 1.
    Argument(usize),
    /// A member of the vendor's vCPU, which the first argument is; the first of these that the kernel has.
    Vcpu(&'static [&'static str]),
    /// A member of the exception that the second argument is.
    Exception(&'static str),
}

use Origin::{Argument, Exception, Vcpu};

/// The definitions for this host, as far as its kernel has what they read.
///
/// The events of exits and entries come first. That of nested page faults is missing where BTF does not describe the function
/// that injects them.
///
/// # Errors
/// The name of the member that KVM does not have and that exits cannot do without.
pub fn definitions(
    types: &Types,
    isa: Isa,
    has_immediate_exit: bool,
) -> Result<Vec<Definition>, &'static str> {
    let exit = event::<KvmExit>(types, isa, 't', KvmExit::NAME, |field| exit_field(isa, field));
    let entry = event::<KvmEntry>(types, isa, 't', KvmEntry::NAME, |field| match field {
        "immediate_exit" => has_immediate_exit.then_some(Argument(2)),
        _ => entry_field(isa, field),
    });
    let needed = ["exit_reason", "vcpu_id"].iter().chain(COMMON_NAMES);
    if let Some(missing) = needed.copied().find(|name| !exit.has(name)) {
        return Err(missing);
    }
    let function = injector(isa);
    let mut definitions = vec![exit, entry];
    if let Some(parameters) = types.parameters(function) {
        let mut fault =
            event::<KvmNestedPageFault>(types, isa, 'f', function, |field| fault_field(isa, field));
        if let Some(place) = parameters.iter().position(|name| name == FROM_HARDWARE) {
            let code: &[&str] = match isa {
                Isa::Svm => &["vmcb.control.exit_info_1"],
                Isa::Vmx => &["exit_qualification", "vt.exit_qualification"],
            };
            fault.arguments.push(format!("{FROM_HARDWARE}=$arg{}:u8", place + 1));
            let code = fetch(types, isa, Vcpu(code)).map(|code| format!("{HARDWARE_ERROR_CODE}={code}:x64"));
            fault.arguments.extend(code);
            if isa == Isa::Vmx {
                let reason = fetch(types, isa, Vcpu(VMX_EXIT_REASON));
                fault.arguments.extend(reason.map(|reason| format!("{HARDWARE_EXIT_REASON}={reason}:x32")));
            }
        }
        definitions.push(fault);
    }
    Ok(definitions)
}

/// KVM's function that injects page faults of L2's into L1.
pub fn injector(isa: Isa) -> &'static str {
    match isa {
        Isa::Svm => "nested_svm_inject_npf_exit",
        Isa::Vmx => "nested_ept_inject_page_fault",
    }
}

/// Whether the event `E` has a field on every kernel that takes it, by what is known without the kernel's types.
pub fn has<E: Event>(isa: Isa, field: &str) -> bool {
    let origin = match E::NAME {
        KvmExit::NAME => exit_field(isa, field),
        KvmEntry::NAME => entry_field(isa, field),
        _ => fault_field(isa, field),
    };
    origin.is_some()
}

impl Definition {
    /// Whether the probe is on a function, not on a tracepoint.
    pub fn is_on_function(&self) -> bool {
        self.kind == 'f'
    }

    /// Whether the event has a field.
    pub fn has(&self, field: &str) -> bool {
        self.arguments.iter().any(|argument| argument.split('=').next() == Some(field))
    }
}

fn event<E: Event>(
    types: &Types,
    isa: Isa,
    kind: char,
    on: &'static str,
    origin: impl Fn(&str) -> Option<Origin>,
) -> Definition {
    let argument = |field: &Field| {
        let fetched = fetch(types, isa, origin(field.name)?)?;
        let letter = if field.is_hexadecimal() { 'x' } else { 'u' };
        Some(format!("{}={fetched}:{letter}{}", field.name, field.size * 8))
    };
    Definition { name: E::NAME, kind, on, arguments: E::FIELDS.iter().filter_map(argument).collect() }
}

/// The fetch argument of an origin: `+8(+16($arg1))`.
fn fetch(types: &Types, isa: Isa, origin: Origin) -> Option<String> {
    let (argument, offsets) = match origin {
        Argument(number) => return Some(format!("$arg{number}")),
        Vcpu(members) => {
            let vcpu = match isa {
                Isa::Svm => "vcpu_svm",
                Isa::Vmx => "vcpu_vmx",
            };
            // Both begin with their struct kvm_vcpu.
            let find = |member: &&str| types.place(vcpu, member).or_else(|| types.place("kvm_vcpu", member));
            (1, members.iter().find_map(find)?)
        }
        Exception(member) => (2, types.place("x86_exception", member)?),
    };
    Some(offsets.iter().fold(format!("$arg{argument}"), |inner, offset| format!("+{offset}({inner})")))
}

/// The fields that all three events have.
fn common_field(field: &str) -> Option<Origin> {
    Some(Vcpu(match field {
        "vcpu_id" => &["vcpu_id"],
        "is_nested" => &["stat.guest_mode"],
        "is_protected" => &["arch.guest_state_protected"],
        // By their ModRM numbers.
        "rax" => &["arch.regs[0]"],
        "rcx" => &["arch.regs[1]"],
        "rdx" => &["arch.regs[2]"],
        "rbx" => &["arch.regs[3]"],
        _ => return None,
    }))
}

const VMX_EXIT_REASON: &[&str] = &["exit_reason.full", "vt.exit_reason.full"];

/// VMX caches RIP, the exit qualification, and what interrupted the guest when they are first asked for, which at the exit is
/// after the probe: they are left out.
fn exit_field(isa: Isa, field: &str) -> Option<Origin> {
    Some(match (isa, field) {
        (_, "isa") => Argument(2),
        (_, "requests") => Vcpu(&["requests"]),
        (Isa::Svm, "exit_reason") => Vcpu(&["vmcb.control.exit_code"]),
        (Isa::Svm, "guest_rip") => Vcpu(&["vmcb.save.rip"]),
        (Isa::Svm, "info1") => Vcpu(&["vmcb.control.exit_info_1"]),
        (Isa::Svm, "info2") => Vcpu(&["vmcb.control.exit_info_2"]),
        (Isa::Svm, "intr_info") => Vcpu(&["vmcb.control.exit_int_info"]),
        (Isa::Svm, "error_code") => Vcpu(&["vmcb.control.exit_int_info_err"]),
        (Isa::Vmx, "exit_reason") => Vcpu(VMX_EXIT_REASON),
        (Isa::Vmx, "info2") => Vcpu(&["idt_vectoring_info"]),
        _ => return common_field(field),
    })
}

/// On VMX, RIP is left out: it need not be cached. So is what is injected, which only the VMCS has.
fn entry_field(isa: Isa, field: &str) -> Option<Origin> {
    Some(match (isa, field) {
        // RIP was the last of regs[] before it left for a member of its own.
        (Isa::Svm, "rip") => Vcpu(&["arch.rip", "arch.regs[16]"]),
        (Isa::Svm, "intr_info") => Vcpu(&["vmcb.control.event_inj"]),
        (Isa::Svm, "error_code") => Vcpu(&["vmcb.control.event_inj_err"]),
        _ => return common_field(field),
    })
}

fn fault_field(isa: Isa, field: &str) -> Option<Origin> {
    Some(match (isa, field) {
        (_, "gpa") => Exception("address"),
        (Isa::Svm, "guest_rip") => Vcpu(&["vmcb.save.rip"]),
        _ => return common_field(field),
    })
}
