/* SPDX-License-Identifier: GPL-2.0-only */
/* What stat.bpf.c keeps and user space reads; libbpf-cargo gives the structures to Rust. */
#ifndef EXITREGS_STAT_H
#define EXITREGS_STAT_H

#include "events.h"

enum {
	STAT_VCPU_BITS = 14,
	STAT_VALUE_BITS = 15,
	STAT_PROBES = 64,
	STAT_FIRST_SHIFT = 6,	/* the first bucket ends at 64 ns */
	STAT_OCTAVES = 26,	/* the last one begins at 4.3 s */
	STAT_BUCKETS = 1 + 4 * STAT_OCTAVES + 1,
};

/* What is counted apart; compared as words, so `reserved` is 0. */
struct stat_key {
	__u64 detail;
	__u32 tgid;
	__u32 vcpu_id;
	__u32 exit_reason;
	__u8 is_nested;
	__u8 hypercall_abi;
	__u16 reserved;
};

/* The exit that a vCPU has not come back from; `exit_time` is 0 while it is in the guest. */
struct stat_vcpu {
	__u64 owner;		/* the vCPU's address; 0: a free place */
	__u64 exit_time;
	__u8 command[16];	/* of the VMM, which may be gone when its name is wanted */
	struct stat_key key;
	__u32 unknown;
	__u8 kind;
	__u8 reserved[3];
	struct kvm_exit exit;
};

/* Exits of one vCPU with one key. */
struct stat_value {
	__u64 owner;		/* the vCPU's address; 0: a free place */
	struct stat_key key;
	__u64 count;
	__u64 unended;		/* exits after which the vCPU was not entered; not in count */
	__u64 total;		/* nanoseconds, as min and max */
	__u64 min;
	__u64 max;
	__u64 buckets[STAT_BUCKETS];
};

struct stat_counters {
	__u64 uncounted;	/* a table was full */
	__u64 undecided;	/* the filter read a field that was unknown */
};

#endif
