/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * State by vCPU: a table in global data, open-addressed. A lookup takes a couple of dozen
 * instructions where a hash map takes well over a hundred, twice an exit.
 *
 * An entry belongs to the address of a struct kvm_vcpu. The verifier lets an address be compared,
 * but not be hashed: the search begins where the VM's tgid and the vCPU's id say.
 *
 * Only the CPU that runs a vCPU looks for it, so a vCPU never races with itself for an entry;
 * different ones race by compare-and-exchange. An entry is never given back: KVM allocates its
 * vCPUs from a cache of their own, so that new ones come to lie where old ones lay.
 */
#ifndef EXITREGS_VCPUS_H
#define EXITREGS_VCPUS_H

#include "vcpu.h"

#define VCPU_PROBES 32

static __always_inline __u32 vcpu_home(struct kvm_vcpu *vcpu, __u32 tgid, const bool direct)
{
	return (tgid * 0x9e3779b1U) + vcpu_read(vcpu, vcpu_id, direct) * 0x85ebca77U;
}

/* The entry of `vcpu` in `table`, of 1 << `bits` entries; with `claim`, a new one if it has none. */
#define vcpu_state(table, bits, vcpu, tgid, claim, direct) ({					\
	__u32 home = vcpu_home(vcpu, tgid, direct) >> (32 - (bits));				\
	__typeof__(&(table)[0]) found = NULL;							\
	for (__u32 probe = 0; probe < VCPU_PROBES; probe++) {					\
		__typeof__(found) entry = &(table)[(home + probe) & ((1U << (bits)) - 1)];	\
		if (entry->owner != (__u64)(vcpu)) {						\
			if (entry->owner)							\
				continue;							\
			if (!(claim))								\
				break;								\
			if (__sync_val_compare_and_swap(&entry->owner, 0, (__u64)(vcpu)))	\
				continue;							\
		}										\
		found = entry;									\
		break;										\
	}											\
	found;											\
})

#endif
