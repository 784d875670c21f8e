// SPDX-License-Identifier: GPL-2.0-only
/*
 * exitregs stat: exits counted and timed in the kernel, by VM, vCPU if asked, level, exit reason
 * and detail. An exit's time is the time to the vCPU's next entry, to whichever level.
 */
#include "detail.h"
#include "filter.h"
#include "stat.h"
#include "vcpus.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct stat_vcpu vcpus[1 << STAT_VCPU_BITS];

/*
 * Counts by vCPU and key, open-addressed as the table of vCPUs is. Those of a vCPU are touched only
 * by the CPU that runs it, so that adding to them takes no atomic operation.
 */
struct stat_value values[1 << STAT_VALUE_BITS];

struct stat_counters counters;

/* Logarithmic with four buckets a power of two; the first and last take what is beyond. */
static __always_inline __u32 bucket(__u64 ns)
{
	__u32 exponent = 0;
	__u64 value = ns >> STAT_FIRST_SHIFT;

	if (!value)
		return 0;
	if (value >> STAT_OCTAVES)
		return STAT_BUCKETS - 1;
	if (value >> 16) {
		value >>= 16;
		exponent += 16;
	}
	if (value >> 8) {
		value >>= 8;
		exponent += 8;
	}
	if (value >> 4) {
		value >>= 4;
		exponent += 4;
	}
	if (value >> 2) {
		value >>= 2;
		exponent += 2;
	}
	if (value >> 1)
		exponent += 1;
	return 1 + exponent * 4 + ((ns >> (exponent + STAT_FIRST_SHIFT - 2)) & 3);
}

static __always_inline bool same_key(const struct stat_key *a, const struct stat_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	_Static_assert(sizeof(*a) == 3 * sizeof(*x), "a key is three words");
	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline struct stat_value *stat_value(const struct stat_vcpu *state)
{
	const __u64 *words = (const __u64 *)&state->key;
	__u64 hash = (words[0] * 0x9e3779b97f4a7c15ULL + words[1]) * 0xff51afd7ed558ccdULL + words[2];
	__u32 home = hash * 0xc4ceb9fe1a85ec53ULL >> (64 - STAT_VALUE_BITS);

	for (__u32 probe = 0; probe < STAT_PROBES; probe++) {
		struct stat_value *value = &values[(home + probe) & ((1U << STAT_VALUE_BITS) - 1)];

		if (value->owner == state->owner) {
			if (same_key(&value->key, &state->key))
				return value;
		} else if (!value->owner && !__sync_val_compare_and_swap(&value->owner, 0, state->owner)) {
			value->key = state->key;
			return value;
		}
	}
	__sync_fetch_and_add(&counters.uncounted, 1);
	return NULL;
}

static __always_inline int on_exit(struct kvm_vcpu *vcpu, const bool direct)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct stat_vcpu *state;
	bool nested;

	/* Newer verifiers want to see that a tracepoint's argument is not NULL. */
	if (!vcpu || !vm_selected(tgid))
		return 0;
	state = vcpu_state(vcpus, STAT_VCPU_BITS, vcpu, tgid, true, direct);
	if (!state) {
		__sync_fetch_and_add(&counters.uncounted, 1);
		return 0;
	}
	if (state->key.tgid != tgid) {
		struct task_struct *task = (void *)bpf_get_current_task();

		BPF_CORE_READ_STR_INTO(&state->command, task, group_leader, comm);
	}
	if (state->exit_time) {
		/* The entry never came to pass: count the exit it should have ended, without a time. */
		struct stat_value *value = stat_value(state);

		if (value)
			value->unended++;
		state->exit_time = 0;
	}

	nested = vcpu_is_nested(vcpu, direct);
	state->key.tgid = tgid;
	state->key.vcpu_id = vcpu_read(vcpu, vcpu_id, direct);
	state->key.is_nested = nested;
	state->key.hypercall_abi = 0;
	state->key.reserved = 0;

	if (filter_operations) {
		state->unknown = read_exit(vcpu, &state->exit, nested, direct);
		state->key.exit_reason = state->exit.exit_reason;
		if (!filter_at_entry && !exit_selected(&state->exit))
			return 0;
		state->kind = detail_kind(state->key.exit_reason);
		if (state->kind == DETAIL_HYPERCALL)
			state->key.hypercall_abi = hypercall_abi(vcpu, nested, direct);
		state->key.detail = exit_detail(vcpu, state->kind, state->key.hypercall_abi,
						state->exit.info1, direct);
	} else {
		__u64 info1 = 0;

		if (isa == ISA_SVM) {
			struct vmcb_exit exit = {};

			svm_exit(vcpu, &exit);
			state->key.exit_reason = exit.exit_code;
			info1 = exit.exit_info_1;
		} else {
			state->key.exit_reason = vmx_exit_reason(vcpu);
		}
		state->kind = detail_kind(state->key.exit_reason);
		if (state->kind == DETAIL_HYPERCALL)
			state->key.hypercall_abi = hypercall_abi(vcpu, nested, direct);
		state->key.detail = exit_detail(vcpu, state->kind, state->key.hypercall_abi, info1, direct);
	}
	state->exit_time = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_entry(struct kvm_vcpu *vcpu, const bool direct)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct stat_vcpu *state;
	struct stat_value *value;
	__u64 time;
	__u32 index;

	if (!vcpu)
		return 0;
	state = vcpu_state(vcpus, STAT_VCPU_BITS, vcpu, tgid, false, direct);
	if (!state || !state->exit_time)
		return 0;
	time = bpf_ktime_get_ns() - state->exit_time;
	state->exit_time = 0;

	if (filter_at_entry) {
		vmx_known_at_entry(vcpu, &state->exit, &state->unknown,
				   state->key.is_nested && !vcpu_is_nested(vcpu, direct));
		if (state->unknown & filter_at_entry)
			__sync_fetch_and_add(&counters.undecided, 1);
		if (!exit_selected(&state->exit))
			return 0;
	}
	state->key.detail = vmx_lazy_detail(vcpu, state->kind, state->key.detail, state->key.exit_reason,
					    state->key.is_nested, direct);

	value = stat_value(state);
	if (!value)
		return 0;
	value->count++;
	value->total += time;
	if (time > value->max)
		value->max = time;
	if (time < value->min || value->count == 1)
		value->min = time;
	index = bucket(time);
	if (index < STAT_BUCKETS)
		value->buckets[index]++;
	return 0;
}

#include "programs.h"
