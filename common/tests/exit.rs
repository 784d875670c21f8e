// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What exits are called and how they end: [`Operation`], [`Outcome`], [`ExitResult`], [`Detail`].

use exitregs_common::detail::{Detail, DetailKind};
use exitregs_common::event::{Event, Exit, HEADER_SIZE, KvmEntry, KvmExit, KvmNestedPageFault, abi_field};
use exitregs_common::hypercall::Abi;
use exitregs_common::isa::Isa;
use exitregs_common::operation::Operation;
use exitregs_common::outcome::{ExitResult, Outcome};
use exitregs_common::svm::ExitCode;
use exitregs_common::vmx::ExitReason;
use proptest::prelude::*;

/// An SVM exit at RIP 0x1000 that an entry behind a two-byte instruction ended.
fn svm(code: ExitCode, exit: KvmExit, entry: KvmEntry) -> Exit {
    Exit {
        exit_time: 100,
        next_entry_time: 200,
        entry_time: 200,
        hypercall_abi: abi_field(Abi::Kvm),
        exit: KvmExit { isa: Isa::Svm as u32, exit_reason: code.0, guest_rip: 0x1000, ..exit },
        entry: KvmEntry { rip: 0x1002, ..entry },
        ..Exit::default()
    }
}

fn vmx(reason: ExitReason, exit: KvmExit, unknown: &[&str]) -> Exit {
    let unknown = unknown.iter().map(|name| 1 << KvmExit::index(name).unwrap()).sum();
    Exit {
        exit_time: 100,
        next_entry_time: 200,
        entry_time: 200,
        exit_unknown: unknown,
        entry_unknown: 1 << KvmEntry::index("intr_info").unwrap(),
        rip_written: 1,
        exit: KvmExit { isa: Isa::Vmx as u32, exit_reason: reason.0, ..exit },
        ..Exit::default()
    }
}

fn line(exit: &Exit) -> String {
    let result = ExitResult::of(exit).map(|result| format!(" = {result}")).unwrap_or_default();
    format!("{}{result}", Operation(exit))
}

#[test]
fn svm_exits_read_like_strace() {
    let exit = KvmExit {
        rax: 0xdead_0000_0000_01f4,
        rcx: 0xffff_ffff_0000_06e0,
        rdx: 0xbeef_0000_0000_0002,
        ..KvmExit::default()
    };
    let entry = KvmEntry { rax: 0x1234, rbx: 2, rcx: 3, rdx: 0x5678, ..KvmEntry::default() };
    let msr = |info1| line(&svm(ExitCode::MSR, KvmExit { info1, ..exit }, entry));
    assert_eq!(msr(1), "wrmsr IA32_TSC_DEADLINE <- 0x2000001f4 = ok");
    assert_eq!(msr(0), "rdmsr IA32_TSC_DEADLINE = 0x567800001234");

    let hypercall = |rax, result| {
        let exit = KvmExit { rax, rbx: 1, rcx: 2, rdx: 3, ..KvmExit::default() };
        line(&svm(ExitCode::VMMCALL, exit, KvmEntry { rax: result, ..entry }))
    };
    assert_eq!(hypercall(10, 2), "hypercall KVM_HC_SEND_IPI(0x1, 0x2, 0x3, …) = 0x2");
    assert_eq!(hypercall(5, -1000i64 as u64), "hypercall KVM_HC_KICK_CPU(0x1, 0x2) = -KVM_ENOSYS");
    assert_eq!(hypercall(0x1234, 0), "hypercall 0x1234(0x1, 0x2, 0x3, …) = 0x0");

    let cpuid = |rax, rcx| line(&svm(ExitCode::CPUID, KvmExit { rax, rcx, ..KvmExit::default() }, entry));
    assert_eq!(cpuid(7, 1), "cpuid 0x7.1 = eax 0x1234 ebx 0x2 ecx 0x3 edx 0x5678");
    assert_eq!(cpuid(0x8000_0000, 99), "cpuid 0x80000000 = eax 0x1234 ebx 0x2 ecx 0x3 edx 0x5678");

    let io = |info1| line(&svm(ExitCode::IOIO, KvmExit { info1, rax: 0x1141, ..KvmExit::default() }, entry));
    assert_eq!(io(0x3f8 << 16 | 1 << 4), "out 0x3f8 <- 0x41 = ok");
    assert_eq!(io(0x3fd << 16 | 1 << 4 | 1), "in 0x3fd = 0x34");
    assert_eq!(io(0x1f0 << 16 | 1 << 5 | 1 << 3 | 1 << 2), "rep outs 0x1f0 = ok");

    let npf = KvmExit { info1: 1 << 32 | 6, info2: 0xfee0_0000, ..KvmExit::default() };
    assert_eq!(line(&svm(ExitCode::NPF, npf, entry)), "npf 0xfee00000 WRITE|USER|GUEST_FINAL");
    assert_eq!(line(&svm(ExitCode::VMRUN, KvmExit { rax: 0x112000, ..exit }, entry)), "vmrun 0x112000");
    let mov = KvmExit { info1: 1 << 63 | 3, rbx: 0x80050033, ..KvmExit::default() };
    assert_eq!(line(&svm(ExitCode::WRITE_CR0, mov, entry)), "mov cr0 <- 0x80050033");
    let pf = KvmExit { info1: 2, info2: 0x7000, ..KvmExit::default() };
    assert_eq!(line(&svm(ExitCode(0x4e), pf, entry)), "exception #PF 0x7000 WRITE");
}

