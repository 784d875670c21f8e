/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a vCPU at kvm_exit and kvm_entry. Every reader takes `direct`, a constant: true in a
 * program that the kernel gave a typed vCPU pointer (tp_btf), where members are loaded directly;
 * false in one that got a mere number (raw_tp), where each read goes through a helper.
 */
#ifndef EXITREGS_VCPU_H
#define EXITREGS_VCPU_H

#include "kernel.h"
#include "events.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Set by the loader: constants to the verifier, which drops the branches not taken. */
const volatile __u32 isa;
/* Which argument of kvm_exit is the vCPU: 1 before Linux 5.17 and backports, asked from BTF. */
const volatile __u32 exit_vcpu_argument;

/* Where the detail of an exit reason is; from common/. */
const volatile __u8 detail_kinds[DETAIL_REASONS];

static __always_inline __u8 detail_kind(__u32 exit_reason)
{
	return exit_reason < DETAIL_REASONS ? detail_kinds[exit_reason] : DETAIL_NONE;
}

#define vcpu_read(vcpu, member, direct) \
	((direct) ? (vcpu)->member : BPF_CORE_READ(vcpu, member))

/* A member of the structure that begins with the vCPU: the verifier knows no such structure. */
#define container_read(vcpu, type, member) ({					\
	__typeof__(((struct type *)0)->member) value = 0;			\
	bpf_core_read(&value, sizeof(value), &((struct type *)(vcpu))->member);	\
	value;									\
})

static __always_inline struct kvm_vcpu *exit_vcpu(__u64 *ctx)
{
	return (struct kvm_vcpu *)(exit_vcpu_argument ? ctx[1] : ctx[0]);
}

static __always_inline bool vcpu_is_nested(struct kvm_vcpu *vcpu, const bool direct)
{
	return vcpu_read(vcpu, stat.guest_mode, direct) != 0;
}

static __always_inline bool vcpu_is_protected(struct kvm_vcpu *vcpu, const bool direct)
{
	if (!bpf_core_field_exists(vcpu->arch.guest_state_protected))
		return false;
	return vcpu_read(vcpu, arch.guest_state_protected, direct);
}

/* RAX to RDX into an event's COMMON registers; a protected guest's hold something older: 0. */
#define read_registers(event, vcpu, direct) do {					\
	if (vcpu_is_protected(vcpu, direct)) {						\
		(event)->is_protected = 1;						\
		(event)->rax = (event)->rbx = (event)->rcx = (event)->rdx = 0;		\
	} else if (direct) {								\
		(event)->is_protected = 0;						\
		(event)->rax = (vcpu)->arch.regs[REG_RAX];				\
		(event)->rbx = (vcpu)->arch.regs[REG_RBX];				\
		(event)->rcx = (vcpu)->arch.regs[REG_RCX];				\
		(event)->rdx = (vcpu)->arch.regs[REG_RDX];				\
	} else {									\
		__u64 regs[REG_RBX + 1] = {};						\
											\
		bpf_core_read(regs, sizeof(regs), &(vcpu)->arch.regs);			\
		(event)->is_protected = 0;						\
		(event)->rax = regs[REG_RAX];						\
		(event)->rbx = regs[REG_RBX];						\
		(event)->rcx = regs[REG_RCX];						\
		(event)->rdx = regs[REG_RDX];						\
	}										\
} while (0)

static __always_inline __u64 vcpu_rip(struct kvm_vcpu *vcpu, const bool direct)
{
	struct kvm_vcpu___rip *newer = (void *)vcpu;

	if (bpf_core_field_exists(newer->arch.rip)) {
		__u64 rip = 0;

		bpf_core_read(&rip, sizeof(rip), &newer->arch.rip);
		return rip;
	}
	return vcpu_read(vcpu, arch.regs[REG_RIP], direct);
}

/* VMX: bits of regs_avail or regs_dirty, by enum kvm_reg. All of them are in the low half of a bitmap's one long. */
#define vmx_lazy_bits(vcpu, member) ({							\
	struct kvm_vcpu___bitmaps *newer = (void *)(vcpu);				\
	__u32 bits = 0;									\
											\
	if (bpf_core_field_exists(newer->arch.member))					\
		bpf_core_read(&bits, sizeof(bits), &newer->arch.member);		\
	else										\
		bpf_core_read(&bits, sizeof(bits), &(vcpu)->arch.member);		\
	bits;										\
})

