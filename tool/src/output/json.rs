// SPDX-License-Identifier: MIT
//! Exits and counts as JSON. Numbers that may exceed 2^53 are strings in hexadecimal; what a source
//! does not know is null.

use crate::analysis::pairing::{NestedPageFault, Record};
use crate::analysis::stat::{Key, Times};
use exitregs_common::detail::Detail;
use exitregs_common::event::{Event, Exit, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::{Isa, Level};
use exitregs_common::operation::{NestedPageFault as NestedPageFaultText, Operation};
use exitregs_common::outcome::{ExitResult, Outcome};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// An exit or nested page fault as an object; `isa` is the host's.
pub fn record(record: &Record, isa: Isa, vm_name: &str) -> Value {
    match record {
        Record::Exit(one) => exit(one, vm_name),
        Record::NestedPageFault(fault) => nested_page_fault(fault, isa, vm_name),
    }
}

/// Of a nested page fault there is no entry: `event` tells it from an exit.
fn nested_page_fault(fault: &NestedPageFault, isa: Isa, vm_name: &str) -> Value {
    json!({
        "event": KvmNestedPageFault::NAME,
        "time_ns": fault.time,
        "vm": vm(fault.tgid),
        "vm_name": vm_name,
        "vcpu": fault.event.vcpu_id,
        "level": level(Level::from_is_nested(fault.event.is_nested)),
        "l2": l2(fault.nested_state),
        "isa": isa.to_string(),
        "operation": NestedPageFaultText(&fault.event, isa, fault.unknown).to_string(),
        "nested_page_fault": fields(&fault.event, fault.unknown),
    })
}

/// The pid of a VM; null if the source did not know it.
fn vm(tgid: u32) -> Value {
    (tgid != 0).then_some(tgid).into()
}

/// The GPA of vmcb12 or vmcs12; null if the source did not know it.
pub(super) fn l2(nested_state: u64) -> Value {
    if nested_state == 0 { Value::Null } else { hexadecimal(nested_state) }
}

/// An exit as an object.
pub fn exit(exit: &Exit, vm_name: &str) -> Value {
    let isa = Isa::from_field(exit.exit.isa);
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| object.insert(name.to_owned(), value);
    set("time_ns", exit.exit_time.into());
    set("vm", vm(exit.tgid));
    set("vm_name", vm_name.into());
    set("vcpu", exit.exit.vcpu_id.into());
    set("level", level(Level::from_is_nested(exit.exit.is_nested)));
    set("l2", if exit.exit.is_nested != 0 { l2(exit.nested_state) } else { Value::Null });
    set("isa", isa.map(|isa| isa.to_string()).into());
    set("reason", isa.map(|isa| isa.exit_reason(exit.exit.exit_reason).to_string()).into());
    set("operation", Operation(exit).to_string().into());
    set("detail", detail(Detail::of(exit)));
    set("outcome", outcome(Outcome::of(exit)).into());
    set("result", ExitResult::of(exit).map(|result| result.to_string()).into());
    set("took_ns", (exit.entry_time != 0).then(|| exit.entry_time - exit.exit_time).into());
    set("l0_ns", (exit.next_entry_time != 0).then(|| exit.next_entry_time - exit.exit_time).into());
    set("exit", fields(&exit.exit, exit.exit_unknown));
    set("entry", if exit.entry_time == 0 { Value::Null } else { fields(&exit.entry, exit.entry_unknown) });
    Value::Object(object)
}

/// An event's own fields and the COMMON ones.
fn fields<E: Event>(event: &E, unknown: u32) -> Value {
    let protected = E::index("is_protected").and_then(|index| event.value(index)).unwrap_or(0) != 0;
    let value = |(index, field): (usize, &exitregs_common::event::Field)| {
        let is_register = field.is_common() && field.size == 8;
        let value = match event.value(index) {
            Some(value) if unknown & 1 << index == 0 && !(protected && is_register) => {
                if field.is_hexadecimal() { hexadecimal(value) } else { value.into() }
            }
            _ => Value::Null,
        };
        (field.name.to_owned(), value)
    };
    Value::Object(E::FIELDS.iter().enumerate().map(value).collect())
}

pub(super) fn level(level: Level) -> Value {
    json!(match level {
        Level::L1 => 1,
        Level::L2 => 2,
    })
}

pub(super) fn hexadecimal(value: u64) -> Value {
    format!("{value:#x}").into()
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Exception(_) => "exception",
        Outcome::Unknown => "unknown",
        Outcome::NotEnded => "not ended",
    }
}

