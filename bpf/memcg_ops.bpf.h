/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * memcg_bpf_ops: soft memory limits inside the kernel, for kernels that have it.
 *
 * Two forms were posted and none is merged (bpf-next RFC v6, 4 Feb 2026; v7, 26 May 2026); FORM chooses
 * one, and the loader chooses the object by the running kernel's BTF. The model is the same in both:
 *
 * agentrund keeps one entry per cgroup in `ar_memcg_policies`. A charge looks up its own cgroup, then its
 * ancestors: the nearest entry counts, so that a call is subject to its tier's or session's entry without
 * one of its own (the ops pointer is inherited, the memcg given is always the leaf). While the entry's
 * deadline lies ahead and the entry's own subtree is over its soft limit, each slow-path charge is
 * delayed. A deadline, not a flag: if agentrund dies, the delays end by themselves.
 */
#ifndef FORM
#error "FORM is 6 or 7"
#endif
#include "compat.h"
#include "agentrun.h"
#include <bpf/bpf_tracing.h>

#define MAX_LEVELS 12
#define PAGE_SHIFT 12

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct memcg_bpf_ops {
	void (*handle_cgroup_online)(struct mem_cgroup *memcg);
	void (*handle_cgroup_offline)(struct mem_cgroup *memcg);
#if FORM == 6
	bool (*below_low)(struct mem_cgroup *memcg);
	bool (*below_min)(struct mem_cgroup *memcg);
	unsigned int (*get_high_delay_ms)(struct mem_cgroup *memcg);
#else
	bool (*below_low)(struct mem_cgroup *memcg, unsigned long elow, unsigned long usage);
	bool (*below_min)(struct mem_cgroup *memcg, unsigned long emin, unsigned long usage);
	unsigned int (*memcg_charged)(struct mem_cgroup *memcg, unsigned int nr_pages);
	void (*memcg_uncharged)(struct mem_cgroup *memcg, unsigned int nr_pages);
#endif
};
#pragma clang attribute pop

char _license[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct ar_memcg_policy);
} ar_memcg_policies SEC(".maps");

/* Where a charge stands: its entry, and the memory of the subtree that the entry is about. */
struct found {
	struct ar_memcg_policy *policy;
	u64 usage_bytes;
};

/*
 * The nearest entry from a memcg upwards. The memory of an ancestor is read through its own
 * mem_cgroup, which is the parent css of the controller, in step with the cgroup.
 */
static __always_inline struct found lookup_policy(struct mem_cgroup *memcg)
{
	struct cgroup_subsys_state *css = &memcg->css;
	struct found found = {};

	for (int level = 0; level < MAX_LEVELS && css; level++) {
		u64 id = BPF_CORE_READ(css, cgroup, kn, id);
		struct ar_memcg_policy *policy = bpf_map_lookup_elem(&ar_memcg_policies, &id);

		if (policy) {
			/* css is the first member of mem_cgroup (the kernel's own mem_cgroup_from_css) */
			struct mem_cgroup *at = (struct mem_cgroup *)css;

			found.policy = policy;
			found.usage_bytes = (u64)BPF_CORE_READ(at, memory.usage.counter) << PAGE_SHIFT;
			return found;
		}
		css = BPF_CORE_READ(css, parent);
	}
	return found;
}

static __always_inline unsigned int delay_ms(struct mem_cgroup *memcg)
{
	struct found found = lookup_policy(memcg);

	if (!found.policy)
		return 0;
	__sync_fetch_and_add(&found.policy->charges, 1);
	if (found.policy->throttle_until_ns <= bpf_ktime_get_ns() ||
	    found.usage_bytes <= found.policy->soft_bytes)
		return 0;
	__sync_fetch_and_add(&found.policy->delays, 1);
	return found.policy->delay_ms;
}

static __always_inline bool is_protected(struct mem_cgroup *memcg)
{
	struct found found = lookup_policy(memcg);

	return found.policy && found.usage_bytes <= found.policy->protect_bytes;
}

/* A cgroup that is gone leaves no entry behind, even if agentrund died before it could say so. */
SEC("struct_ops/handle_cgroup_offline")
void BPF_PROG(handle_cgroup_offline, struct mem_cgroup *memcg)
{
	u64 id = BPF_CORE_READ(memcg, css.cgroup, kn, id);

	bpf_map_delete_elem(&ar_memcg_policies, &id);
}

#if FORM == 6
SEC("struct_ops/below_low")
bool BPF_PROG(below_low, struct mem_cgroup *memcg)
{
	return is_protected(memcg);
}

SEC("struct_ops/get_high_delay_ms")
unsigned int BPF_PROG(get_high_delay_ms, struct mem_cgroup *memcg)
{
	return delay_ms(memcg);
}
#else
SEC("struct_ops/below_low")
bool BPF_PROG(below_low, struct mem_cgroup *memcg, unsigned long elow, unsigned long usage)
{
	return is_protected(memcg);
}

SEC("struct_ops/memcg_charged")
unsigned int BPF_PROG(memcg_charged, struct mem_cgroup *memcg, unsigned int nr_pages)
{
	return delay_ms(memcg);
}
#endif

SEC(".struct_ops.link")
struct memcg_bpf_ops agentrun_memcg_ops = {
	.handle_cgroup_offline = (void *)handle_cgroup_offline,
	.below_low = (void *)below_low,
#if FORM == 6
	.get_high_delay_ms = (void *)get_high_delay_ms,
#else
	.memcg_charged = (void *)memcg_charged,
#endif
};