#define vmx_lazy_bit(register) \
	(1U << (bpf_core_enum_value_exists(enum kvm_reg, VCPU_EXREG_##register) ?	\
		bpf_core_enum_value(enum kvm_reg, VCPU_EXREG_##register) :		\
		bpf_core_enum_value(enum kvm_reg___renamed, VCPU_REG_##register)))

static __always_inline __u32 vmx_exit_reason(struct kvm_vcpu *vcpu)
{
	struct vcpu_vmx___vt *newer = (void *)vcpu;

	if (bpf_core_field_exists(newer->vt.exit_reason))
		return container_read(vcpu, vcpu_vmx___vt, vt.exit_reason.full);
	return container_read(vcpu, vcpu_vmx, exit_reason.full);
}

/* Returns the VMCB. */
static __always_inline void *svm_exit(struct kvm_vcpu *vcpu, struct vmcb_exit *exit)
{
	void *vmcb = container_read(vcpu, vcpu_svm, vmcb);

	bpf_probe_read_kernel(exit, sizeof(*exit), vmcb + VMCB_EXIT);
	return vmcb;
}

/* GPA of the vmcb12 or vmcs12 that a nested vCPU runs. */
static __always_inline __u64 nested_state(struct kvm_vcpu *vcpu)
{
	if (isa == ISA_SVM)
		return container_read(vcpu, vcpu_svm, nested.vmcb12_gpa);
	return container_read(vcpu, vcpu_vmx, nested.current_vmptr);
}

#define UNKNOWN(event, field) (1U << event##_##field)

/*
 * VMX reads some exit information lazily: at the exit nothing of it is cached yet; at the entry
 * that follows, what KVM's handler needed is, and still of this exit: the next one has not come.
 */
static __always_inline void vmx_lazy_exit(struct kvm_vcpu *vcpu, struct kvm_exit *exit, __u32 *unknown)
{
	struct vcpu_vmx___vt *newer = (void *)vcpu;
	__u32 available = vmx_lazy_bits(vcpu, regs_avail);
	bool vt = bpf_core_field_exists(newer->vt.exit_reason);

	if (available & vmx_lazy_bit(EXIT_INFO_1)) {
		exit->info1 = vt ? container_read(vcpu, vcpu_vmx___vt, vt.exit_qualification)
				 : container_read(vcpu, vcpu_vmx, exit_qualification);
		*unknown &= ~UNKNOWN(kvm_exit, info1);
	}
	if (available & vmx_lazy_bit(EXIT_INFO_2)) {
		exit->intr_info = vt ? container_read(vcpu, vcpu_vmx___vt, vt.exit_intr_info)
				     : container_read(vcpu, vcpu_vmx, exit_intr_info);
		*unknown &= ~UNKNOWN(kvm_exit, intr_info);
	}
}

/* Of VMX, bit 11 of an interruption information: there is an error code. */
#define INTR_INFO_ERROR_CODE (1U << 11)
#define INTR_INFO_VALID (1U << 31)

static __always_inline bool has_error_code(__u32 intr_info)
{
	return (intr_info & (INTR_INFO_VALID | INTR_INFO_ERROR_CODE)) == (INTR_INFO_VALID | INTR_INFO_ERROR_CODE);
}

#define vmcs12_read(vcpu, member) ({							\
	struct vmcs12 *vmcs12 = container_read(vcpu, vcpu_vmx, nested.cached_vmcs12);	\
	BPF_CORE_READ(vmcs12, member);							\
})

enum {
	VMX_EXCEPTION_NMI = 0,
	VMX_EXTERNAL_INTERRUPT = 1,
	VMX_EPT_VIOLATION = 48,
	VMX_EPT_MISCONFIG = 49,
};

/*
 * An L2 exit that L0 reflects to L1: vmcs12 holds it for L1 to read. To be called at L1's entry after it. An exit with
 * another reason has been forced: then vmcs12 says nothing of this one.
 */
static __always_inline void vmx_reflected_exit(struct kvm_vcpu *vcpu, struct kvm_exit *exit, __u32 *unknown)
{
	struct vcpu_vmx___vt *newer = (void *)vcpu;
	bool vt = bpf_core_field_exists(newer->vt.exit_reason);
	__u32 intr_info;

	if (vmcs12_read(vcpu, vm_exit_reason) != exit->exit_reason)
		return;
	intr_info = vmcs12_read(vcpu, vm_exit_intr_info);
	/* L0 has handled an exception of L2, and an NMI for L1 came then: but for the event, that is the same reason. */
	if (exit->exit_reason == VMX_EXCEPTION_NMI &&
	    intr_info != (vt ? container_read(vcpu, vcpu_vmx___vt, vt.exit_intr_info)
			     : container_read(vcpu, vcpu_vmx, exit_intr_info)))
		return;
	exit->guest_rip = vmcs12_read(vcpu, guest_rip);
	*unknown &= ~UNKNOWN(kvm_exit, guest_rip);
	switch (exit->exit_reason) {
	case VMX_EXTERNAL_INTERRUPT:	/* it may be another one, for L1 */
	case VMX_EPT_MISCONFIG:
		return;
	case VMX_EPT_VIOLATION:
		/* What L1 gets is made for its own tables. KVM has read the processor's, at first. */
		exit->info1 = vt ? container_read(vcpu, vcpu_vmx___vt, vt.exit_qualification)
				 : container_read(vcpu, vcpu_vmx, exit_qualification);
		*unknown &= ~UNKNOWN(kvm_exit, info1);
		return;
	}
	exit->info1 = vmcs12_read(vcpu, exit_qualification);
	exit->intr_info = intr_info;
	exit->error_code = has_error_code(intr_info) ? vmcs12_read(vcpu, vm_exit_intr_error_code) : 0;
	*unknown &= ~(UNKNOWN(kvm_exit, info1) | UNKNOWN(kvm_exit, intr_info) | UNKNOWN(kvm_exit, error_code));
}

/* `to_l1`: an L2 exit, and the entry is L1's. */
static __always_inline void vmx_known_at_entry(struct kvm_vcpu *vcpu, struct kvm_exit *exit, __u32 *unknown, bool to_l1)
{
	if (to_l1)
		vmx_reflected_exit(vcpu, exit, unknown);
	else
		vmx_lazy_exit(vcpu, exit, unknown);
}

/*
 * The exit reason that L1 is told when L0 leaves L2 for it. To be called at L1's entry after that: on SVM it is left in
 * vmcb02, from which vmcb12 got it.
 */
static __always_inline __u32 told_exit_reason(struct kvm_vcpu *vcpu)
{
	struct vmcb_exit vmcb_exit = {};

	if (isa == ISA_VMX)
		return vmcs12_read(vcpu, vm_exit_reason);
	bpf_probe_read_kernel(&vmcb_exit, sizeof(vmcb_exit),
			      container_read(vcpu, vcpu_svm, nested.vmcb02.ptr) + VMCB_EXIT);
	return vmcb_exit.exit_code;
}

/* All of kvm_exit that is known at the exit; returns which fields are not. */
static __always_inline __u32 read_exit(struct kvm_vcpu *vcpu, struct kvm_exit *exit, bool nested,
				       const bool direct)
{
	exit->isa = isa;
	exit->vcpu_id = vcpu_read(vcpu, vcpu_id, direct);
	exit->requests = vcpu_read(vcpu, requests, direct);
	exit->is_nested = nested;
	read_registers(exit, vcpu, direct);

	if (isa == ISA_SVM) {
		struct vmcb_exit vmcb_exit = {};

		void *vmcb = svm_exit(vcpu, &vmcb_exit);

		exit->exit_reason = vmcb_exit.exit_code;
		exit->info1 = vmcb_exit.exit_info_1;
		exit->info2 = vmcb_exit.exit_info_2;
		exit->intr_info = vmcb_exit.exit_int_info;
		exit->error_code = vmcb_exit.exit_int_info_err;
		exit->guest_rip = vcpu_rip(vcpu, direct);
		/*
		 * Where kvm_exit comes after the fast path (it moved before it between Linux 6.1 and 6.12), RIP
		 * may have left the WRMSR already; what the hardware saved has not.
		 */
		if (detail_kind(exit->exit_reason) == DETAIL_MSR && exit->info1 && !exit->is_protected)
			bpf_probe_read_kernel(&exit->guest_rip, sizeof(exit->guest_rip), vmcb + VMCB_RIP);
		return exit->is_protected ? UNKNOWN(kvm_exit, guest_rip) : 0;
	}

	exit->exit_reason = vmx_exit_reason(vcpu);
	exit->info1 = 0;
	exit->info2 = container_read(vcpu, vcpu_vmx, idt_vectoring_info);
	exit->intr_info = 0;
	exit->error_code = 0;
	exit->guest_rip = 0;
	return UNKNOWN(kvm_exit, info1) | UNKNOWN(kvm_exit, intr_info) |
	       UNKNOWN(kvm_exit, error_code) | UNKNOWN(kvm_exit, guest_rip) |
	       (exit->is_protected ? UNKNOWN(kvm_exit, info2) : 0);
}

#endif
