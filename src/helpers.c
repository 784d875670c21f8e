// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's macros that Rust cannot call, as functions. Those that probes call are notrace.
 */

#include <linux/perf_event.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/tracepoint.h>
#include <asm/cpufeature.h>

#include "helpers.h"

#ifndef CONFIG_FPROBE
#error "kvm_nested_page_fault needs a kernel with CONFIG_FPROBE=y"
#endif

/* this_cpu_ptr() is a macro around assembly that names a per-CPU variable of the kernel's own. */
notrace struct hlist_head *exitregs_perf_events(struct hlist_head __percpu *events)
{
	return this_cpu_ptr(events);
}

/* perf_fetch_caller_regs() is inline; the architecture's half of it is a macro that takes the frame it stands in. */
notrace void exitregs_perf_caller_regs(struct pt_regs *regs)
{
	perf_fetch_caller_regs(regs);
}

/* current is a macro around a per-CPU variable. */
notrace struct task_struct *exitregs_current(void)
{
	return current;
}

/* preempt_disable_notrace() and its counterpart are macros; the count they change is a per-CPU variable. */
notrace void exitregs_preempt_disable(void)
{
	preempt_disable_notrace();
}

notrace void exitregs_preempt_enable(void)
{
	preempt_enable_notrace();
}

/* tracepoint_synchronize_unregister() is inline; what it waits for differs between kernels. */
void exitregs_synchronize_tracepoints(void)
{
	tracepoint_synchronize_unregister();
}

/* boot_cpu_has() is a macro, and the layout of what it looks at differs between kernels. */
bool exitregs_has_vmx(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

bool exitregs_has_svm(void)
{
	return boot_cpu_has(X86_FEATURE_SVM);
}
