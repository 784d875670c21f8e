/* SPDX-License-Identifier: GPL-2.0-only */
/* What trace.bpf.c keeps and user space reads; libbpf-cargo gives the structures to Rust. */
#ifndef EXITREGS_TRACE_H
#define EXITREGS_TRACE_H

#include "events.h"

enum {
	TRACE_VCPU_BITS = 13,
	TRACE_OPEN = 5,		/* L1's exit in slot 0, and those of four L2s */
};

#define TRACE_NONE (~0U)

struct trace_vcpu {
	__u64 owner;		/* the vCPU's address; 0: a free place */
	__u32 last;		/* slot of the exit after which the vCPU has not been entered yet */
	__u32 reserved;
	struct exit_record open[TRACE_OPEN];	/* exit_time is 0 in a slot that is not open */
};

struct trace_counters {
	__u64 lost;		/* the ring buffer, or the map of vCPUs, was full */
	__u64 undecided;	/* the filter read a field that was unknown */
};

#endif
