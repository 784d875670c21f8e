// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The C header that the BPF programs include: records and constants, from this crate's own.

use super::cpuid::{SUBLEAF_BASIC, SUBLEAF_EXTENDED};
use super::detail::{self, DetailKind};
use super::event::{EXIT_C_DECLARATION, Event, KvmEntry, KvmExit, abi_field};
use super::flags::{EventInfo, EventType};
use super::hypercall::Abi;
use super::isa::Isa;
use core::fmt;

/// Displays the header.
#[derive(Debug, Clone, Copy)]
pub struct Header;

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "/* SPDX-License-Identifier: GPL-2.0-only OR MIT */")?;
        writeln!(f, "/* Made from exitregs-common by tool/build.rs. */")?;
        writeln!(f, "#ifndef EXITREGS_EVENTS_H\n#define EXITREGS_EVENTS_H\n")?;
        writeln!(f, "{}\n{}\n{}", KvmExit::C_DECLARATION, KvmEntry::C_DECLARATION, EXIT_C_DECLARATION)?;
        for (name, value) in [
            ("ISA_VMX", Isa::Vmx as u64),
            ("ISA_SVM", Isa::Svm as u64),
            ("HYPERCALL_ABI_KVM", abi_field(Abi::Kvm).into()),
            ("HYPERCALL_ABI_HYPERV", abi_field(Abi::HyperV).into()),
            ("HYPERCALL_ABI_XEN", abi_field(Abi::Xen).into()),
            ("DETAIL_REASONS", detail::REASONS as u64),
            ("DETAIL_UNKNOWN", detail::UNKNOWN),
            ("DETAIL_NONE", DetailKind::None as u64),
            ("DETAIL_MSR", DetailKind::Msr as u64),
            ("DETAIL_MSR_IMMEDIATE", DetailKind::MsrImmediate as u64),
            ("DETAIL_HYPERCALL", DetailKind::Hypercall as u64),
            ("DETAIL_CPUID", DetailKind::Cpuid as u64),
            ("DETAIL_IO", DetailKind::Io as u64),
            ("CPUID_SUBLEAF_BASIC", SUBLEAF_BASIC),
            ("CPUID_SUBLEAF_EXTENDED", SUBLEAF_EXTENDED),
            ("INTR_INFO_EXCEPTION", u64::from(EventInfo::VALID | (EventType::Exception as u32) << 8)),
        ] {
            writeln!(f, "#define {name} {value:#x}ULL")?;
        }
        writeln!(f, "\n#endif")
    }
}
