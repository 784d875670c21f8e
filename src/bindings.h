/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module needs of the kernel's headers: bindgen makes bindings_generated.rs of it. */

#include <linux/kvm_host.h>
#include <linux/moduleparam.h>
#include <linux/trace_events.h>
#include <linux/uaccess.h>
#include <asm/hypervisor.h>
#include <asm/processor.h>
#include <asm/svm.h>

#ifdef EXITREGS_SVM_H
#include "svm/svm.h"

enum exitregs_layout {
	EXITREGS_VCPU_SVM_VMCB = offsetof(struct vcpu_svm, vmcb),
};
#else
enum exitregs_layout {
	EXITREGS_VCPU_SVM_VMCB = 0,
};
#endif

extern struct tracepoint __tracepoint_kvm_exit;
extern struct tracepoint __tracepoint_kvm_entry;

#include "helpers.h"
