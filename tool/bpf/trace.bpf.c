// SPDX-License-Identifier: GPL-2.0-only
/*
 * exitregs trace: one record an exit, sent at the entry that ends it, with both ends' registers.
 *
 * An L1 exit ends at the vCPU's next entry. An L2 exit ends when the same L2 (nested_state) is
 * entered again: L0 may have given it to L1, which may run other L2s on this vCPU first, so that
 * several L2 exits can be open at once.
 */
#include "detail.h"
#include "filter.h"
#include "trace.h"
#include "vcpus.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct trace_vcpu vcpus[1 << TRACE_VCPU_BITS];

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);	/* the loader sets it */
} records SEC(".maps");

struct trace_counters counters;

static __always_inline void send(const struct exit_record *from)
{
	struct exit_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record) {
		__sync_fetch_and_add(&counters.lost, 1);
		return;
	}
	*record = *from;
	/* A wake-up costs more than all the rest; the reader polls. */
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/* An exit that no entry ends: sent without an entry. */
static __always_inline void send_unended(struct exit_record *record)
{
	record->entry_time = 0;
	__builtin_memset(&record->entry, 0, sizeof(record->entry));
	send(record);
}

/* The slot of an L2's open exit, or of the L2 that has been away for longest. */
static __always_inline __u32 l2_slot(const struct trace_vcpu *state, __u64 nested_state)
{
	__u32 oldest = 1;

	for (__u32 i = 1; i < TRACE_OPEN; i++) {
		if (state->open[i].nested_state == nested_state)
			return i;
		if (state->open[i].exit_time < state->open[oldest].exit_time)
			oldest = i;
	}
	return oldest;
}

static __always_inline int on_exit(struct kvm_vcpu *vcpu, const bool direct)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct trace_vcpu *state;
	struct exit_record *record;
	__u32 slot = 0;
	bool nested;

	/* Newer verifiers want to see that a tracepoint's argument is not NULL. */
	if (!vcpu || !vm_selected(tgid))
		return 0;
	state = vcpu_state(vcpus, TRACE_VCPU_BITS, vcpu, tgid, true, direct);
	if (!state) {
		__sync_fetch_and_add(&counters.lost, 1);
		return 0;
	}

	nested = vcpu_is_nested(vcpu, direct);
	record = &state->open[0];
	if (nested) {
		__u64 l2 = nested_state(vcpu);

		slot = l2_slot(state, l2);
		if (slot >= TRACE_OPEN)
			return 0;
		record = &state->open[slot];
		record->nested_state = l2;
	}
	if (record->exit_time)
		send_unended(record);
	state->last = TRACE_NONE;
	record->exit_time = 0;

	record->exit_unknown = read_exit(vcpu, &record->exit, nested, direct);
	if (!filter_at_entry && !exit_selected(&record->exit))
		return 0;
	record->hypercall_abi = detail_kind(record->exit.exit_reason) == DETAIL_HYPERCALL ?
				hypercall_abi(vcpu, nested, direct) : 0;
	record->tgid = tgid;
	record->cause = 0;
	record->next_entry_time = 0;
	state->last = slot;
	record->exit_time = bpf_ktime_get_ns();
	return 0;
}

