// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! CPUID leaves.

use exitregs_common::cpuid::{
    HYPERV_LEAVES, KVM_LEAVES, LEAVES, SUBLEAF_BASIC, SUBLEAF_EXTENDED, XEN_LEAVES, has_subleaf,
    hypervisor_name, name,
};
use proptest::prelude::*;

/// `cpuid_function_is_indexed()` of Linux 7.3, arch/x86/include/asm/cpuid/api.h.
const INDEXED: [u32; 16] =
    [0x4, 0x7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f, 0x23, 0x24, 0x8000_001d];

#[test]
fn what_the_kernel_calls_indexed_has_subleaves() {
    for leaf in INDEXED {
        assert!(has_subleaf(leaf), "{leaf:#x}");
    }
    for leaf in [0, 1, 2, 5, 6, 0xa, 0x15, 0x16, 0x19, 0x8000_0000, 0x8000_0001, 0x8000_0008, 0x8000_000a] {
        assert!(!has_subleaf(leaf), "{leaf:#x}");
    }
}

#[test]
fn a_leaf_with_subleaves_has_a_name() {
    for leaf in (0..64).flat_map(|n| [n, 0x8000_0000 + n]).filter(|&leaf| has_subleaf(leaf)) {
        assert!(name(leaf).is_some(), "{leaf:#x}");
    }
}

#[test]
fn hypervisors_move_their_leaves() {
    assert_eq!(hypervisor_name(&KVM_LEAVES, 0x4000_0001), Some("KVM features"));
    assert_eq!(hypervisor_name(&KVM_LEAVES, 0x4000_0101), Some("KVM features"));
    assert_eq!(hypervisor_name(&HYPERV_LEAVES, 0x4000_000a), Some("Hyper-V nested virtualization features"));
    assert_eq!(hypervisor_name(&XEN_LEAVES, 0x4000_0203), Some("Xen time"));
    assert_eq!(hypervisor_name(&KVM_LEAVES, 1), None);
    assert_eq!(name(0x4000_0000), None);
    assert_eq!(LEAVES.by_name("SVM"), Some(0x8000_000a));
}

proptest! {
    #[test]
    fn the_masks_say_the_same(leaf in prop_oneof![any::<u32>(), 0u32..128, 0x8000_0000u32..0x8000_0080]) {
        let (mask, n) = if leaf < 0x8000_0000 { (SUBLEAF_BASIC, leaf) } else { (SUBLEAF_EXTENDED, leaf - 0x8000_0000) };
        prop_assert_eq!(has_subleaf(leaf), n < 64 && mask >> n & 1 == 1);
    }
}
