// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The two virtualization extensions, and the levels that guests run at.

use super::{svm, vmx};
use core::fmt;

/// Instruction set extension, numbered as `isa` in `kvm_exit` (`KVM_ISA_*` in
/// `arch/x86/kvm/trace.h`). TDX reports VMX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Intel's.
    Vmx = 1,
    /// AMD's.
    Svm = 2,
}

impl Isa {
    /// The extension that `kvm_exit`'s `isa` field names.
    pub const fn from_field(isa: u32) -> Option<Self> {
        match isa {
            1 => Some(Self::Vmx),
            2 => Some(Self::Svm),
            _ => None,
        }
    }

    /// Displays an exit reason by the kernel's name for it.
    pub const fn exit_reason(self, exit_reason: u32) -> ExitReasonName {
        ExitReasonName { isa: self, exit_reason }
    }

    /// The exit reason that the kernel calls `name`, whatever the case of its letters.
    pub fn exit_reason_by_name(self, name: &str) -> Option<u32> {
        match self {
            Self::Vmx => vmx::ExitReason::by_name(name).map(|reason| reason.0),
            Self::Svm => svm::ExitCode::by_name(name).map(|code| code.0),
        }
    }
}

/// An exit reason with the instruction set that defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitReasonName {
    isa: Isa,
    exit_reason: u32,
}

impl fmt::Display for ExitReasonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.isa {
            Isa::Vmx => vmx::ExitReason(self.exit_reason).fmt(f),
            Isa::Svm => svm::ExitCode(self.exit_reason).fmt(f),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
        })
    }
}

/// Who ran in the guest when it exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The VM that KVM runs for user space.
    L1,
    /// A guest of L1, or deeper.
    L2,
}

impl Level {
    /// The level that a COMMON `is_nested` field tells.
    pub const fn from_is_nested(is_nested: u8) -> Self {
        if is_nested == 0 { Self::L1 } else { Self::L2 }
    }

    /// The value of `is_nested` at this level.
    pub const fn is_nested(self) -> u8 {
        match self {
            Self::L1 => 0,
            Self::L2 => 1,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::L1 => "L1",
            Self::L2 => "L2",
        })
    }
}
