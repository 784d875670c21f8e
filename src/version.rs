// SPDX-License-Identifier: GPL-2.0-only
//! What differs between versions of the kernel. `Kbuild` looks into its headers and sets the `exitregs_` configurations.

use crate::bindings;

/// Keeps preemption disabled in a probe, where the kernel does not do it for its probes.
pub(crate) struct PreemptionGuard(());

impl PreemptionGuard {
    /// Disables preemption until the result is dropped.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        #[cfg(exitregs_preemptible_tracepoints)]
        // SAFETY: It only counts; the counterpart is in `drop`.
        unsafe {
            bindings::exitregs_preempt_disable()
        };
        Self(())
    }
}

impl Drop for PreemptionGuard {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(exitregs_preemptible_tracepoints)]
        // SAFETY: `new` disabled it.
        unsafe {
            bindings::exitregs_preempt_enable()
        };
    }
}

/// What an fprobe gets of the registers at a function's entry: on x86 a `struct pt_regs`, by either name. Of newer kernels only
/// the arguments and the stack pointer are there.
#[cfg(exitregs_ftrace_regs)]
pub(crate) type EntryRegisters = bindings::ftrace_regs;
#[cfg(not(exitregs_ftrace_regs))]
pub(crate) type EntryRegisters = bindings::pt_regs;

/// The tracepoint of an exit of L2's that L1 gets.
#[cfg(exitregs_nested_vmexit)]
pub(crate) use bindings::__tracepoint_kvm_nested_vmexit as NESTED_VMEXIT_INJECT;
#[cfg(not(exitregs_nested_vmexit))]
pub(crate) use bindings::__tracepoint_kvm_nested_vmexit_inject as NESTED_VMEXIT_INJECT;

/// The number of RIP in `regs_avail`.
#[cfg(exitregs_arch_rip)]
const RIP: u32 = bindings::kvm_reg_VCPU_REG_RIP;
#[cfg(not(exitregs_arch_rip))]
const RIP: u32 = bindings::kvm_reg_VCPU_REGS_RIP;

/// The vCPU's RIP, if KVM has it: on VMX it stays in the VMCS until somebody asks for it.
#[inline(always)]
pub(crate) fn cached_rip(arch: &bindings::kvm_vcpu_arch) -> Option<u64> {
    #[cfg(exitregs_arch_rip)]
    let (available, rip) = (arch.regs_avail[0] as u32, arch.rip);
    #[cfg(not(exitregs_arch_rip))]
    let (available, rip) = (arch.regs_avail, arch.regs[RIP as usize]);
    (available & 1 << RIP != 0).then_some(rip)
}
