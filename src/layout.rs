// SPDX-License-Identifier: GPL-2.0-only
//! Where SVM's private `struct vcpu_svm` has its pointer to the VMCB: the one thing that no public header tells.
//!
//! Where the kernel's headers are complete, the offset is built in. Else, or to override it, it is the module parameter
//! `vmcb_offset`, for which `/sys/kernel/btf` has the value (`bpftool btf dump file /sys/kernel/btf/kvm_amd`). It is never
//! trusted: what lies there is read with `copy_from_kernel_nofault()`, and must be the address of a page.

use core::cell::UnsafeCell;
use core::ffi::c_char;

use kernel::prelude::*;

use crate::bindings;

/// Where a parameter's value lies. The kernel writes it before the module's initialization; then it is read only.
#[repr(transparent)]
struct Value(UnsafeCell<u32>);

// SAFETY: Nobody writes it while anybody else may read it: see above. The file in sysfs is not writable.
unsafe impl Sync for Value {}

static VMCB_OFFSET: Value = Value(UnsafeCell::new(bindings::exitregs_layout_EXITREGS_VCPU_SVM_VMCB));

/// What `module_param()` puts into the section `__param`.
#[repr(transparent)]
struct Parameter(bindings::kernel_param);

// SAFETY: Nobody changes it.
unsafe impl Sync for Parameter {}

#[used(compiler)]
#[link_section = "__param"]
static PARAMETER: Parameter = Parameter({
    // SAFETY: All zero is a valid value: plain data.
    let mut parameter: bindings::kernel_param = unsafe { core::mem::MaybeUninit::zeroed().assume_init() };
    parameter.name = c"vmcb_offset".as_ptr() as *const c_char as *const _;
    parameter.mod_ = &raw mut bindings::__this_module;
    parameter.ops = &raw const bindings::param_ops_uint;
    parameter.perm = 0o444;
    parameter.level = -1;
    parameter.__bindgen_anon_1.arg = VMCB_OFFSET.0.get().cast();
    parameter
});

/// What `modinfo` shows of the parameter.
#[used(compiler)]
#[link_section = ".modinfo"]
static DESCRIPTION: [u8; 60] = *b"parm=vmcb_offset:Offset of vmcb in struct vcpu_svm, by BTF\0\0";

#[used(compiler)]
#[link_section = ".modinfo"]
static TYPE: [u8; 26] = *b"parmtype=vmcb_offset:uint\0";

/// The offset.
#[inline(always)]
pub(crate) fn vmcb_offset() -> usize {
    // SAFETY: Nobody writes it any more.
    unsafe { *VMCB_OFFSET.0.get() as usize }
}

/// Refuses an offset that cannot be right.
///
/// # Errors
/// `EINVAL`, with a message, if it is absent, out of range or not aligned.
pub(crate) fn check() -> Result {
    /// `struct vcpu_svm` is `struct kvm_vcpu` and a few pages at most.
    const LIMIT: usize = 4 * 4096;

    let (offset, start) = (vmcb_offset(), size_of::<bindings::kvm_vcpu>());
    if offset == 0 {
        pr_err!("vmcb_offset is missing: this module was built without KVM's private headers\n");
        return Err(EINVAL);
    }
    if offset < start || offset >= start + LIMIT || offset % align_of::<*const u8>() != 0 {
        pr_err!("vmcb_offset={} cannot be: expected a multiple of 8 from {} on\n", offset, start);
        return Err(EINVAL);
    }
    Ok(())
}
