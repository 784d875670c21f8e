// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Hypercalls: names, where arguments and results are, and what they say.

mod uapi;

use exitregs_common::gpr::Gpr;
use exitregs_common::hypercall::{Abi, HyperVInput};
use proptest::prelude::*;

fn arguments(abi: Abi, register: u64) -> Vec<&'static str> {
    abi.argument_names(register).collect()
}

#[test]
fn kvm_calls_are_those_of_the_header() {
    let constants = uapi::constants(&uapi::header("linux/kvm_para.h"));
    let mut found = 0;
    for (name, &number) in constants.iter().filter(|(name, _)| name.starts_with("KVM_HC_")) {
        found += 1;
        assert_eq!(Abi::Kvm.call_name(number as u64), Some(name.as_str()));
        assert_eq!(Abi::Kvm.call_by_name(name), Some(number as u64));
    }
    assert_eq!(Abi::Kvm.calls().entries().len(), found);
}

#[test]
fn errors_are_those_of_the_headers() {
    let mut constants = uapi::constants(&uapi::header("asm-generic/errno-base.h"));
    constants.extend(uapi::constants(&uapi::header("asm-generic/errno.h")));
    let kvm = uapi::constants(&uapi::header("linux/kvm_para.h"));
    constants.insert("KVM_ENOSYS".to_owned(), kvm["KVM_ENOSYS"]);
    let mut named = 0;
    for number in 1..=1000u64 {
        let Some(error) = Abi::Kvm.result(number.wrapping_neg()).error() else { continue };
        named += 1;
        assert_eq!(constants.get(error), Some(&(number as i64)), "{error}");
    }
    assert!(named > 40, "only {named} errors have a name");
}

#[test]
fn results_of_each_convention() {
    for (abi, rax, text) in [
        (Abi::Kvm, 0, "0x0"),
        (Abi::Kvm, 2, "0x2"),
        (Abi::Kvm, -1000i64 as u64, "-KVM_ENOSYS"),
        (Abi::Kvm, 0xffff_fc18, "-KVM_ENOSYS"),
        (Abi::Kvm, -1i64 as u64, "-EPERM"),
        (Abi::Kvm, -5000i64 as u64, "0xffffffffffffec78"),
        (Abi::Kvm, i64::MIN as u64, "0x8000000000000000"),
        (Abi::Xen, -38i64 as u64, "-ENOSYS"),
        (Abi::HyperV, 0, "HV_STATUS_SUCCESS"),
        (Abi::HyperV, 0x0000_0003_0000_0000, "HV_STATUS_SUCCESS reps 3"),
        (Abi::HyperV, 5, "HV_STATUS_INVALID_PARAMETER"),
        (Abi::HyperV, 0x7777, "0x7777"),
    ] {
        assert_eq!(abi.result(rax).to_string(), text);
    }
}

#[test]
fn arguments_have_registers_and_names() {
    assert_eq!(Abi::Kvm.argument_registers(), [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi]);
    assert_eq!(arguments(Abi::Kvm, 10), ["bitmap_low", "bitmap_high", "min", "icr"]);
    assert_eq!(arguments(Abi::Kvm, 1), [""; 0]);
    assert_eq!(arguments(Abi::Kvm, 0x1_0000_000a), [""; 0]);
    assert_eq!(arguments(Abi::Xen, 24), ["cmd", "vcpuid", "extra_args"]);
    assert_eq!(Abi::Xen.argument_registers()[2], Gpr::Rdx);
    assert_eq!(arguments(Abi::HyperV, 0x1_005d), ["connection"]);
    assert_eq!(arguments(Abi::HyperV, 0x0_005d), ["input_gpa", "output_gpa"]);
    let common: Vec<_> = Gpr::ALL.into_iter().filter(|gpr| gpr.is_common()).collect();
    assert_eq!(common, [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx]);
}

#[test]
fn hyperv_input_values() {
    let list = HyperVInput(0x0001_0003_0002_0003);
    assert_eq!((list.code(), list.is_fast(), list.variable_header_size()), (3, false, 1));
    assert_eq!((list.rep_count(), list.rep_start()), (3, 1));
    assert_eq!(list.to_string(), "HvCallFlushVirtualAddressList header 1 rep 1/3");
    assert_eq!(HyperVInput(0x1_005d).to_string(), "HvCallSignalEvent fast");
    assert_eq!(HyperVInput(0x8000_7777).to_string(), "0x7777 nested");
    assert_eq!(Abi::HyperV.number(0x0001_0003_0002_0003), 3);
    assert_eq!(Abi::HyperV.call_name(0x8001), Some("HvExtCallQueryCapabilities"));
}

#[test]
fn every_name_leads_back_to_its_number() {
    for abi in Abi::ALL {
        assert_eq!(Abi::by_name(&abi.to_string().to_uppercase()), Some(abi));
        for call in abi.calls().entries() {
            assert_eq!(abi.call_by_name(call.name), Some(u64::from(call.number)), "{}", call.name);
            assert!(call.text.split(", ").count() <= abi.argument_registers().len(), "{}", call.name);
        }
    }
    assert_eq!(Abi::Xen.call_by_name("__HYPERVISOR_memory_op"), Some(12));
}

proptest! {
    #[test]
    fn any_value_prints(register: u64) {
        for abi in Abi::ALL {
            prop_assert!(!abi.result(register).to_string().is_empty());
            prop_assert!(abi.argument_names(register).count() <= abi.argument_registers().len());
        }
        prop_assert!(!HyperVInput(register).to_string().is_empty());
    }
}
