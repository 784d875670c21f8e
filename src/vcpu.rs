// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU, as KVM's tracepoints `kvm_exit` and `kvm_entry` pass it.
//!
//! C headers: [`arch/x86/include/asm/kvm_host.h`](srctree/arch/x86/include/asm/kvm_host.h),
//! [`arch/x86/include/asm/svm.h`](srctree/arch/x86/include/asm/svm.h).

use core::ffi::c_void;
use core::mem::offset_of;

use crate::bindings;
use crate::layout;
use crate::version;
use crate::vmcs::Vmcs;

/// What an exit is about, in the tracepoint's terms.
#[derive(Clone, Copy, Default)]
pub(crate) struct ExitInfo {
    pub(crate) reason: u32,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    pub(crate) intr_info: u32,
    pub(crate) error_code: u32,
}

/// The registers that COMMON has.
#[derive(Clone, Copy, Default)]
pub(crate) struct Registers {
    pub(crate) rax: u64,
    pub(crate) rbx: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
}

/// The vCPU that this CPU is running, between its being loaded and its being put.
#[derive(Clone, Copy)]
pub(crate) struct Vcpu<'a> {
    common: &'a bindings::kvm_vcpu,
    /// The vendor's structure, which begins with the common part.
    whole: *const c_void,
}

impl<'a> Vcpu<'a> {
    /// # Safety
    /// `vcpu` must be what `kvm_exit` or `kvm_entry` gave a probe that is still running, or another that stays on this CPU, in
    /// its own thread.
    #[inline(always)]
    pub(crate) unsafe fn new(vcpu: *mut bindings::kvm_vcpu) -> Self {
        // SAFETY: By the requirement. Others than this CPU write to `requests` alone, which is read as volatile.
        Self { common: unsafe { &*vcpu }, whole: vcpu.cast() }
    }

    /// As KVM_CREATE_VCPU was given it.
    #[inline(always)]
    pub(crate) fn id(self) -> u32 {
        self.common.vcpu_id as u32
    }

    /// The `KVM_REQ_*` bits that are pending.
    #[inline(always)]
    pub(crate) fn requests(self) -> u64 {
        // SAFETY: A reference is valid. Other CPUs set bits meanwhile: READ_ONCE().
        unsafe { (&raw const self.common.requests).read_volatile() }
    }

    /// `is_guest_mode()`, by the statistic that KVM keeps equal to it: the flag itself is a private bit.
    #[inline(always)]
    pub(crate) fn is_nested(self) -> bool {
        self.common.stat.guest_mode != 0
    }

    /// SEV-ES, SEV-SNP or TDX.
    #[inline(always)]
    pub(crate) fn is_protected(self) -> bool {
        self.common.arch.guest_state_protected
    }

    /// The registers, 0 where KVM cannot know them.
    #[inline(always)]
    pub(crate) fn registers(self) -> Registers {
        if self.is_protected() {
            return Registers::default();
        }
        // RAX, RCX, RDX, RBX: as instructions encode them.
        let regs = &self.common.arch.regs;
        Registers { rax: regs[0], rcx: regs[1], rdx: regs[2], rbx: regs[3] }
    }

    /// The VMCS of a VMX vCPU; none for TDX, whose vCPUs have none that the host may read.
    ///
    /// # Safety
    /// The vCPU must be one of VMX.
    #[inline(always)]
    unsafe fn vmcs(self) -> Option<Vmcs> {
        // SAFETY: KVM has loaded the VMCS of the vCPU that this CPU runs. On Hyper-V, where KVM may have put a structure in
        // memory in its place, the module does not load.
        (!self.is_protected()).then(|| unsafe { Vmcs::current() })
    }

    /// RIP, or 0 where KVM cannot know it.
    ///
    /// # Safety
    /// `is_vmx` must tell VMX from SVM.
    #[inline(always)]
    pub(crate) unsafe fn rip(self, is_vmx: bool) -> u64 {
        if self.is_protected() {
            return 0;
        }
        match version::cached_rip(&self.common.arch) {
            Some(rip) => rip,
            // SAFETY: By the requirement.
            None if is_vmx => unsafe { self.vmcs() }.map_or(0, |vmcs| vmcs.guest_rip()),
            None => 0,
        }
    }

