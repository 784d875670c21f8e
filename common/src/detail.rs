// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What an exit was about: its MSR, hypercall, CPUID leaf or port, also as the 64-bit key by which
//! the BPF program counts.
//!
//! | kind | key |
//! |---|---|
//! | MSR | ECX; on SVM bit 32 is EXITINFO1's: a write |
//! | MSR (immediate forms, VMX) | the exit qualification: the MSR |
//! | hypercall | RAX; Hyper-V: the call code |
//! | CPUID | EAX; ECX in the high half where the leaf has subleaves |
//! | port I/O | EXITINFO1 or the exit qualification |

use super::cpuid;
use super::event::{Event, Exit, KvmExit, field_bit};
use super::flags::PortAccess;
use super::gpr::Gpr;
use super::hypercall::Abi;
use super::isa::Isa;
use super::{msr, svm, vmx};
use core::fmt;

/// Every exit reason that has a detail is below this.
pub const REASONS: usize = 256;
/// The key of a detail that the source could not read.
pub const UNKNOWN: u64 = u64::MAX;

/// Where an exit reason's detail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DetailKind {
    /// Nowhere.
    None,
    /// In ECX.
    Msr,
    /// In the exit qualification: RDMSR and WRMSRNS with an immediate MSR number.
    MsrImmediate,
    /// In RAX, or Hyper-V's input value.
    Hypercall,
    /// In EAX and ECX.
    Cpuid,
    /// In EXITINFO1 or the exit qualification.
    Io,
}

impl DetailKind {
    /// The kind of an exit reason; a failed VM entry has none.
    pub const fn of(isa: Isa, exit_reason: u32) -> Self {
        match isa {
            Isa::Svm => match svm::ExitCode(exit_reason) {
                svm::ExitCode::MSR => Self::Msr,
                svm::ExitCode::VMMCALL => Self::Hypercall,
                svm::ExitCode::CPUID => Self::Cpuid,
                svm::ExitCode::IOIO => Self::Io,
                _ => Self::None,
            },
            Isa::Vmx => match vmx::ExitReason(exit_reason) {
                vmx::ExitReason::MSR_READ | vmx::ExitReason::MSR_WRITE => Self::Msr,
                vmx::ExitReason::MSR_READ_IMM | vmx::ExitReason::MSR_WRITE_IMM => Self::MsrImmediate,
                vmx::ExitReason::VMCALL => Self::Hypercall,
                vmx::ExitReason::CPUID => Self::Cpuid,
                vmx::ExitReason::IO_INSTRUCTION => Self::Io,
                _ => Self::None,
            },
        }
    }
}

/// What an exit was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Detail {
    /// Nothing more than its reason says.
    None,
    /// The source could not read it.
    Unknown,
    /// An MSR access.
    Msr {
        /// The MSR.
        index: u32,
        /// WRMSR; else RDMSR.
        write: bool,
    },
    /// A hypercall.
    Hypercall {
        /// Whose; `None` if only L1 knows.
        abi: Option<Abi>,
        /// Its number, raw; Hyper-V: the call code.
        number: u64,
    },
    /// A CPUID query.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX, where the leaf has subleaves.
        subleaf: Option<u32>,
    },
    /// A port access.
    Io(PortAccess),
}

impl Detail {
    /// What a key says of exits with this reason.
    pub fn from_key(isa: Isa, exit_reason: u32, abi: Option<Abi>, key: u64) -> Self {
        let kind = DetailKind::of(isa, exit_reason);
        if kind != DetailKind::None && key == UNKNOWN {
            return Self::Unknown;
        }
        match kind {
            DetailKind::None => Self::None,
            DetailKind::Msr | DetailKind::MsrImmediate => Self::Msr {
                index: key as u32,
                write: match isa {
                    Isa::Svm => svm::msr_is_write(key >> 32),
                    Isa::Vmx => matches!(
                        vmx::ExitReason(exit_reason),
                        vmx::ExitReason::MSR_WRITE | vmx::ExitReason::MSR_WRITE_IMM
                    ),
                },
            },
            DetailKind::Hypercall => Self::Hypercall { abi, number: key },
            DetailKind::Cpuid => {
                let leaf = key as u32;
                Self::Cpuid { leaf, subleaf: cpuid::has_subleaf(leaf).then_some((key >> 32) as u32) }
            }
            DetailKind::Io => Self::Io(match isa {
                Isa::Svm => svm::IoInfo(key).access(),
                Isa::Vmx => vmx::IoQualification(key).access(),
            }),
        }
    }

    /// What an exit was about.
    pub fn of(exit: &Exit) -> Self {
        match Isa::from_field(exit.exit.isa) {
            Some(isa) => Self::from_key(isa, exit.exit.exit_reason, exit.hypercall_abi(), key(exit)),
            None => Self::Unknown,
        }
    }
}

/// The key of an exit, as tool/bpf/detail.h computes it; [`UNKNOWN`] if its instruction set is none that there is.
pub fn key(exit: &Exit) -> u64 {
    let Some(isa) = Isa::from_field(exit.exit.isa) else { return UNKNOWN };
    const INFO1: u32 = field_bit(KvmExit::FIELDS, "info1");
    let kind = DetailKind::of(isa, exit.exit.exit_reason);
    if kind == DetailKind::None {
        return 0;
    }
    let info1 = (exit.exit_unknown & INFO1 == 0).then_some(exit.exit.info1);
    let low = |gpr| exit.operand(gpr).map(|value| u64::from(value as u32));
    let key = match kind {
        DetailKind::None => Some(0),
        DetailKind::Io | DetailKind::MsrImmediate => info1,
        DetailKind::Msr if isa == Isa::Svm => {
            low(Gpr::Rcx).zip(info1).map(|(index, info1)| index | info1 << 32)
        }
        DetailKind::Msr => low(Gpr::Rcx),
        DetailKind::Hypercall if exit.hypercall_abi() == Some(Abi::HyperV) => {
            exit.operand(Gpr::Rcx).map(|input| input & 0xffff)
        }
        DetailKind::Hypercall => exit.operand(Gpr::Rax),
        DetailKind::Cpuid => low(Gpr::Rax).and_then(|leaf| match cpuid::has_subleaf(leaf as u32) {
            true => exit.operand(Gpr::Rcx).map(|subleaf| leaf | subleaf << 32),
            false => Some(leaf),
        }),
    };
    key.unwrap_or(UNKNOWN)
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => Ok(()),
            Self::Unknown => f.write_str("?"),
            Self::Msr { index, write } => {
                let instruction = if write { "wrmsr" } else { "rdmsr" };
                match msr::name(index) {
                    Some(name) => write!(f, "{instruction} {name}"),
                    None => write!(f, "{instruction} {index:#x}"),
                }
            }
            Self::Hypercall { abi, number } => match abi.and_then(|abi| abi.call_name(number)) {
                Some(name) => f.write_str(name),
                None => write!(f, "{number:#x}"),
            },
            Self::Cpuid { leaf, subleaf: Some(subleaf) } => write!(f, "{leaf:#x}.{subleaf:x}"),
            Self::Cpuid { leaf, subleaf: None } => write!(f, "{leaf:#x}"),
            Self::Io(access) => access.fmt(f),
        }
    }
}
