/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's macros that Rust cannot call, as functions. */

struct hlist_head;
struct pt_regs;
struct task_struct;

struct hlist_head *exitregs_perf_events(struct hlist_head __percpu *events);
void exitregs_perf_caller_regs(struct pt_regs *regs);
struct task_struct *exitregs_current(void);
void exitregs_preempt_disable(void);
void exitregs_preempt_enable(void);
void exitregs_synchronize_tracepoints(void);
bool exitregs_has_vmx(void);
bool exitregs_has_svm(void);
