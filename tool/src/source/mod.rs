// SPDX-License-Identifier: MIT
//! Where exits come from.

pub mod bpf;
pub mod choose;
mod decode;
pub mod file;
pub mod format;
pub mod module;
pub mod native;
pub mod page;
pub mod perf;
pub mod tprobe;
pub mod tracefs;

use crate::analysis::pairing::Record;
use crate::analysis::stat::Table;
use crate::filter::Filter;
use crate::host::{Host, Kvm};
use anyhow::Result;
use exitregs_common::event::{KvmExit, KvmNestedPageFault};
use exitregs_common::hypercall::Abi;
use exitregs_common::isa::Isa;

/// The most VMs that a selection may name; `FILTER_MAX_VMS` of tool/bpf/filter.h.
pub const MAX_VMS: usize = 64;

/// Which exits are wanted, and how they are to be read.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The VMs, by the VMM's pid, [`MAX_VMS`] at most; all if empty.
    pub vms: Vec<u32>,
    /// Whether exits are wanted at all.
    pub exits: bool,
    /// A condition on the exit's fields.
    pub filter: Option<Filter<KvmExit>>,
    /// Whether page faults of L2's that L0 gives to L1 are wanted, from a source that has them.
    pub nested_page_faults: bool,
    /// A condition on their fields.
    pub nested_page_fault_filter: Option<Filter<KvmNestedPageFault>>,
    /// The convention of L2's hypercalls, which only L1 knows.
    pub hypercall_abi_l2: Option<Abi>,
}

/// What a source could not deliver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exits or events that found a buffer full.
    pub lost: u64,
    /// Exits that found a table full.
    pub uncounted: u64,
    /// Exits whose filter read a field that was unknown.
    pub undecided: u64,
}

/// A running trace. Dropping it removes everything from the kernel.
pub trait Trace {
    /// How the source gets at exits, in a few words.
    fn how(&self) -> String;

    /// What has ended or happened since the last call, by time.
    ///
    /// # Errors
    /// The source cannot be read.
    fn read(&mut self) -> Result<Vec<Record>>;

    /// Exits or events that have been lost since the start.
    ///
    /// # Errors
    /// The source cannot be read.
    fn lost(&self) -> Result<u64>;

    /// Stops; returns what has not been read yet, with the exits that no entry has ended.
    ///
    /// # Errors
    /// The source cannot be read.
    fn finish(&mut self) -> Result<(Vec<Record>, Counters)>;
}

/// A running count. Dropping it removes everything from the kernel.
pub trait Stat {
    /// How the source gets at exits, in a few words.
    fn how(&self) -> String;

    /// Has to be called every few milliseconds.
    ///
    /// # Errors
    /// The source cannot be read.
    fn poll(&mut self) -> Result<()> {
        Ok(())
    }

    /// All that ended since the start.
    ///
    /// # Errors
    /// The source cannot be read.
    fn read(&mut self) -> Result<Table>;

    /// Stops, and returns all that was counted, with the exits that no entry has ended.
    ///
    /// # Errors
    /// The source cannot be read.
    fn finish(&mut self) -> Result<(Table, Counters)>;

    /// The commands of the VMMs that were seen, by pid.
    fn commands(&self) -> Vec<(u32, String)>;
}

/// Why a source does not work on a host, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  {remedy}")]
pub struct Unusable {
    /// What is missing.
    pub what: String,
    /// How to get it.
    pub remedy: String,
}

fn unusable(what: impl Into<String>, remedy: impl Into<String>) -> Unusable {
    Unusable { what: what.into(), remedy: remedy.into() }
}

/// Whether KVM can run guests, which every live source needs.
///
/// # Errors
/// It cannot; why, and what to do.
pub fn check_kvm(host: &Host) -> Result<Isa, Unusable> {
    match host.kvm {
        Kvm::Ready(isa) => Ok(isa),
        Kvm::Absent => Err(unusable(
            "KVM is not loaded",
            "load it before exitregs starts: modprobe kvm_amd, or modprobe kvm_intel",
        )),
        Kvm::NoVendor => Err(unusable(
            "kvm_exit can never fire here: KVM has neither kvm_amd nor kvm_intel (a paravirtual KVM, or no vendor module)",
            "load kvm_amd or kvm_intel before exitregs starts; in a VM, have nested virtualization enabled on its host",
        )),
        Kvm::NoExtension(isa) => Err(unusable(
            format!("the CPU does not offer {} to KVM", isa.to_string().to_uppercase()),
            "enable virtualization in the firmware; in a VM, enable nested virtualization on its host",
        )),
    }
}