    /// What `get_exit_info()` of KVM tells; `None` if that cannot be known.
    ///
    /// # Safety
    /// The vCPU must have exited, and not entered since, and `is_vmx` tell VMX from SVM.
    #[inline(always)]
    pub(crate) unsafe fn exit_info(self, is_vmx: bool) -> Option<ExitInfo> {
        if is_vmx {
            // SAFETY: By the requirement.
            return unsafe { self.vmcs() }.map(|vmcs| vmcs.exit());
        }
        // SAFETY: The VMCB has this at this place, and it is integers.
        let exit: VmcbExit = unsafe { self.control(offset_of!(bindings::vmcb_control_area, exit_code)) }?;
        Some(ExitInfo {
            reason: exit.code as u32,
            info1: exit.info1,
            info2: exit.info2,
            intr_info: exit.intr_info,
            error_code: if has_error_code(exit.intr_info) { exit.error_code } else { 0 },
        })
    }

    /// The event that KVM injects at this entry and its error code; `None` if that cannot be known.
    ///
    /// # Safety
    /// `is_vmx` must tell VMX from SVM.
    #[inline(always)]
    pub(crate) unsafe fn entry_info(self, is_vmx: bool) -> Option<(u32, u32)> {
        if is_vmx {
            // SAFETY: By the requirement.
            return unsafe { self.vmcs() }.map(|vmcs| vmcs.entry());
        }
        // SAFETY: As above.
        let event: VmcbEvent = unsafe { self.control(offset_of!(bindings::vmcb_control_area, event_inj)) }?;
        Some((event.info, if has_error_code(event.info) { event.error_code } else { 0 }))
    }

    /// A part of the control area of the VMCB that an SVM vCPU runs with. `None` if the VMCB is not where it should be, by
    /// what the module was told.
    ///
    /// # Safety
    /// Every pattern of bits must be a `T`.
    #[inline(always)]
    unsafe fn control<T>(self, offset: usize) -> Option<T> {
        const PAGE_MASK: u64 = 0xfff;

        // SAFETY: An SVM vCPU is a `struct vcpu_svm`.
        let vmcb = unsafe { layout::VMCB.read(self.whole) }?;
        let part = vmcb.wrapping_add((offset_of!(bindings::vmcb, control) + offset) as u64) as *const T;
        if layout::VMCB.is_built_in() {
            // SAFETY: This is the pointer to the VMCB, which a vCPU that runs always has. The processor has stopped writing to it,
            // or not begun.
            return Some(unsafe { part.read() });
        }
        // A VMCB is a page; this is all that can be told of an address.
        if vmcb == 0 || vmcb & PAGE_MASK != 0 {
            return None;
        }
        // SAFETY: By the requirement.
        unsafe { layout::read(part) }
    }
}

/// An event of a vCPU: the fields that all events share, and its own.
macro_rules! event_of {
    ($vcpu:ident, $Event:ident { $($own:tt)* }) => {{
        let $crate::vcpu::Registers { rax, rbx, rcx, rdx } = $vcpu.registers();
        $Event {
            vcpu_id: $vcpu.id(),
            is_nested: $vcpu.is_nested().into(),
            is_protected: $vcpu.is_protected().into(),
            rax,
            rbx,
            rcx,
            rdx,
            $($own)*
        }
    }};
}
pub(crate) use event_of;

/// What a VMCB says of an exit: a part of `struct vmcb_control_area`.
#[repr(C)]
struct VmcbExit {
    code: u64,
    info1: u64,
    info2: u64,
    intr_info: u32,
    error_code: u32,
}

/// The event that a VMCB injects: another part.
#[repr(C)]
struct VmcbEvent {
    info: u32,
    error_code: u32,
}

/// Whether the kernel's structure has a member where ours has it.
macro_rules! same_place {
    ($Part:ident starts at $first:ident: $($own:ident is $member:ident),*) => {
        $(const _: () = assert!(
            offset_of!(bindings::vmcb_control_area, $first) + offset_of!($Part, $own)
                == offset_of!(bindings::vmcb_control_area, $member)
        );)*
    };
}

same_place!(VmcbExit starts at exit_code:
    info1 is exit_info_1, info2 is exit_info_2, intr_info is exit_int_info, error_code is exit_int_info_err);
same_place!(VmcbEvent starts at event_inj: error_code is event_inj_err);

/// Whether SVM's event information says that there is an error code.
#[inline(always)]
const fn has_error_code(intr_info: u32) -> bool {
    const VALID: u32 = 1 << 31;
    const VALID_ERROR: u32 = 1 << 11;

    intr_info & (VALID | VALID_ERROR) == VALID | VALID_ERROR
}
