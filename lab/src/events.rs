// SPDX-License-Identifier: MIT
//! KVM's own events, as other tools record them.

/// The events of the system `kvm` that exitregs reads in files and stock kernels have.
pub const EVENTS: [&str; 11] = [
    "kvm_exit",
    "kvm_entry",
    "kvm_nested_vmenter",
    "kvm_nested_vmexit",
    "kvm_nested_vmexit_inject",
    "kvm_nested_intr_vmexit",
    "kvm_msr",
    "kvm_cpuid",
    "kvm_pio",
    "kvm_hypercall",
    "kvm_inj_exception",
];
