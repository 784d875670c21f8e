// SPDX-License-Identifier: GPL-2.0-only
//! What a VMX vCPU's exit and entry are about: fields of the current VMCS. SDM Vol. 3C chapter 26; the encodings are those of
//! arch/x86/include/asm/vmx.h.

use core::arch::asm;

const GUEST_RIP: u64 = 0x681e;
const EXIT_REASON: u64 = 0x4402;
const EXIT_INTR_INFO: u64 = 0x4404;
const EXIT_INTR_ERROR_CODE: u64 = 0x4406;
const IDT_VECTORING_INFO: u64 = 0x4408;
const EXIT_QUALIFICATION: u64 = 0x6400;
const ENTRY_INTR_INFO: u64 = 0x4016;
const ENTRY_EXCEPTION_ERROR_CODE: u64 = 0x4018;

/// Bit 31 of an exit reason: the entry failed, and only reason and qualification are defined.
const FAILED_ENTRY: u32 = 1 << 31;

/// The current VMCS. Whoever has one knows that there is one.
pub(crate) struct Vmcs(());

impl Vmcs {
    /// # Safety
    /// This CPU must be in VMX root operation with a current VMCS, and stay so as long as the result is used.
    #[inline(always)]
    pub(crate) unsafe fn current() -> Self {
        Self(())
    }

    /// Reads a field; 0 if this processor has no such field.
    #[inline(always)]
    fn read(&self, field: u64) -> u64 {
        let mut value: u64 = 0;
        // SAFETY: VMREAD is legal, by `current`. It writes the register, unless there is no such field, and flags.
        unsafe { asm!("vmread {}, {}", inout(reg) value, in(reg) field, options(nostack, nomem)) };
        value
    }

    #[inline(always)]
    fn read32(&self, field: u64) -> u32 {
        self.read(field) as u32
    }

    /// The error code that belongs to an event, 0 if it has none (`is_exception_with_error_code()`).
    #[inline(always)]
    fn error_code(&self, info: u32, field: u64) -> u32 {
        const HARDWARE_EXCEPTION: u32 = 3 << 8;
        const DELIVER_CODE: u32 = 1 << 11;
        const VALID: u32 = 1 << 31;
        const MASK: u32 = VALID | DELIVER_CODE | 7 << 8;

        if info & MASK == VALID | DELIVER_CODE | HARDWARE_EXCEPTION { self.read32(field) } else { 0 }
    }

    /// L1's or L2's RIP.
    #[inline(always)]
    pub(crate) fn guest_rip(&self) -> u64 {
        self.read(GUEST_RIP)
    }

    /// What `vmx_get_exit_info()` tells.
    #[inline(always)]
    pub(crate) fn exit(&self) -> crate::vcpu::ExitInfo {
        let reason = self.read32(EXIT_REASON);
        let info1 = self.read(EXIT_QUALIFICATION);
        if reason & FAILED_ENTRY != 0 {
            return crate::vcpu::ExitInfo { reason, info1, ..crate::vcpu::ExitInfo::default() };
        }
        let intr_info = self.read32(EXIT_INTR_INFO);
        crate::vcpu::ExitInfo {
            reason,
            info1,
            info2: self.read(IDT_VECTORING_INFO),
            intr_info,
            error_code: self.error_code(intr_info, EXIT_INTR_ERROR_CODE),
        }
    }

    /// What `vmx_get_entry_info()` tells: the event to inject, and its error code.
    #[inline(always)]
    pub(crate) fn entry(&self) -> (u32, u32) {
        let intr_info = self.read32(ENTRY_INTR_INFO);
        (intr_info, self.error_code(intr_info, ENTRY_EXCEPTION_ERROR_CODE))
    }
}
