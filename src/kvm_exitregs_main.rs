// SPDX-License-Identifier: GPL-2.0-only
//! `exitregs:kvm_exit`, `exitregs:kvm_entry` and `exitregs:kvm_nested_page_fault`: KVM's events with the guest's registers and
//! its level, for kernels whose own events lack them.

mod bindings;
mod common;
mod layout;
mod nested_page_fault;
mod trace_event;
mod vcpu;
mod version;
mod vmcs;

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use kernel::prelude::*;

use common::event::{Event, Field, KvmEntry, KvmExit};
use common::isa::Isa;
use trace_event::trace_event;
use vcpu::{Vcpu, event_of};

module! {
    type: Exitregs,
    name: "kvm_exitregs",
    description: "KVM's exit, entry and nested page fault events with guest registers",
    license: "GPL",
}

trace_event! {
    /// The vCPU left the guest.
    mod exit: KvmExit on __tracepoint_kvm_exit(vcpu: *mut bindings::kvm_vcpu, isa: u32) {
        let is_vmx = isa == Isa::Vmx as u32;
        // SAFETY: The tracepoint passes the vCPU that has just exited, and says of which instruction set it is.
        let (vcpu, info, guest_rip) = unsafe {
            let vcpu = Vcpu::new(vcpu);
            (vcpu, vcpu.exit_info(is_vmx)?, vcpu.rip(is_vmx))
        };
        Some(event_of!(vcpu, KvmExit {
            exit_reason: info.reason,
            guest_rip,
            isa,
            info1: info.info1,
            info2: info.info2,
            intr_info: info.intr_info,
            error_code: info.error_code,
            requests: vcpu.requests(),
        }))
    }
}

trace_event! {
    /// The vCPU is about to enter the guest.
    mod entry: KvmEntry on __tracepoint_kvm_entry(vcpu: *mut bindings::kvm_vcpu, immediate_exit: bool) {
        let is_vmx = is_vmx();
        // SAFETY: The tracepoint passes the vCPU that is about to run; a processor has one instruction set only.
        let (vcpu, (intr_info, error_code), rip) = unsafe {
            let vcpu = Vcpu::new(vcpu);
            (vcpu, vcpu.entry_info(is_vmx)?, vcpu.rip(is_vmx))
        };
        Some(event_of!(vcpu, KvmEntry {
            rip,
            immediate_exit: immediate_exit.into(),
            intr_info,
            error_code,
        }))
    }
}

/// Whether the processor has VMX; `kvm_entry` does not tell.
static IS_VMX: AtomicBool = AtomicBool::new(false);

#[inline(always)]
fn is_vmx() -> bool {
    IS_VMX.load(Ordering::Relaxed)
}

/// Whether KVM may run with an enlightened VMCS: on Hyper-V a structure in memory takes the place of VMREAD.
fn is_on_hyperv() -> bool {
    #[cfg(CONFIG_HYPERVISOR_GUEST)]
    // SAFETY: The kernel fills it in while it boots.
    return unsafe { bindings::x86_hyper_type } == bindings::x86_hypervisor_type_X86_HYPER_MS_HYPERV;
    #[cfg(not(CONFIG_HYPERVISOR_GUEST))]
    false
}

/// The module, while it is loaded.
struct Exitregs;

impl kernel::Module for Exitregs {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: They may be called at any time.
        let (has_vmx, has_svm) = unsafe { (bindings::exitregs_has_vmx(), bindings::exitregs_has_svm()) };
        if !has_vmx && !has_svm {
            pr_err!("this processor has neither VMX nor SVM\n");
            return Err(ENODEV);
        }
        if has_vmx && is_on_hyperv() {
            pr_err!("not on Hyper-V: KVM's VMCS may be one that no processor can read\n");
            return Err(ENODEV);
        }
        IS_VMX.store(has_vmx, Ordering::Relaxed);
        layout::check(has_vmx)?;
        Ok(Self)
    }
}
