// SPDX-License-Identifier: GPL-2.0-only
//! Where KVM's private structures have what the events need: what no public header tells.
//!
//! Where the kernel's headers are complete, these offsets are built in. Else, or to override one, they are module parameters,
//! for which `/sys/kernel/btf` has the values; `exitregs events install` passes them. Such a value is not trusted: what lies
//! there is read with `copy_from_kernel_nofault()`.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_void};
use core::mem::MaybeUninit;

use kernel::prelude::*;

use crate::bindings;

/// The offset of eight bytes in a structure.
pub(crate) struct Offset {
    /// The kernel writes it before the module's initialization; then it is read only.
    value: UnsafeCell<u32>,
    /// What the kernel's own headers say; 0 if they don't.
    built_in: u32,
}

// SAFETY: Nobody writes to it while anybody else may read it: see above. The file in sysfs is not writable.
unsafe impl Sync for Offset {}

impl Offset {
    const fn new(built_in: u32) -> Self {
        Self { value: UnsafeCell::new(built_in), built_in }
    }

    #[inline(always)]
    fn get(&self) -> usize {
        // SAFETY: Nobody writes to it any more.
        unsafe { *self.value.get() as usize }
    }

    /// Whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        self.get() != 0
    }

    /// Whether it is the kernel's own: then what lies there is what should.
    #[inline(always)]
    pub(crate) fn is_built_in(&self) -> bool {
        self.built_in != 0 && self.get() == self.built_in as usize
    }

    /// What lies there in a structure; `None` if that cannot be read.
    ///
    /// # Safety
    /// `structure` must be a valid one, of the kind that the offset is of.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, structure: *const c_void) -> Option<u64> {
        let place: *const u64 = structure.cast::<u8>().wrapping_add(self.get()).cast();
        if self.is_built_in() {
            // SAFETY: By the requirement; by the kernel's headers it is a member.
            return Some(unsafe { place.read() });
        }
        // SAFETY: Every pattern of bits is an integer.
        unsafe { read(place) }
    }

    /// Refuses an offset that cannot be right.
    ///
    /// # Errors
    /// `EINVAL`, with a message, if it is out of range or not aligned.
    fn check(&self, name: &str, start: usize, end: usize) -> Result {
        let offset = self.get();
        if offset < start || offset >= end || offset % align_of::<u64>() != 0 {
            pr_err!(
                "{}={} cannot be: expected a multiple of 8 from {} on, below {}\n",
                name,
                offset,
                start,
                end
            );
            return Err(EINVAL);
        }
        Ok(())
    }
}

/// Reads from kernel memory; `None` if that faults.
///
/// # Safety
/// Every pattern of bits must be a `T`.
#[inline(always)]
pub(crate) unsafe fn read<T>(from: *const T) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: The destination is as large as the size says; the source may be anything.
    let failed = unsafe {
        bindings::copy_from_kernel_nofault(value.as_mut_ptr().cast(), from.cast(), size_of::<T>() as _)
    };
    // SAFETY: Every byte was written, and by the requirement that makes a value.
    (failed == 0).then(|| unsafe { value.assume_init() })
}

/// What `module_param()` puts into the section `__param`.
#[repr(transparent)]
struct Parameter(bindings::kernel_param);

// SAFETY: Nobody changes it.
unsafe impl Sync for Parameter {}

impl Parameter {
    const fn new(name: &'static CStr, offset: &'static Offset) -> Self {
        // SAFETY: All zero is a valid value: plain data.
        let mut parameter: bindings::kernel_param = unsafe { MaybeUninit::zeroed().assume_init() };
        parameter.name = name.as_ptr().cast();
        parameter.mod_ = &raw mut bindings::__this_module;
        parameter.ops = &raw const bindings::param_ops_uint;
        parameter.perm = 0o444;
        parameter.level = -1;
        parameter.__bindgen_anon_1.arg = offset.value.get().cast();
        Self(parameter)
    }
}

/// The bytes of a text of that many.
const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let mut index = 0;
    // Evaluated by the compiler, which refuses a text that is too short.
    while index < N {
        bytes[index] = text.as_bytes()[index];
        index += 1;
    }
    bytes
}

/// Defines an offset and its module parameter, with what `modinfo` shows of that.
macro_rules! offset {
    ($(#[$doc:meta])* $NAME:ident = $name:literal, $built_in:ident, $text:literal) => {
        $(#[$doc])*
        pub(crate) static $NAME: Offset = Offset::new(bindings::$built_in);

        const _: () = {
            const DESCRIPTION: &str = concat!("parm=", $name, ":", $text, "\0");
            const TYPE: &str = concat!("parmtype=", $name, ":uint\0");

            #[used(compiler)]
            #[link_section = "__param"]
            static PARAMETER: Parameter = Parameter::new(
                match CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!(),
                },
                &$NAME,
            );
            #[used(compiler)]
            #[link_section = ".modinfo"]
            static SHOWN: [u8; DESCRIPTION.len()] = bytes(DESCRIPTION);
            #[used(compiler)]
            #[link_section = ".modinfo"]
            static SHOWN_TYPE: [u8; TYPE.len()] = bytes(TYPE);
        };
    };
}

offset! {
    /// The pointer to the VMCB in SVM's `struct vcpu_svm`, which begins with its `struct kvm_vcpu`.
    VMCB = "vmcb_offset", exitregs_layout_EXITREGS_VMCB, "Offset of vmcb in struct vcpu_svm, by BTF"
}

offset! {
    /// The address in the `struct x86_exception` that KVM's functions which inject nested page faults get.
    FAULT_ADDRESS = "fault_address_offset", exitregs_layout_EXITREGS_FAULT_ADDRESS,
        "Offset of address in struct x86_exception, by BTF"
}

/// Refuses offsets that cannot be right.
///
/// # Errors
/// `EINVAL`, with a message, if one is out of range or not aligned, or exits cannot do without one that is missing.
pub(crate) fn check(is_vmx: bool) -> Result {
    /// `struct vcpu_svm` is `struct kvm_vcpu` and a few pages at most.
    const VCPU_LIMIT: usize = 4 * 4096;
    /// `struct x86_exception` is a handful of words; its first members are not the address.
    const EXCEPTION: [usize; 2] = [8, 64];

    if !is_vmx {
        if !VMCB.is_there() {
            pr_err!("vmcb_offset is missing: this module was built without KVM's private headers\n");
            return Err(EINVAL);
        }
        let start = size_of::<bindings::kvm_vcpu>();
        VMCB.check("vmcb_offset", start, start + VCPU_LIMIT)?;
    }
    if FAULT_ADDRESS.is_there() {
        FAULT_ADDRESS.check("fault_address_offset", EXCEPTION[0], EXCEPTION[1])?;
    }
    Ok(())
}