/// What an exit was about, as an object with a `kind`.
pub fn detail(detail: Detail) -> Value {
    match detail {
        Detail::None => Value::Null,
        Detail::Unknown => json!({ "kind": "unknown" }),
        Detail::Msr { index, write } => json!({
            "kind": "msr", "msr": format!("{index:#x}"), "name": exitregs_common::msr::name(index).map(|name| name.to_string()),
            "write": write,
        }),
        Detail::Hypercall { abi, number } => json!({
            "kind": "hypercall", "abi": abi.map(|abi| abi.name()), "number": hexadecimal(number),
            "name": abi.and_then(|abi| abi.call_name(number)),
        }),
        Detail::Cpuid { leaf, subleaf } => json!({
            "kind": "cpuid", "leaf": format!("{leaf:#x}"), "subleaf": subleaf.map(|subleaf| format!("{subleaf:#x}")),
        }),
        Detail::Io(access) => json!({
            "kind": "io", "port": format!("{:#x}", access.port), "size": access.size, "in": access.is_in,
            "string": access.is_string, "rep": access.is_rep,
        }),
    }
}

/// A row of `stat`, for JSON and CSV.
#[derive(Debug, Serialize)]
pub struct StatRow {
    vm: u32,
    vm_name: String,
    vcpu: Option<u32>,
    level: Value,
    isa: String,
    exit_reason: String,
    reason: String,
    detail: Value,
    detail_text: String,
    exits: u64,
    not_ended: u64,
    total_ns: u64,
    min_ns: u64,
    mean_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
}

impl StatRow {
    /// What [`csv`](Self::csv) returns, by name.
    pub const CSV_HEADING: [&str; 17] = [
        "at_s",
        "vm",
        "vm_name",
        "vcpu",
        "level",
        "isa",
        "exit_reason",
        "reason",
        "detail",
        "exits",
        "not_ended",
        "total_ns",
        "min_ns",
        "mean_ns",
        "p50_ns",
        "p99_ns",
        "max_ns",
    ];

    /// The row as comma-separated values have it, read `at` seconds after the start.
    pub fn csv(&self, at: f64) -> [String; 17] {
        [
            format!("{at:.6}"),
            self.vm.to_string(),
            self.vm_name.clone(),
            self.vcpu.map(|vcpu| vcpu.to_string()).unwrap_or_default(),
            self.level.to_string(),
            self.isa.clone(),
            self.exit_reason.clone(),
            self.reason.clone(),
            self.detail_text.clone(),
            self.exits.to_string(),
            self.not_ended.to_string(),
            self.total_ns.to_string(),
            self.min_ns.to_string(),
            self.mean_ns.to_string(),
            self.p50_ns.to_string(),
            self.p99_ns.to_string(),
            self.max_ns.to_string(),
        ]
    }

    /// The row of a key.
    pub fn new(key: &Key, times: &Times, vm_name: &str) -> Self {
        Self {
            vm: key.vm,
            vm_name: vm_name.to_owned(),
            vcpu: key.vcpu,
            level: level(key.level),
            isa: key.isa.to_string(),
            exit_reason: format!("{:#x}", key.exit_reason),
            reason: key.isa.exit_reason(key.exit_reason).to_string(),
            detail: detail(key.detail),
            detail_text: key.detail.to_string(),
            exits: times.exits(),
            not_ended: times.unended,
            total_ns: times.total,
            min_ns: times.min,
            mean_ns: times.mean(),
            p50_ns: times.percentile(50.0),
            p99_ns: times.percentile(99.0),
            max_ns: times.max,
        }
    }
}

const _: () = assert!(KvmExit::FIELDS.len() <= 32 && KvmEntry::FIELDS.len() <= 32);
