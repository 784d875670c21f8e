/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an exit was about (its MSR, hypercall, CPUID leaf or port), as the 64-bit key that
 * common/src/detail.rs describes and decodes.
 */
#ifndef EXITREGS_DETAIL_H
#define EXITREGS_DETAIL_H

#include "vcpu.h"

/* What L2's hypercalls are, if the user said. */
const volatile __u8 hypercall_abi_l2;

enum {
	EFER_LMA = 1 << 10,
	KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL = 1 << 1,
};

/* As kvm_emulate_hypercall() decides, arch/x86/kvm/x86.c. */
static __always_inline __u8 hypercall_abi(struct kvm_vcpu *vcpu, bool nested, const bool direct)
{
	struct kvm *kvm;
	struct kvm___xen *newer;
	__u32 xen = 0;

	if (nested)
		return hypercall_abi_l2;
	kvm = vcpu_read(vcpu, kvm, direct);
	newer = (void *)kvm;
	if (bpf_core_field_exists(kvm->arch.xen_hvm_config))
		xen = BPF_CORE_READ(kvm, arch.xen_hvm_config.flags);
	else if (bpf_core_field_exists(newer->arch.xen.hvm_config))
		xen = BPF_CORE_READ(newer, arch.xen.hvm_config.flags);
	if (xen & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL)
		return HYPERCALL_ABI_XEN;
	if (bpf_core_field_exists(kvm->arch.hyperv) && bpf_core_field_exists(vcpu->arch.hyperv_enabled) &&
	    vcpu_read(vcpu, arch.hyperv_enabled, direct) && BPF_CORE_READ(kvm, arch.hyperv.hv_guest_os_id))
		return HYPERCALL_ABI_HYPERV;
	return HYPERCALL_ABI_KVM;
}

static __always_inline __u64 cpuid_detail(__u32 leaf, __u32 subleaf)
{
	bool significant = leaf < 64 ? CPUID_SUBLEAF_BASIC >> leaf & 1 :
			   leaf >= 0x80000000 && leaf < 0x80000040 ?
				CPUID_SUBLEAF_EXTENDED >> (leaf & 63) & 1 : 0;

	return leaf | (significant ? (__u64)subleaf << 32 : 0);
}

/* `info1` as far as it is known yet: on VMX vmx_lazy_detail() completes the key at the entry. */
static __always_inline __u64 exit_detail(struct kvm_vcpu *vcpu, __u8 kind, __u8 abi, __u64 info1,
					 const bool direct)
{
	if (kind == DETAIL_NONE)
		return 0;
	if (kind == DETAIL_IO || kind == DETAIL_MSR_IMMEDIATE)
		return isa == ISA_SVM ? info1 : DETAIL_UNKNOWN;
	if (vcpu_is_protected(vcpu, direct))
		return DETAIL_UNKNOWN;

	switch (kind) {
	case DETAIL_MSR:
		return (__u32)vcpu_read(vcpu, arch.regs[REG_RCX], direct) |
		       (isa == ISA_SVM ? info1 << 32 : 0);
	case DETAIL_CPUID:
		return cpuid_detail(vcpu_read(vcpu, arch.regs[REG_RAX], direct),
				    vcpu_read(vcpu, arch.regs[REG_RCX], direct));
	default:
		if (abi != HYPERCALL_ABI_HYPERV)
			return vcpu_read(vcpu, arch.regs[REG_RAX], direct);
		/* The call code is in the low 16 bits of RCX, in 32-bit mode of EAX. */
		return (__u16)(vcpu_read(vcpu, arch.efer, direct) & EFER_LMA ?
			       vcpu_read(vcpu, arch.regs[REG_RCX], direct) :
			       vcpu_read(vcpu, arch.regs[REG_RAX], direct));
	}
}

static __always_inline __u64 vmx_lazy_detail(struct kvm_vcpu *vcpu, __u8 kind, __u64 detail, __u32 exit_reason,
					     bool was_nested, const bool direct)
{
	struct kvm_exit exit = { .exit_reason = exit_reason };
	__u32 unknown = UNKNOWN(kvm_exit, info1);

	if (isa == ISA_SVM || (kind != DETAIL_IO && kind != DETAIL_MSR_IMMEDIATE))
		return detail;
	vmx_known_at_entry(vcpu, &exit, &unknown, was_nested && !vcpu_is_nested(vcpu, direct));
	return unknown & UNKNOWN(kvm_exit, info1) ? DETAIL_UNKNOWN : exit.info1;
}

#endif
