// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Flags, vectors and event information in print.

use exitregs_common::flags::{EventInfo, EventType, PageFaultError, exception_name};
use exitregs_common::vmx::{DebugException, EptViolation, ExitReasonFlags, Notify};
use proptest::prelude::*;

/// Checks that `bits` print as names and one number, each name once, and that these give `bits` again.
macro_rules! check_print {
    ($Flags:ty, $bits:expr) => {{
        let flags = <$Flags>::from_bits_retain($bits as _);
        let (mut back, mut numbers) = (<$Flags>::empty().bits(), 0);
        for part in flags.to_string().split('|') {
            let bit = match <$Flags>::all().iter_names().find(|(name, _)| *name == part) {
                Some((_, flag)) => flag.bits(),
                None if part == "0" => 0,
                None => {
                    numbers += 1;
                    let digits =
                        part.strip_prefix("0x").unwrap_or_else(|| panic!("{part}: neither name nor number"));
                    let bits = u64::from_str_radix(digits, 16).unwrap() as _;
                    assert_eq!(bits & <$Flags>::all().bits(), 0, "{part} holds bits that have names");
                    bits
                }
            };
            assert_eq!(back & bit, 0, "{part} repeats");
            back |= bit;
        }
        assert_eq!(back, flags.bits());
        assert!(numbers <= 1);
    }};
}

#[test]
fn every_flag_prints_its_name() {
    macro_rules! check {
        ($($Flags:ty: $count:literal),*) => {$(
            let all = <$Flags>::all();
            assert_eq!(all.iter_names().count(), $count);
            for (name, flag) in all.iter_names() {
                assert_eq!(flag.to_string(), name);
                assert_eq!(flag.bits().count_ones(), 1, "{name}");
            }
            assert_eq!(<$Flags>::empty().to_string(), "0");
        )*};
    }
    check!(PageFaultError: 17, EptViolation: 17, DebugException: 8, Notify: 2, ExitReasonFlags: 6);
}

#[test]
fn page_fault_errors_of_kvm() {
    // arch/x86/include/asm/kvm_host.h: a write by the guest to a present page of its own page tables.
    assert_eq!(PageFaultError::from_bits_retain(0x2_0000_0003).to_string(), "PRESENT|WRITE|GUEST_PAGE");
    assert_eq!(PageFaultError::from_bits_retain(0x1_0000_0014).to_string(), "USER|FETCH|GUEST_FINAL");
    assert_eq!(PageFaultError::from_bits_retain(0x0100).to_string(), "0x100");
    assert_eq!(EptViolation::from_bits_retain(0x181).to_string(), "ACC_READ|GVA_IS_VALID|GVA_TRANSLATED");
}

#[test]
fn events() {
    assert_eq!(EventInfo(0x8000_0b0e).to_string(), "#PF");
    assert!(EventInfo(0x8000_0b0e).has_error_code());
    assert_eq!(EventInfo(0x8000_00ec).to_string(), "interrupt 0xec");
    assert_eq!(EventInfo(0x8000_0202).to_string(), "NMI");
    assert_eq!(EventInfo(0x8000_0480).to_string(), "INT 0x80");
    assert_eq!(EventInfo(0x8000_031f).to_string(), "exception 0x1f");
    assert_eq!(EventInfo(0x0000_0b0e).to_string(), "none");
    assert_eq!(EventInfo(EventInfo::TYPE_EXCEPTION).event_type(), EventType::Exception);
    assert_eq!(exception_name(13), Some("#GP"));
    assert_eq!(exception_name(30), Some("#SX"));
    assert_eq!(exception_name(32), None);
}

proptest! {
    #[test]
    fn any_bits_print_and_read_back(bits: u64) {
        check_print!(PageFaultError, bits);
        check_print!(EptViolation, bits);
        check_print!(DebugException, bits);
        check_print!(Notify, bits);
        check_print!(ExitReasonFlags, bits);
    }

    #[test]
    fn any_event_prints(info: u32) {
        let event = EventInfo(info);
        prop_assert_eq!(event.to_string() == "none", !event.is_valid());
        prop_assert_eq!((event.event_type() as u32) << 8, info & EventInfo::TYPE_MASK);
    }
}
