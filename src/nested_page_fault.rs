// SPDX-License-Identifier: GPL-2.0-only
//! `exitregs:kvm_nested_page_fault`, for which KVM has no tracepoint.
//!
//! C headers: [`include/linux/fprobe.h`](srctree/include/linux/fprobe.h).
//!
//! KVM's function that injects such a fault knows L2's address and whether the hardware told of it; what L1 is told it works out.
//! That `kvm_nested_vmexit_inject` passes, the tracepoint that comes next in the same thread, where L2's registers are gone. So an
//! fprobe on the function notes what is known there, and the event is made at the tracepoint.

use core::ffi::{c_char, c_int, c_ulong, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

use kernel::prelude::*;

use crate::bindings;
use crate::common::event::{Event, Field, KvmNestedPageFault};
use crate::common::isa::Isa;
use crate::common::{svm::ExitCode, vmx::ExitReason};
use crate::layout;
use crate::trace_event::{Shared, trace_event};
use crate::vcpu::{Vcpu, event_of};
use crate::version::{EntryRegisters, NESTED_VMEXIT_INJECT};

/// The tracepoint that KVM lacks: the core takes the event's name from it. Nobody calls it.
static TRACEPOINT: Shared<bindings::tracepoint> = Shared::new({
    // SAFETY: All zero is a valid value, as in `alloc_synth_tracepoint()` of the kernel.
    let mut tracepoint: bindings::tracepoint = unsafe { MaybeUninit::zeroed().assume_init() };
    tracepoint.name = c"kvm_nested_page_fault".as_ptr().cast();
    tracepoint
});

trace_event! {
    /// L0 has given L1 a page fault of L2's.
    mod event: KvmNestedPageFault named by TRACEPOINT attached by register(
        reason: u32, info1: u64, _info2: u64, _intr_info: u32, _error_code: u32, isa: u32,
    ) {
        let injected = match isa == Isa::Vmx as u32 {
            true => [ExitReason::EPT_VIOLATION.0, ExitReason::EPT_MISCONFIG.0].contains(&reason),
            false => reason == ExitCode::NPF.0,
        };
        // Any other exit of L2's was not injected by the functions that the fprobe is on.
        if !injected {
            return None;
        }
        Some(KvmNestedPageFault { guest_error_code: info1, ..newest()? })
    }
}

/// So many faults are noted. More would have to be on their way at once, each on a thread that lost its CPU just there, for one
/// to be lost.
const COUNT: usize = 256;

/// What is known of a fault before it is injected. Its thread alone writes it, and reads it a little later, unless as many others
/// have come meanwhile.
struct Noted {
    /// Null while the rest is being written.
    thread: AtomicPtr<c_void>,
    values: [AtomicU64; KvmNestedPageFault::FIELDS.len()],
}

static NOTED: [Noted; COUNT] = [const {
    Noted {
        thread: AtomicPtr::new(ptr::null_mut()),
        values: [const { AtomicU64::new(0) }; KvmNestedPageFault::FIELDS.len()],
    }
}; COUNT];

/// How many have been noted.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

fn current() -> *mut c_void {
    // SAFETY: There is always a current thread.
    unsafe { bindings::exitregs_current() }.cast()
}

/// Notes a fault of the current thread.
#[inline(always)]
fn note(fault: &KvmNestedPageFault) {
    let noted = &NOTED[NUMBER.fetch_add(1, Ordering::Relaxed) % COUNT];
    noted.thread.store(ptr::null_mut(), Ordering::Relaxed);
    fence(Ordering::Release);
    for (index, value) in noted.values.iter().enumerate() {
        value.store(fault.value(index).unwrap_or(0), Ordering::Relaxed);
    }
    noted.thread.store(current(), Ordering::Release);
}

/// The fault that the current thread has noted last.
#[inline(always)]
fn newest() -> Option<KvmNestedPageFault> {
    let (thread, number) = (current(), NUMBER.load(Ordering::Relaxed));
    let mine = |noted: &&Noted| noted.thread.load(Ordering::Acquire) == thread;
    let noted = (1..=COUNT).map(|back| &NOTED[number.wrapping_sub(back) % COUNT]).find(mine)?;
    let fault = KvmNestedPageFault::from_values(|index| {
        noted.values.get(index).map_or(0, |value| value.load(Ordering::Relaxed))
    });
    fence(Ordering::Acquire);
    // Else it was overwritten meanwhile.
    mine(&noted).then_some(fault)
}

/// What is known where the fault is injected.
///
/// # Safety
/// `vcpu` and `exception` must be what KVM's function got.
#[inline(always)]
unsafe fn known(
    vcpu: *mut bindings::kvm_vcpu,
    exception: *const c_void,
    from_hardware: bool,
) -> Option<KvmNestedPageFault> {
    let is_vmx = crate::is_vmx();
    // SAFETY: By the requirement. KVM runs the function for a vCPU that it has loaded, in that one's thread, which an fprobe
    // keeps on its CPU; a processor has one instruction set only.
    let (vcpu, info, guest_rip, gpa) = unsafe {
        let vcpu = Vcpu::new(vcpu);
        (vcpu, vcpu.exit_info(is_vmx)?, vcpu.rip(is_vmx), layout::FAULT_ADDRESS.read(exception)?)
    };
    // Of a misconfiguration the hardware says nothing.
    let has_code = !is_vmx || ExitReason(info.reason).basic() == ExitReason::EPT_VIOLATION;
    Some(event_of!(vcpu, KvmNestedPageFault {
        guest_rip,
        gpa,
        host_error_code: if from_hardware && has_code { info.info1 } else { 0 },
        guest_error_code: 0,
    }))
}

/// Where KVM is about to inject a fault: `…(struct kvm_vcpu *vcpu, struct x86_exception *fault, bool from_hardware)`.
unsafe extern "C" fn entry_probe(
    _fprobe: *mut bindings::fprobe,
    _ip: c_ulong,
    _return_ip: c_ulong,
    registers: *mut EntryRegisters,
    _data: *mut c_void,
) -> c_int {
    let registers: *const bindings::pt_regs = registers.cast();
    // SAFETY: An fprobe passes registers in which the function's arguments are as the psABI has them; these are the first three.
    let fault = unsafe {
        let (vcpu, exception) =
            ((*registers).di as *mut bindings::kvm_vcpu, (*registers).si as *const c_void);
        known(vcpu, exception, (*registers).dx as u8 != 0)
    };
    if let Some(fault) = fault {
        note(&fault);
    }
    0
}

static FPROBE: Shared<bindings::fprobe> = Shared::new(new_fprobe());

const fn new_fprobe() -> bindings::fprobe {
    // SAFETY: All zero is a valid value: plain data and no functions.
    let mut fprobe: bindings::fprobe = unsafe { MaybeUninit::zeroed().assume_init() };
    fprobe.entry_handler = Some(entry_probe);
    fprobe
}

/// How often the event is registered. Changed under the core's `event_mutex` only.
static USERS: AtomicUsize = AtomicUsize::new(0);

/// Puts the fprobe on KVM's function, with the first user.
fn get() -> Result {
    if USERS.load(Ordering::Relaxed) == 0 {
        if !layout::FAULT_ADDRESS.is_there() {
            pr_err!("kvm_nested_page_fault needs fault_address_offset\n");
            return Err(EINVAL);
        }
        let function =
            if crate::is_vmx() { c"nested_ept_inject_page_fault" } else { c"nested_svm_inject_npf_exit" };
        // Unregistering leaves pointers in it that Linux 6.12 would follow (trace_fprobe.c clears them, too).
        // SAFETY: It is not registered, and `event_mutex` keeps others from here.
        unsafe { FPROBE.get().write(new_fprobe()) };
        let mut functions: [*const c_char; 1] = [function.as_ptr().cast()];
        // SAFETY: The fprobe is not registered; the array has one name, which the function only reads.
        let result =
            unsafe { bindings::register_fprobe_syms(FPROBE.get(), functions.as_mut_ptr().cast(), 1) };
        if result < 0 {
            pr_err!(
                "kvm_nested_page_fault needs KVM's {}; is the vendor's module loaded?\n",
                function.to_str().unwrap_or("")
            );
        }
        kernel::error::to_result(result)?;
    }
    USERS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Takes it off, with the last user; then it is not running any more.
fn put() {
    if USERS.fetch_sub(1, Ordering::Relaxed) == 1 {
        // SAFETY: It is registered.
        unsafe { bindings::unregister_fprobe(FPROBE.get()) };
    }
}

/// What `trace_event_reg()` does, with the tracepoint that there is, and the fprobe.
unsafe extern "C" fn register(
    call: *mut bindings::trace_event_call,
    what: bindings::trace_reg,
    data: *mut c_void,
) -> c_int {
    let tracepoint = &raw mut NESTED_VMEXIT_INJECT;
    // SAFETY: The core passes a call of this module.
    let class = unsafe { &*(*call).class };
    let (probe, data) = match what {
        bindings::trace_reg_TRACE_REG_REGISTER | bindings::trace_reg_TRACE_REG_UNREGISTER => {
            (class.probe, data)
        }
        _ => (class.perf_probe, call.cast()),
    };
    match what {
        bindings::trace_reg_TRACE_REG_REGISTER | bindings::trace_reg_TRACE_REG_PERF_REGISTER => {
            if let Err(error) = get() {
                return error.to_errno();
            }
            // SAFETY: The probe is one of this tracepoint's.
            let result = unsafe { bindings::tracepoint_probe_register(tracepoint, probe, data) };
            if result < 0 {
                put();
            }
            result
        }
        bindings::trace_reg_TRACE_REG_UNREGISTER | bindings::trace_reg_TRACE_REG_PERF_UNREGISTER => {
            // SAFETY: It was registered with the same arguments.
            unsafe {
                bindings::tracepoint_probe_unregister(tracepoint, probe, data);
                bindings::exitregs_synchronize_tracepoints();
            }
            put();
            0
        }
        _ => 0,
    }
}