/* `by_l1`: L1 has run since the exit, and now runs this L2 again. */
static __always_inline void read_entry(struct kvm_vcpu *vcpu, struct exit_record *record, bool nested, bool by_l1,
				       const bool direct)
{
	struct kvm_entry *entry = &record->entry;
	__u32 unknown = UNKNOWN(kvm_entry, immediate_exit) | UNKNOWN(kvm_entry, intr_info) |
			UNKNOWN(kvm_entry, error_code);

	entry->vcpu_id = record->exit.vcpu_id;
	entry->immediate_exit = 0;
	entry->intr_info = 0;
	entry->error_code = 0;
	entry->is_nested = nested;
	read_registers(entry, vcpu, direct);

	entry->rip = vcpu_rip(vcpu, direct);
	if (isa == ISA_SVM) {
		record->rip_written = 0;
		/* Only an instruction that has not been passed can have ended in an exception. */
		if (entry->rip == record->exit.guest_rip && !entry->is_protected) {
			void *vmcb = container_read(vcpu, vcpu_svm, vmcb);
			__u64 event_inj = 0;

			bpf_probe_read_kernel(&event_inj, sizeof(event_inj), vmcb + VMCB_EVENT_INJ);
			entry->intr_info = event_inj;
			entry->error_code = event_inj >> 32;
			unknown &= ~(UNKNOWN(kvm_entry, intr_info) | UNKNOWN(kvm_entry, error_code));
		}
	} else {
		record->rip_written = vmx_lazy_bits(vcpu, regs_dirty) >> REG_RIP & 1;
		if (!(vmx_lazy_bits(vcpu, regs_avail) >> REG_RIP & 1))
			unknown |= UNKNOWN(kvm_entry, rip);
		if (by_l1) {
			entry->intr_info = vmcs12_read(vcpu, vm_entry_intr_info_field);
			if (has_error_code(entry->intr_info))
				entry->error_code = vmcs12_read(vcpu, vm_entry_exception_error_code);
			unknown &= ~(UNKNOWN(kvm_entry, intr_info) | UNKNOWN(kvm_entry, error_code));
		} else if (vcpu_read(vcpu, arch.exception.injected, direct)) {
			entry->intr_info = INTR_INFO_EXCEPTION | vcpu_read(vcpu, arch.exception.vector, direct);
			unknown &= ~UNKNOWN(kvm_entry, intr_info);
		}
	}
	if (entry->is_protected)
		unknown |= UNKNOWN(kvm_entry, rip);
	record->entry_unknown = unknown;
}

/* `record` was open and its guest is entered: ends it. */
static __always_inline void end(struct kvm_vcpu *vcpu, struct exit_record *record, __u64 now, bool nested,
				bool by_l1, const bool direct)
{
	record->entry_time = now;
	read_entry(vcpu, record, nested, by_l1, direct);
	send(record);
	record->exit_time = 0;
}

static __always_inline int on_entry(struct kvm_vcpu *vcpu, const bool direct)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct trace_vcpu *state;
	struct exit_record *record;
	bool nested;
	__u32 last;

	if (!vcpu)
		return 0;
	state = vcpu_state(vcpus, TRACE_VCPU_BITS, vcpu, tgid, false, direct);
	if (!state)
		return 0;
	last = state->last;
	state->last = TRACE_NONE;
	nested = vcpu_is_nested(vcpu, direct);

	if (last < TRACE_OPEN) {
		record = &state->open[last];
		record->next_entry_time = now;
		if (isa == ISA_VMX)
			vmx_known_at_entry(vcpu, &record->exit, &record->exit_unknown, last > 0 && !nested);
		if (last > 0 && !nested)
			record->cause = told_exit_reason(vcpu) == record->exit.exit_reason ? CAUSE_REFLECTED :
											     CAUSE_FORCED;
		if (filter_at_entry) {
			if (record->exit_unknown & filter_at_entry)
				__sync_fetch_and_add(&counters.undecided, 1);
			if (!exit_selected(&record->exit))
				record->exit_time = 0;
		}
		/* Nothing of L1 ran since: the L2 that is entered is the one that left. */
		if (record->exit_time && (last == 0 || nested))
			end(vcpu, record, now, nested, false, direct);
		if (last > 0)
			return 0;
	}
	if (nested) {
		__u64 l2 = nested_state(vcpu);
		__u32 slot = l2_slot(state, l2);

		if (slot >= TRACE_OPEN)
			return 0;
		record = &state->open[slot];
		if (record->exit_time && record->nested_state == l2)
			end(vcpu, record, now, nested, true, direct);
	}
	return 0;
}

#include "programs.h"
