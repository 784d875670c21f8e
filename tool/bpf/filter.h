/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * --where, --view, --level, --reason and --vcpu, evaluated in the kernel: a postfix program over
 * the fields of kvm_exit, as tool/src/filter/ compiles it. It is a constant to the verifier.
 */
#ifndef EXITREGS_FILTER_H
#define EXITREGS_FILTER_H

#include "events.h"
#include <bpf/bpf_helpers.h>

enum {
	FILTER_MAX_OPERATIONS = 64,
	FILTER_MAX_VMS = 64,
};

enum filter_operator {
	FILTER_EQ,
	FILTER_NE,
	FILTER_LT,
	FILTER_LE,
	FILTER_GT,
	FILTER_GE,
	FILTER_BAND,
	FILTER_AND,
	FILTER_OR,
	FILTER_NOT,
};

struct filter_operation {
	__u64 operand;
	__u16 offset;		/* of the field in struct kvm_exit */
	__u8 size;		/* of the field */
	__u8 operator;
	__u32 reserved;
};

const volatile struct filter_operation filter[FILTER_MAX_OPERATIONS];
const volatile __u32 filter_operations;
/* The fields it reads that VMX caches only while KVM handles the exit: decide at the entry then. */
const volatile __u32 filter_at_entry;
const volatile __u32 filter_vms[FILTER_MAX_VMS];
const volatile __u32 filter_vm_count;

static __always_inline bool vm_selected(__u32 tgid)
{
	if (!filter_vm_count)
		return true;
	for (__u32 i = 0; i < FILTER_MAX_VMS && i < filter_vm_count; i++)
		if (filter_vms[i] == tgid)
			return true;
	return false;
}

static __always_inline __u64 filter_field(const struct kvm_exit *exit, const volatile struct filter_operation *op)
{
	const void *field = (const void *)exit + op->offset;

	switch (op->size) {
	case 1:
		return *(const __u8 *)field;
	case 4:
		return *(const __u32 *)field;
	default:
		return *(const __u64 *)field;
	}
}

/* A stack of booleans, its top in bit 0. */
static __always_inline bool exit_selected(const struct kvm_exit *exit)
{
	__u64 stack = 1;

	for (__u32 i = 0; i < FILTER_MAX_OPERATIONS && i < filter_operations; i++) {
		const volatile struct filter_operation *op = &filter[i];
		bool result;

		switch (op->operator) {
		case FILTER_AND:
			stack = (stack >> 1) & ((stack & 1) | ~1ULL);
			continue;
		case FILTER_OR:
			stack = (stack >> 1) | (stack & 1);
			continue;
		case FILTER_NOT:
			stack ^= 1;
			continue;
		case FILTER_EQ:
			result = filter_field(exit, op) == op->operand;
			break;
		case FILTER_NE:
			result = filter_field(exit, op) != op->operand;
			break;
		case FILTER_LT:
			result = filter_field(exit, op) < op->operand;
			break;
		case FILTER_LE:
			result = filter_field(exit, op) <= op->operand;
			break;
		case FILTER_GT:
			result = filter_field(exit, op) > op->operand;
			break;
		case FILTER_GE:
			result = filter_field(exit, op) >= op->operand;
			break;
		default:
			result = filter_field(exit, op) & op->operand;
			break;
		}
		stack = stack << 1 | result;
	}
	return stack & 1;
}

#endif
