// SPDX-License-Identifier: MIT
//! What `exitregs trace --json` and `exitregs stat --json` wrote. A member that is missing or not expected is an error:
//! other programs read these formats.

use anyhow::{Context, Result};
use exitregs_common::event::KvmExit;
use exitregs_lab::truth::Registers;
use serde::{Deserialize, Deserializer};

use crate::suite::Played;

/// One line of `trace --json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are those of tool/src/output/json.rs")]
pub struct Exit {
    pub time_ns: u64,
    #[serde(deserialize_with = "zero_if_null")]
    pub vm: u32,
    pub vm_name: String,
    pub vcpu: u32,
    pub level: u8,
    #[serde(deserialize_with = "hex_or_null")]
    pub l2: Option<u64>,
    pub isa: String,
    pub reason: String,
    pub operation: String,
    pub detail: Option<Detail>,
    pub outcome: Outcome,
    pub result: Option<String>,
    pub took_ns: Option<u64>,
    pub l0_ns: Option<u64>,
    pub exit: ExitFields,
    pub entry: Option<EntryFields>,
}

/// A line of `trace --json` that is no exit's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are those of tool/src/output/json.rs")]
pub struct NestedPageFault {
    pub event: String,
    pub time_ns: u64,
    pub vm: u32,
    pub vm_name: String,
    pub vcpu: u32,
    pub level: u8,
    #[serde(deserialize_with = "hex_or_null")]
    pub l2: Option<u64>,
    pub isa: String,
    pub operation: String,
    pub nested_page_fault: NestedPageFaultFields,
}

/// The fields of `kvm_nested_page_fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in exitregs_common::event")]
pub struct NestedPageFaultFields {
    pub vcpu_id: u32,
    #[serde(deserialize_with = "hex_or_null")]
    pub guest_rip: Option<u64>,
    #[serde(deserialize_with = "hex")]
    pub gpa: u64,
    #[serde(deserialize_with = "hex")]
    pub host_error_code: u64,
    #[serde(deserialize_with = "hex")]
    pub guest_error_code: u64,
    pub is_nested: u8,
    pub is_protected: u8,
    #[serde(deserialize_with = "hex")]
    pub rax: u64,
    #[serde(deserialize_with = "hex")]
    pub rbx: u64,
    #[serde(deserialize_with = "hex")]
    pub rcx: u64,
    #[serde(deserialize_with = "hex")]
    pub rdx: u64,
}

/// How an exit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "those of exitregs_common::outcome::Outcome")]
pub enum Outcome {
    Completed,
    Exception,
    Unknown,
    #[serde(rename = "not ended")]
    NotEnded,
}

/// The fields of `kvm_exit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in exitregs_common::event")]
pub struct ExitFields {
    #[serde(deserialize_with = "hex")]
    pub exit_reason: u64,
    #[serde(deserialize_with = "hex_or_null")]
    pub guest_rip: Option<u64>,
    pub isa: u32,
    #[serde(deserialize_with = "hex_or_null")]
    pub info1: Option<u64>,
    #[serde(deserialize_with = "hex")]
    pub info2: u64,
    #[serde(deserialize_with = "hex_or_null")]
    pub intr_info: Option<u64>,
    #[serde(deserialize_with = "hex_or_null")]
    pub error_code: Option<u64>,
    pub vcpu_id: u32,
    #[serde(deserialize_with = "hex_or_null")]
    pub requests: Option<u64>,
    pub is_nested: u8,
    pub is_protected: u8,
    #[serde(deserialize_with = "hex")]
    pub rax: u64,
    #[serde(deserialize_with = "hex")]
    pub rbx: u64,
    #[serde(deserialize_with = "hex")]
    pub rcx: u64,
    #[serde(deserialize_with = "hex")]
    pub rdx: u64,
}

/// The fields of `kvm_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented in exitregs_common::event")]
pub struct EntryFields {
    pub vcpu_id: u32,
    #[serde(deserialize_with = "hex_or_null")]
    pub rip: Option<u64>,
    pub immediate_exit: Option<u8>,
    #[serde(deserialize_with = "hex_or_null")]
    pub intr_info: Option<u64>,
    #[serde(deserialize_with = "hex_or_null")]
    pub error_code: Option<u64>,
    pub is_nested: u8,
    pub is_protected: u8,
    #[serde(deserialize_with = "hex")]
    pub rax: u64,
    #[serde(deserialize_with = "hex")]
    pub rbx: u64,
    #[serde(deserialize_with = "hex")]
    pub rcx: u64,
    #[serde(deserialize_with = "hex")]
    pub rdx: u64,
}

/// What an exit was about, without what only people want (names).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[expect(missing_docs, reason = "those of exitregs_common::detail::Detail")]
pub enum Detail {
    Unknown,
    Msr {
        #[serde(deserialize_with = "hex")]
        msr: u64,
        write: bool,
    },
    Hypercall {
        #[serde(deserialize_with = "hex")]
        number: u64,
    },
    Cpuid {
        #[serde(deserialize_with = "hex")]
        leaf: u64,
        #[serde(deserialize_with = "hex_or_null")]
        subleaf: Option<u64>,
    },
    Io {
        #[serde(deserialize_with = "hex")]
        port: u64,
        size: u8,
        #[serde(rename = "in")]
        is_in: bool,
        string: bool,
        rep: bool,
    },
}

