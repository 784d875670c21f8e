// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! CPUID leaves: their names, and which of them ECX selects subleaves of.

use super::prelude::const_assert;
use super::table::{Entry, Table};

macro_rules! leaves {
    ($($leaf:literal $name:literal;)*) => {
        Table::new(&[$(Entry { number: $leaf, name: $name, text: "" },)*])
    };
}

/// Leaves of the processor: SDM Vol. 2A "CPUID"; APM Vol. 3 Appendix E. Headings of
/// arch/x86/include/asm/cpuid/leaf_types.h, shortened.
pub const LEAVES: Table = leaves! {
    0x00 "vendor and maximum leaf";
    0x01 "family, model, stepping and features";
    0x02 "cache and TLB descriptors";
    0x03 "processor serial number";
    0x04 "deterministic cache parameters";
    0x05 "MONITOR/MWAIT";
    0x06 "thermal and power management";
    0x07 "structured extended features";
    0x09 "direct cache access";
    0x0a "architectural performance monitoring";
    0x0b "extended topology";
    0x0d "extended state (XSAVE)";
    0x0f "resource director monitoring";
    0x10 "resource director allocation";
    0x12 "SGX";
    0x14 "processor trace";
    0x15 "TSC and core crystal clock";
    0x16 "processor frequency";
    0x17 "SoC vendor attributes";
    0x18 "deterministic address translation parameters";
    0x19 "key locker";
    0x1a "native model (hybrid)";
    0x1b "PCONFIG";
    0x1c "last branch records";
    0x1d "tile information (AMX)";
    0x1e "TMUL (AMX)";
    0x1f "extended topology v2";
    0x20 "history reset";
    0x21 "trust domain (TDX)";
    0x23 "architectural performance monitoring, extended";
    0x24 "converged vector ISA (AVX10)";
    0x27 "resource director monitoring, asymmetric";
    0x28 "resource director allocation, asymmetric";
    0x29 "APX";
    0x80000000 "maximum extended leaf";
    0x80000001 "extended features";
    0x80000002 "brand string, part 1";
    0x80000003 "brand string, part 2";
    0x80000004 "brand string, part 3";
    0x80000005 "L1 cache and TLB";
    0x80000006 "L2 and L3 cache and TLB";
    0x80000007 "power management and RAS";
    0x80000008 "address sizes and extended features";
    0x8000000a "SVM";
    0x80000019 "TLB of 1 GB pages";
    0x8000001a "instruction optimizations";
    0x8000001b "instruction-based sampling";
    0x8000001c "lightweight profiling";
    0x8000001d "cache topology";
    0x8000001e "processor topology";
    0x8000001f "encrypted memory (SME, SEV)";
    0x80000020 "platform quality of service";
    0x80000021 "extended features 2";
    0x80000022 "performance monitoring and debug";
    0x80000023 "multi-key encrypted memory";
    0x80000026 "extended processor topology";
};

/// Leaves of KVM, from the base that [`hypervisor_name`] describes. arch/x86/include/uapi/asm/kvm_para.h;
/// Documentation/virt/kvm/x86/cpuid.rst; the third is VMware's, which QEMU offers with KVM.
pub const KVM_LEAVES: Table = leaves! {
    0x40000000 "KVM signature";
    0x40000001 "KVM features";
    0x40000010 "TSC and bus frequency";
};

/// Leaves of the Hyper-V interface. TLFS "Feature and Interface Discovery"; `HYPERV_CPUID_*` in
/// include/hyperv/hvgdk_mini.h.
pub const HYPERV_LEAVES: Table = leaves! {
    0x40000000 "Hyper-V vendor and maximum leaf";
    0x40000001 "Hyper-V interface";
    0x40000002 "Hyper-V version";
    0x40000003 "Hyper-V features";
    0x40000004 "Hyper-V enlightenments";
    0x40000005 "Hyper-V implementation limits";
    0x40000006 "Hyper-V hardware features";
    0x40000007 "Hyper-V CPU management features";
    0x40000008 "Hyper-V SVM (shared virtual memory) features";
    0x40000009 "Hyper-V nested hypervisor features";
    0x4000000a "Hyper-V nested virtualization features";
    0x4000000c "Hyper-V isolation configuration";
    0x40000080 "Hyper-V virtualization stack vendor";
    0x40000081 "Hyper-V virtualization stack interface";
    0x40000082 "Hyper-V virtualization stack properties";
};

/// Leaves of Xen. arch/x86/include/asm/xen/cpuid.h.
pub const XEN_LEAVES: Table = leaves! {
    0x40000000 "Xen signature";
    0x40000001 "Xen version";
    0x40000002 "Xen hypercall pages and features";
    0x40000003 "Xen time";
    0x40000004 "Xen HVM features";
    0x40000005 "Xen PV parameters";
};

/// The name of a processor leaf.
pub const fn name(leaf: u32) -> Option<&'static str> {
    LEAVES.name(leaf)
}

/// Whether software puts its hypervisor leaves there.
pub const fn is_hypervisor(leaf: u32) -> bool {
    leaf >> 16 == 0x4000
}

/// The name of a leaf of the hypervisor interface that `leaves` lists. The hypervisor may have moved the interface up
/// by a multiple of 0x100 (KVM's own to 0x40000100 below Hyper-V's), so bits 15:8 do not count.
pub const fn hypervisor_name(leaves: &Table, leaf: u32) -> Option<&'static str> {
    if is_hypervisor(leaf) { leaves.name(leaf & !0xff00) } else { None }
}

/// Bit n: ECX selects a subleaf of leaf n.
pub const SUBLEAF_BASIC: u64 = leaf_mask(&[
    0x04, 0x07, 0x0b, 0x0d, 0x0f, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1b, 0x1d, 0x1e, 0x1f, 0x20, 0x23, 0x24,
    0x27, 0x28,
]);

/// Bit n: ECX selects a subleaf of leaf 0x8000_0000 + n.
pub const SUBLEAF_EXTENDED: u64 = leaf_mask(&[0x1d, 0x20, 0x26]);

/// Whether ECX selects a subleaf of this leaf: the leaves that arch/x86/include/asm/cpuid/api.h calls indexed, and those
/// of the manuals that it does not know. For any other leaf ECX means nothing, and often holds something.
pub const fn has_subleaf(leaf: u32) -> bool {
    let mask = match leaf & 0xc000_0000 {
        0 => SUBLEAF_BASIC,
        0x8000_0000 => SUBLEAF_EXTENDED,
        _ => return false,
    };
    let bit = leaf & 0x3fff_ffff;
    bit < 64 && mask & (1 << bit) != 0
}

const fn leaf_mask(leaves: &[u32]) -> u64 {
    let (mut mask, mut i) = (0, 0);
    while i < leaves.len() {
        mask |= 1 << leaves[i];
        i += 1;
    }
    mask
}

const_assert!(has_subleaf(0xd) && has_subleaf(0x8000_001d) && !has_subleaf(0x4000_000d));