#[test]
fn hypercalls_are_named_by_whose_they_are() {
    let exit = KvmExit { rax: 99, rcx: 0x1_0000 | 0x5d, rdx: 7, ..KvmExit::default() };
    let of = |abi: Option<Abi>| {
        line(&Exit {
            hypercall_abi: abi.map_or(0, abi_field),
            ..svm(ExitCode::VMMCALL, exit, KvmEntry::default())
        })
    };
    assert!(of(Some(Abi::HyperV)).starts_with("hypercall HvCallSignalEvent("), "{}", of(Some(Abi::HyperV)));
    assert_eq!(of(None), "hypercall 0x63(0x0, 0x1005d, 0x7, …) = 0x0");
}

#[test]
fn results_are_printed_only_where_they_are_proved() {
    let rdmsr = svm(ExitCode::MSR, KvmExit::default(), KvmEntry::default());
    let outcome = |exit: Exit| Outcome::of(&exit);
    assert_eq!(outcome(rdmsr), Outcome::Completed);
    let at = |rip| Exit { entry: KvmEntry { rip, ..rdmsr.entry }, ..rdmsr };
    assert_eq!(outcome(at(0x100f)), Outcome::Completed);
    for elsewhere in [0x1000, 0x1010, 0xfff, 0] {
        assert_eq!(outcome(at(elsewhere)), Outcome::Unknown, "{elsewhere:#x}");
    }
    // #GP with an error code.
    let faulted = Exit { entry: KvmEntry { intr_info: 0x8000_0b0d, ..at(0x1000).entry }, ..rdmsr };
    assert!(matches!(outcome(faulted), Outcome::Exception(_)));
    assert!(line(&faulted).ends_with(" = #GP"));
    // An interrupt is no result, nor is an exception that was being delivered already.
    let interrupted = Exit { entry: KvmEntry { intr_info: 0x8000_0030, ..faulted.entry }, ..faulted };
    assert_eq!(outcome(interrupted), Outcome::Unknown);
    let delivering = Exit { exit: KvmExit { intr_info: 0x8000_0b0d, ..faulted.exit }, ..faulted };
    assert_eq!(outcome(delivering), Outcome::Unknown);
    let unread = Exit { entry_unknown: 1 << KvmEntry::index("intr_info").unwrap(), ..faulted };
    assert_eq!(outcome(unread), Outcome::Unknown);
    // Without an entry nothing is known.
    assert_eq!(outcome(Exit { entry_time: 0, ..rdmsr }), Outcome::NotEnded);
    assert_eq!(line(&Exit { entry_time: 0, ..rdmsr }), "rdmsr IA32_P5_MC_ADDR = ?");
}

#[test]
fn what_is_unknown_is_not_guessed() {
    let lazy = ["guest_rip", "info1", "intr_info", "error_code"];
    assert_eq!(line(&vmx(ExitReason::IO_INSTRUCTION, KvmExit::default(), &lazy)), "IO_INSTRUCTION ? = ?");
    assert_eq!(line(&vmx(ExitReason::EPT_VIOLATION, KvmExit::default(), &lazy)), "ept violation");
    let wrmsr = vmx(ExitReason::MSR_WRITE, KvmExit { rcx: 0x6e0, rax: 5, ..KvmExit::default() }, &lazy);
    assert_eq!(line(&wrmsr), "wrmsr IA32_TSC_DEADLINE <- 0x5 = ok");
    // L1 ran: its hypervisor may have moved L2 anywhere.
    let reflected = Exit { next_entry_time: 150, ..wrmsr };
    assert_eq!(line(&reflected), "wrmsr IA32_TSC_DEADLINE <- 0x5 = ?");
    let protected = KvmExit { is_protected: 1, info1: 1, ..KvmExit::default() };
    assert_eq!(
        line(&svm(ExitCode::MSR, protected, KvmEntry { is_protected: 1, ..KvmEntry::default() })),
        "msr ? = ?"
    );
    let failed = vmx(ExitReason(0x8000_0021), KvmExit::default(), &lazy);
    assert_eq!(line(&failed), "INVALID_STATE FAILED_VMENTRY");
}