/// A row of `stat --json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are those of tool/src/output/json.rs")]
pub struct Row {
    pub vm: u32,
    pub vm_name: String,
    pub vcpu: Option<u32>,
    pub level: u8,
    pub isa: String,
    #[serde(deserialize_with = "hex")]
    pub exit_reason: u64,
    pub reason: String,
    pub detail: Option<Detail>,
    pub detail_text: String,
    pub exits: u64,
    pub not_ended: u64,
    pub total_ns: u64,
    pub min_ns: u64,
    pub mean_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
}

/// What `stat --json` prints at its end, and with `--interval` in between.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are those of tool/src/commands/stat.rs")]
pub struct Table {
    pub at_s: f64,
    pub elapsed_s: f64,
    pub rows: Vec<Row>,
}

fn hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    number.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no number in hexadecimal")))
}

/// The pid of a VM that the source did not know.
fn zero_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(0))
}

fn hex_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Hex(#[serde(deserialize_with = "hex")] u64);
    Ok(Option::<Hex>::deserialize(deserializer)?.map(|hex| hex.0))
}

impl ExitFields {
    /// RAX, RBX, RCX, RDX.
    pub fn registers(&self) -> Registers {
        [self.rax, self.rbx, self.rcx, self.rdx].into()
    }

    /// As the record that filters take; what is unknown is 0.
    pub fn record(&self) -> KvmExit {
        KvmExit {
            exit_reason: self.exit_reason as u32,
            guest_rip: self.guest_rip.unwrap_or(0),
            isa: self.isa,
            info1: self.info1.unwrap_or(0),
            info2: self.info2,
            intr_info: self.intr_info.unwrap_or(0) as u32,
            error_code: self.error_code.unwrap_or(0) as u32,
            vcpu_id: self.vcpu_id,
            requests: self.requests.unwrap_or(0),
            is_nested: self.is_nested,
            is_protected: self.is_protected,
            rax: self.rax,
            rbx: self.rbx,
            rcx: self.rcx,
            rdx: self.rdx,
        }
    }
}

impl EntryFields {
    /// RAX, RBX, RCX, RDX.
    pub fn registers(&self) -> Registers {
        [self.rax, self.rbx, self.rcx, self.rdx].into()
    }
}

/// The exits that a `trace --json` wrote, by the time of the exit.
///
/// # Errors
/// If it cannot be read, or says otherwise than it wrote how many exits there were, or that some were lost.
pub fn exits(played: &Played, trace: &str) -> Result<Vec<Exit>> {
    let (exits, lost) = exits_and_lost(played, trace)?;
    anyhow::ensure!(lost == 0, "{trace} lost {lost} exits");
    Ok(exits)
}

/// The exits that a `trace --json` wrote, by the time of the exit, and how many it says it lost.
///
/// # Errors
/// If it cannot be read, or says otherwise than it wrote how many exits there were.
pub fn exits_and_lost(played: &Played, trace: &str) -> Result<(Vec<Exit>, u64)> {
    let text = played.read(&format!("{trace}.json"))?;
    let exits = text.lines().filter(|line| !is_nested_page_fault(line));
    let mut exits: Vec<Exit> = lines(exits).with_context(|| trace.to_owned())?;
    let said = played.stderr(trace)?;
    let counts = said.lines().find_map(|line| {
        let counts = line.strip_prefix("exitregs: ")?.strip_suffix(" lost")?;
        let (printed, lost) = counts.split_once(" exits printed, ")?;
        Some((printed.parse::<usize>().ok()?, lost.parse().ok()?))
    });
    let (printed, lost) = counts.with_context(|| format!("{trace} did not say how many exits it printed"))?;
    anyhow::ensure!(
        printed == exits.len(),
        "{trace} says that it printed {printed} exits, but it was {}",
        exits.len()
    );
    exits.sort_by_key(|exit| exit.time_ns);
    Ok((exits, lost))
}

/// The nested page faults that a `trace --json` wrote.
///
/// # Errors
/// If they cannot be read.
pub fn nested_page_faults(played: &Played, trace: &str) -> Result<Vec<NestedPageFault>> {
    let text = played.read(&format!("{trace}.json"))?;
    lines(text.lines().filter(|line| is_nested_page_fault(line))).with_context(|| trace.to_owned())
}

fn is_nested_page_fault(line: &str) -> bool {
    line.contains("\"event\":\"kvm_nested_page_fault\"")
}

/// The tables that a `stat --json` wrote.
///
/// # Errors
/// If they cannot be read.
pub fn tables(played: &Played, stat: &str) -> Result<Vec<Table>> {
    lines(played.read(&format!("{stat}.json"))?.lines()).with_context(|| stat.to_owned())
}

/// The one table that a `stat --json` without `--interval` wrote.
///
/// # Errors
/// If it wrote none or several.
pub fn table(played: &Played, stat: &str) -> Result<Table> {
    let mut tables = tables(played, stat)?;
    anyhow::ensure!(tables.len() == 1, "{stat} wrote {} tables", tables.len());
    tables.pop().context("there is one")
}

fn lines<'a, T: serde::de::DeserializeOwned>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<T>> {
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("line {}: {line}", number + 1))
    };
    lines.enumerate().map(parse).collect()
}
