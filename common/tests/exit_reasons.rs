// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Exit reasons and exit information against the kernel's headers and the manuals' layouts.

mod uapi;

use exitregs_common::gpr::Gpr;
use exitregs_common::svm::{self, EXIT_CODES, ExitCode};
use exitregs_common::table::Table;
use exitregs_common::vmx::{self, CrAccessType, EXIT_REASONS, ExitReason, ExitReasonFlags};
use proptest::prelude::*;

#[test]
fn svm_names_are_the_kernels() {
    let text = uapi::header("asm/svm.h");
    let mut constants = uapi::constants(&uapi::header("asm/kvm.h"));
    constants.extend(uapi::constants(&text));
    let symbols = uapi::symbols(&text, "SVM_EXIT_REASONS", &constants);
    assert!(symbols.len() > 100, "only {} symbols found", symbols.len());
    for (number, name) in symbols {
        let code = ExitCode(number as u32);
        assert_eq!(code.name(), Some(name.as_str()), "{number:#x}");
        assert_eq!(code.to_string(), name);
        assert_eq!(ExitCode::by_name(&name.to_uppercase()), Some(code));
    }
}

#[test]
fn every_svm_exit_code_of_the_kernel_is_there() {
    let constants = uapi::constants(&uapi::header("asm/svm.h"));
    let mut found = 0;
    for (name, &number) in &constants {
        // Below the codes of the GHCB, SVM_VMGEXIT_* are arguments of these.
        if name.starts_with("SVM_EXIT_") || name.starts_with("SVM_VMGEXIT_") && number >= 0x8000_0000 {
            found += 1;
            assert!(ExitCode(number as u32).name().is_some(), "{name} ({number:#x})");
        }
    }
    assert!(found > 100, "only {found} exit codes found");
}

#[test]
fn vmx_names_are_the_kernels() {
    let text = uapi::header("asm/vmx.h");
    let constants = uapi::constants(&text);
    let symbols = uapi::symbols(&text, "VMX_EXIT_REASONS", &constants);
    assert!(symbols.len() > 60, "only {} symbols found", symbols.len());
    for (number, name) in symbols {
        let reason = ExitReason(number as u32);
        assert_eq!(reason.name(), Some(name.as_str()), "{number}");
        assert_eq!(ExitReason::by_name(&name.to_lowercase()), Some(reason));
    }
    for (name, &number) in constants.iter().filter(|(name, _)| name.starts_with("EXIT_REASON_")) {
        assert_eq!(ExitReason(number as u32).name(), name.strip_prefix("EXIT_REASON_"));
    }
    let flags = uapi::symbols(&text, "VMX_EXIT_REASON_FLAGS", &constants);
    assert!(!flags.is_empty());
    for (bit, name) in flags {
        assert_eq!(ExitReasonFlags::from_bits_retain(bit as u32).to_string(), name);
    }
}

#[test]
fn every_name_leads_back_to_its_number() {
    fn check(table: &Table) {
        for entry in table.entries() {
            assert_eq!(table.by_name(entry.name), Some(entry.number), "{}", entry.name);
            assert!(!entry.text.is_empty(), "{}", entry.name);
        }
    }
    check(&EXIT_CODES);
    check(&EXIT_REASONS);
}

#[test]
fn reasons_of_the_vendors_that_the_kernel_does_not_name() {
    assert_eq!(ExitCode(0x8e).to_string(), "rdpru");
    assert_eq!(ExitCode(0xa0).to_string(), "invlpgb");
    assert_eq!(ExitCode(0xffff_ffff), ExitCode::ERR);
    assert_eq!(ExitCode(0x404).to_string(), "0x404");
    assert_eq!(ExitCode(0x4e).exception_vector(), Some(14));
    assert_eq!(ExitCode::NPF.exception_vector(), None);
    assert_eq!(ExitReason(17).to_string(), "RSM");
    assert_eq!(ExitReason(84), ExitReason::MSR_READ_IMM);
    assert_eq!(ExitReason(35).to_string(), "0x23");
}

#[test]
fn a_failed_vm_entry_keeps_its_reason() {
    let reason = ExitReason(0x8000_0021);
    assert_eq!(reason.basic(), ExitReason::INVALID_STATE);
    assert_eq!(reason.to_string(), "INVALID_STATE FAILED_VMENTRY");
    assert_eq!(ExitReason(0x0c00_0030).to_string(), "EPT_VIOLATION BUS_LOCK_DETECTED|ENCLAVE_MODE");
    assert_eq!(vmx::entry_failure(4), Some("VMCS link pointer"));
    assert_eq!(vmx::entry_failure(1), None);
}

