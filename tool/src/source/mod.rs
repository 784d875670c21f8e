// SPDX-License-Identifier: MIT
//! Where exits come from.

pub mod bpf;

use crate::filter::Filter;
use exitregs_common::event::KvmExit;
use exitregs_common::hypercall::Abi;

/// The most VMs that a selection may name; `FILTER_MAX_VMS` of tool/bpf/filter.h.
pub const MAX_VMS: usize = 64;

/// Which exits are wanted, and how they are to be read.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The VMs, by the VMM's pid, [`MAX_VMS`] at most; all if empty.
    pub vms: Vec<u32>,
    /// A condition on the exit's fields.
    pub filter: Option<Filter<KvmExit>>,
    /// The convention of L2's hypercalls, which only L1 knows.
    pub hypercall_abi_l2: Option<Abi>,
}
