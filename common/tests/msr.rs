// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Names of MSRs.

mod uapi;

use exitregs_common::msr::{MSRS, by_name, name};
use proptest::prelude::*;

fn print(msr: u32) -> String {
    name(msr).map_or("?".to_owned(), |name| name.to_string())
}

#[test]
fn kvm_msrs_are_those_of_the_header() {
    let constants = uapi::constants(&uapi::header("asm/kvm_para.h"));
    let mut found = 0;
    for (name, &number) in constants.iter().filter(|(name, _)| name.starts_with("MSR_KVM_")) {
        found += 1;
        assert_eq!(print(number as u32), *name);
        assert_eq!(by_name(name), Some(number as u32));
    }
    assert!(found >= 11, "only {found} MSRs found");
}

#[test]
fn every_name_leads_back_to_its_number() {
    let mut named = 0;
    let ranges = [0..0x2000, 0x4000_0000..0x4000_2000, 0x4b56_4d00..0x4b56_4e00, 0xc000_0000..0xc002_0000];
    for msr in ranges.into_iter().flatten() {
        let Some(name) = name(msr) else { continue };
        named += 1;
        let name = name.to_string();
        assert_eq!(by_name(&name), Some(msr), "{name}");
        assert_eq!(by_name(&name.to_lowercase()), Some(msr), "{name}");
        if !name.starts_with("MSR_") && name != "IA32_PMC0" {
            assert_eq!(by_name(&format!("MSR_{name}")), Some(msr), "{name}");
        }
    }
    assert!(named > 2000, "only {named} MSRs have a name");
    assert!(MSRS.entries().iter().all(|entry| print(entry.number) == entry.name));
}

#[test]
fn families_count() {
    for (msr, name) in [
        (0x405, "IA32_MC1_STATUS"),
        (0x47c, "IA32_MC31_CTL"),
        (0x203, "IA32_MTRR_PHYSMASK1"),
        (0x30b, "IA32_FIXED_CTR2"),
        (0x187, "IA32_PERFEVTSEL1"),
        (0x685, "MSR_LASTBRANCH_5_FROM_IP"),
        (0x824, "IA32_X2APIC_IRR4"),
        (0x4000_0092, "HV_X64_MSR_SINT2"),
        (0x4000_00b5, "HV_X64_MSR_STIMER2_COUNT"),
        (0xc000_2041, "MSR_AMD64_SMCA_MC4_STATUS"),
        (0xc001_020b, "MSR_F15H_PERF_CTR5"),
    ] {
        assert_eq!(print(msr), name);
    }
    assert_eq!(print(0x480), "IA32_VMX_BASIC");
    assert_eq!(print(0x900), "?");
}

#[test]
fn the_kernels_spelling_is_understood() {
    for (name, msr) in [
        ("MSR_IA32_APICBASE", 0x1b),
        ("MSR_IA32_FEAT_CTL", 0x3a),
        ("MSR_IA32_CR_PAT", 0x277),
        ("MSR_IA32_TSC_DEADLINE", 0x6e0),
        ("MSR_IA32_UCODE_REV", 0x8b),
        ("MSR_MTRRdefType", 0x2ff),
        ("MSR_P6_PERFCTR1", 0xc2),
        ("MSR_SYSCALL_MASK", 0xc000_0084),
        ("MSR_VM_HSAVE_PA", 0xc001_0117),
        ("MSR_AMD64_SEV_ES_GHCB", 0xc001_0130),
        ("msr_k7_hwcr", 0xc001_0015),
        // What the manual calls IA32_PMC0 is 0xc1; the kernel gives the name to its full-width alias.
        ("IA32_PMC0", 0xc1),
        ("MSR_IA32_PMC0", 0x4c1),
    ] {
        assert_eq!(by_name(name), Some(msr), "{name}");
    }
    for name in ["", "MSR_", "IA32_MC", "IA32_MC32_CTL", "IA32_MC+1_CTL", "IA32_MC_CTL", "IA32_MC1_CTLé", "é"]
    {
        assert_eq!(by_name(name), None, "{name}");
    }
}

#[test]
fn names_fill_a_column() {
    assert_eq!(format!("{:20}|", name(0x405).unwrap()), "IA32_MC1_STATUS     |");
    assert_eq!(format!("{:.<6}|", name(0x400).unwrap()), "IA32_MC0_CTL|");
}

proptest! {
    #[test]
    fn any_number_prints(msr: u32) {
        if let Some(name) = name(msr) {
            prop_assert_eq!(by_name(&name.to_string()), Some(msr));
        }
    }

    #[test]
    fn any_text_is_looked_up(text in "(MSR_|IA32_MC|é)?\\PC{0,12}(_CTL)?") {
        if let Some(msr) = by_name(&text) {
            prop_assert!(name(msr).is_some());
        }
    }
}