#[test]
fn details_of_vmx_immediate_forms_are_in_the_qualification() {
    let exit = vmx(ExitReason::MSR_WRITE_IMM, KvmExit { info1: 0x6e0, rcx: 0x10, ..KvmExit::default() }, &[]);
    assert_eq!(Detail::of(&exit), Detail::Msr { index: 0x6e0, write: true });
    assert_eq!(
        DetailKind::of(Isa::Vmx, 0x8000_0000 | 31),
        DetailKind::None,
        "a failed entry has no operands"
    );
}

#[test]
fn formats_are_the_kernels() {
    // As Linux 7.3 prints the fields of its own kvm_exit, with COMMON's appended.
    let expected = "\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;
\tfield:u64 info1;\toffset:32;\tsize:8;\tsigned:0;
\tfield:u64 info2;\toffset:40;\tsize:8;\tsigned:0;
\tfield:u32 intr_info;\toffset:48;\tsize:4;\tsigned:0;
\tfield:u32 error_code;\toffset:52;\tsize:4;\tsigned:0;
\tfield:unsigned int vcpu_id;\toffset:56;\tsize:4;\tsigned:0;
\tfield:u64 requests;\toffset:64;\tsize:8;\tsigned:0;
\tfield:bool is_nested;\toffset:72;\tsize:1;\tsigned:0;
\tfield:bool is_protected;\toffset:73;\tsize:1;\tsigned:0;
\tfield:unsigned long rax;\toffset:80;\tsize:8;\tsigned:0;
";
    assert!(KvmExit::format().to_string().starts_with(expected), "{}", KvmExit::format());
    let print = KvmNestedPageFault::format().print_format().to_string();
    assert_eq!(
        print,
        "vcpu_id %u guest_rip 0x%lx gpa 0x%llx host_error_code 0x%llx guest_error_code 0x%llx is_nested %d is_protected %d rax 0x%lx rbx 0x%lx rcx 0x%lx rdx 0x%lx"
    );
    for fields in [KvmExit::FIELDS, KvmEntry::FIELDS, KvmNestedPageFault::FIELDS] {
        let common: Vec<_> =
            fields.iter().filter(|field| field.is_common()).map(|field| field.name).collect();
        assert_eq!(common, ["is_nested", "is_protected", "rax", "rbx", "rcx", "rdx"]);
        assert!(fields.iter().all(|field| (field.offset + HEADER_SIZE).is_multiple_of(field.size)));
    }
}

fn any_exit() -> impl Strategy<Value = Exit> {
    let reasons = prop_oneof![0u32..0x100, 0x400u32..0x408, any::<u32>()];
    (reasons, 0u32..4, any::<[u64; 7]>(), any::<u32>(), any::<u32>(), any::<[u8; 4]>(), any::<bool>())
        .prop_map(|(exit_reason, isa, values, exit_unknown, entry_unknown, bytes, ended)| Exit {
            exit_time: values[6],
            entry_time: u64::from(ended),
            exit_unknown,
            entry_unknown,
            hypercall_abi: bytes[0],
            rip_written: bytes[1] & 1,
            exit: KvmExit {
                exit_reason,
                isa,
                info1: values[0],
                info2: values[1],
                rax: values[2],
                rcx: values[3],
                guest_rip: values[4],
                intr_info: values[5] as u32,
                is_nested: bytes[2],
                is_protected: bytes[3] & 1,
                ..KvmExit::default()
            },
            entry: KvmEntry {
                rip: values[4].wrapping_add(values[5] % 20),
                intr_info: values[1] as u32,
                ..KvmEntry::default()
            },
            ..Exit::default()
        })
}

proptest! {
    #[test]
    fn any_exit_can_be_shown(exit in any_exit()) {
        prop_assert!(!line(&exit).is_empty());
        prop_assert!(!line(&exit).contains('\n'));
    }

    #[test]
    fn a_protected_guest_shows_no_register(exit in any_exit(), secret in 0x5ec2_e700_0000_0000u64..0x5ec2_e7ff_ffff_ffff) {
        let mut exit = exit;
        exit.exit = KvmExit { is_protected: 1, rax: secret, rbx: secret, rcx: secret, rdx: secret, ..exit.exit };
        exit.entry = KvmEntry { is_protected: 1, rax: secret, rbx: secret, rcx: secret, rdx: secret, ..exit.entry };
        prop_assert!(!line(&exit).contains("5ec2e7"), "{}", line(&exit));
    }
}
