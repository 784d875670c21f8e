/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel types that the programs read, each with the members they read and no others: CO-RE
 * finds the members' real offsets in the running kernel's BTF when a program is loaded. What
 * follows ___ in a type's name is not compared with the kernel's: such a type holds the members
 * of other kernel versions.
 */
#ifndef EXITREGS_KERNEL_H
#define EXITREGS_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* arch/x86/include/asm/kvm_host.h */
struct kvm_queued_exception {
	bool injected;
	__u8 vector;
};

struct kvm_vcpu_arch {
	unsigned long regs[17];		/* by enum kvm_reg; RIP is number 16 */
	__u32 regs_avail;
	__u32 regs_dirty;
	__u64 efer;
	bool hyperv_enabled;
	bool guest_state_protected;
	struct kvm_queued_exception exception;
};

struct kvm_vcpu_arch___rip {		/* RIP has left regs[], which made way for more GPRs */
	unsigned long rip;
};

struct kvm_vcpu_arch___bitmaps {	/* before, each was a __u32 */
	unsigned long regs_avail[1];
	unsigned long regs_dirty[1];
};

struct kvm_hv {
	__u64 hv_guest_os_id;
};

struct kvm_xen_hvm_config {
	__u32 flags;
};

struct kvm_arch {
	struct kvm_hv hyperv;
	struct kvm_xen_hvm_config xen_hvm_config;
};

struct kvm_xen {
	struct kvm_xen_hvm_config hvm_config;
};

struct kvm_arch___xen {			/* its place since the Xen state got a structure */
	struct kvm_xen xen;
};

enum kvm_reg {
	VCPU_EXREG_EXIT_INFO_1 = 1,
	VCPU_EXREG_EXIT_INFO_2,
};

enum kvm_reg___renamed {
	VCPU_REG_EXIT_INFO_1 = 1,
	VCPU_REG_EXIT_INFO_2,
};

/* include/linux/kvm_host.h */
struct kvm {
	struct kvm_arch arch;
};

struct kvm___xen {
	struct kvm_arch___xen arch;
};

struct kvm_vcpu_stat {
	__u64 guest_mode;
};

struct kvm_vcpu {
	struct kvm *kvm;
	int vcpu_id;
	__u64 requests;
	struct kvm_vcpu_arch arch;
	struct kvm_vcpu_stat stat;
};

struct kvm_vcpu___rip {
	struct kvm_vcpu_arch___rip arch;
};

struct kvm_vcpu___bitmaps {
	struct kvm_vcpu_arch___bitmaps arch;
};

/* arch/x86/kvm/svm/svm.h: begins with its struct kvm_vcpu */
struct kvm_vmcb_info {
	void *ptr;
};

struct svm_nested_state {
	struct kvm_vmcb_info vmcb02;
	__u64 vmcb12_gpa;
};

struct vcpu_svm {
	void *vmcb;
	struct svm_nested_state nested;
};

/* arch/x86/kvm/vmx/vmx.h: begins with its struct kvm_vcpu */
union vmx_exit_reason {
	__u32 full;
};

struct nested_vmx {
	__u64 current_vmptr;
	struct vmcs12 *cached_vmcs12;
};

/* arch/x86/kvm/vmx/vmcs12.h: what L1 reads and writes by VMREAD and VMWRITE */
struct vmcs12 {
	__u64 exit_qualification;
	__u64 guest_rip;
	__u32 vm_exit_reason;
	__u32 vm_exit_intr_info;
	__u32 vm_exit_intr_error_code;
	__u32 vm_entry_intr_info_field;
	__u32 vm_entry_exception_error_code;
};

struct vcpu_vmx {
	union vmx_exit_reason exit_reason;
	unsigned long exit_qualification;
	__u32 exit_intr_info;
	__u32 idt_vectoring_info;
	struct nested_vmx nested;
};

/* arch/x86/kvm/vmx/common.h: what VMX and TDX share */
struct vcpu_vt {
	union vmx_exit_reason exit_reason;
	unsigned long exit_qualification;
	__u32 exit_intr_info;
};

struct vcpu_vmx___vt {
	struct vcpu_vt vt;
};

/* include/linux/sched.h */
struct task_struct {
	struct task_struct *group_leader;
	char comm[16];
};

#pragma clang attribute pop

/* The GPRs' places in regs[] are their ModRM numbers. */
enum {
	REG_RAX = 0,
	REG_RCX = 1,
	REG_RDX = 2,
	REG_RBX = 3,
	REG_RIP = 16,
};

/* Part of the VMCB, whose layout the hardware defines (AMD APM Volume 2, Appendix B). */
struct vmcb_exit {
	__u64 exit_code;
	__u64 exit_info_1;
	__u64 exit_info_2;
	__u32 exit_int_info;
	__u32 exit_int_info_err;
};

enum {
	VMCB_EXIT = 0x70,
	VMCB_EVENT_INJ = 0xa8,
	VMCB_RIP = 0x400 + 0x178,
};

#endif