#[test]
fn port_accesses_read_the_same_on_both_vendors() {
    // OUT 0x3f8, AL; IN EAX, DX (0xcfc); REP OUTSW to 0x1f0 from DS with 64-bit addresses.
    for (svm, vmx, text) in [
        (0x03f8_0010, 0x03f8_0040, "out 0x3f8 size 1"),
        (0x0cfc_0041, 0x0cfc_000b, "in 0xcfc size 4"),
        (0x01f0_0e2c, 0x01f0_0031, "rep outs 0x1f0 size 2"),
    ] {
        assert_eq!(svm::IoInfo(svm).access(), vmx::IoQualification(vmx).access());
        assert_eq!(svm::IoInfo(svm).access().to_string(), text);
    }
    assert_eq!(svm::IoInfo(0x01f0_0e2c).to_string(), "rep outs 0x1f0 size 2 ds a64");
    assert!(vmx::IoQualification(0x03f8_0040).is_immediate());
}

#[test]
fn register_accesses() {
    assert_eq!(vmx::CrQualification(0x003).to_string(), "cr3 <- rax");
    assert_eq!(vmx::CrQualification(0xf18).to_string(), "cr8 -> r15");
    assert_eq!(vmx::CrQualification(0x20).to_string(), "clts");
    assert_eq!(vmx::CrQualification(0x0001_0030).to_string(), "lmsw 0x1");
    assert_eq!(vmx::CrQualification(0x70).access_type(), CrAccessType::Lmsw);
    assert!(vmx::CrQualification(0x70).is_lmsw_memory());
    assert_eq!(vmx::DrQualification(0x307).to_string(), "dr7 <- rbx");
    assert_eq!(vmx::DrQualification(0x016).to_string(), "dr6 -> rax");
    let access = svm::RegisterAccess(0x8000_0000_0000_0003);
    assert!(access.is_mov_cr());
    assert_eq!(access.gpr(), Gpr::Rbx);
    assert!(svm::msr_is_write(1) && !svm::msr_is_write(0));
}

#[test]
fn task_switches() {
    assert_eq!(vmx::TaskSwitch(0x4000_0028).to_string(), "to 0x28 by iret");
    assert_eq!(vmx::TaskSwitch(0xc000_0030).to_string(), "to 0x30 by gate");
    let gate = svm::TaskSwitch { info1: 0x30, info2: 1 << 44 | 0x18 };
    assert_eq!(gate.to_string(), "to 0x30 by call or gate, error code 0x18");
    let iret = svm::TaskSwitch { info1: 0x28, info2: 1 << 36 | 1 << 48 };
    assert_eq!(iret.to_string(), "to 0x28 by iret");
    assert!(iret.resume_flag());
}

#[test]
fn apic_accesses() {
    assert_eq!(vmx::ApicAccess(0x10b0).to_string(), "write 0x0b0");
    assert_eq!(vmx::ApicAccess(0x1_3020).to_string(), "access during event delivery 0x020");
    assert!(vmx::ApicAccess(0x1_3020).is_asynchronous());
    let ipi = svm::AvicIncompleteIpi { icr: 0x4fd, info2: 1 << 32 | 3 };
    assert_eq!(ipi.to_string(), "icr 0x4fd: target not running, index 3");
    let eoi = svm::AvicUnacceleratedAccess { info1: 1 << 32 | 0xb0, info2: 0x30 };
    assert_eq!(eoi.to_string(), "write 0x0b0 vector 0x30");
}

proptest! {
    #[test]
    fn any_value_prints(info1: u64, info2: u64) {
        let reason = info1 as u32;
        let texts = [
            ExitCode(reason).to_string(),
            ExitReason(reason).to_string(),
            svm::IoInfo(info1).to_string(),
            svm::TaskSwitch { info1, info2 }.to_string(),
            svm::AvicIncompleteIpi { icr: info1, info2 }.to_string(),
            svm::AvicUnacceleratedAccess { info1, info2 }.to_string(),
            svm::RegisterAccess(info1).gpr().to_string(),
            vmx::IoQualification(info1).to_string(),
            vmx::CrQualification(info1).to_string(),
            vmx::DrQualification(info1).to_string(),
            vmx::TaskSwitch(info1).to_string(),
            vmx::ApicAccess(info1).to_string(),
        ];
        prop_assert!(texts.iter().all(|text| !text.is_empty()), "{:?}", texts);
    }

    #[test]
    fn an_exit_reason_is_its_basic_reason_and_its_flags(reason: u32) {
        let reason = ExitReason(reason);
        prop_assert_eq!(reason.basic().0 | reason.flags().bits(), reason.0);
        prop_assert!(reason.basic().flags().is_empty());
    }
}
