/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The programs of an object that defines on_exit() and on_entry(), to be included at its end: on typed vCPU pointers, and
 * on mere numbers. The loader takes one of the two pairs.
 */
SEC("tp_btf/kvm_exit")
int exit_typed(__u64 *ctx)
{
	return on_exit(exit_vcpu(ctx), true);
}

SEC("tp_btf/kvm_entry")
int entry_typed(__u64 *ctx)
{
	return on_entry((struct kvm_vcpu *)ctx[0], true);
}

SEC("raw_tp/kvm_exit")
int exit_untyped(__u64 *ctx)
{
	return on_exit(exit_vcpu(ctx), false);
}

SEC("raw_tp/kvm_entry")
int entry_untyped(__u64 *ctx)
{
	return on_entry((struct kvm_vcpu *)ctx[0], false);
}
