/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module needs of the kernel's headers: bindgen makes bindings_generated.rs of it. */

#include <linux/fprobe.h>
#include <linux/kvm_host.h>
#include <linux/moduleparam.h>
#include <linux/trace_events.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <asm/hypervisor.h>
#include <asm/processor.h>
#include <asm/svm.h>

#ifdef EXITREGS_PRIVATE
#include "kvm_emulate.h"
#include "svm/svm.h"

enum exitregs_layout {
	EXITREGS_VMCB = offsetof(struct vcpu_svm, vmcb),
	EXITREGS_FAULT_ADDRESS = EXITREGS_FROM_HARDWARE ? offsetof(struct x86_exception, address) : 0,
};
#else
enum exitregs_layout {
	EXITREGS_VMCB = 0,
	EXITREGS_FAULT_ADDRESS = 0,
};
#endif

extern struct tracepoint __tracepoint_kvm_exit;
extern struct tracepoint __tracepoint_kvm_entry;
extern struct tracepoint __tracepoint_kvm_nested_vmexit;
extern struct tracepoint __tracepoint_kvm_nested_vmexit_inject;

#include "helpers.h"
