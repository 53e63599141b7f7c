/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tree of groups: places for them, which of them are active, and what share of a CPU each is due.
 *
 * A group's share is the product, on the way up to the root, of its weight by the sum of the weights of its
 * active siblings. It is worked out when it is needed, from counters that change only when a group gets its
 * first or loses its last runnable task: a storm of short-lived calls changes a counter each, nothing else.
 */
#ifndef AGENTRUN_SCX_GROUPS_H
#define AGENTRUN_SCX_GROUPS_H

#include "state.h"

#define SHARE_ONE 1024ULL	 /* fixed point of the inverse of a share */
#define SHARE_MAX (1ULL << 34) /* times 2^26 (4096 children of weight 10000) fits into 64 bits */

static __always_inline struct slot *own_slot(struct cgroup *cgroup)
{
	u64 id = BPF_CORE_READ(cgroup, kn, id);
	struct slot *slot = bpf_map_lookup_elem(&ar_scx_slots, &id);

	return slot && slot->is_own ? slot : NULL;
}

static __always_inline u32 slot_of(struct cgroup *cgroup)
{
	u64 id = BPF_CORE_READ(cgroup, kn, id);
	struct slot *slot = bpf_map_lookup_elem(&ar_scx_slots, &id);

	return slot ? slot->number : ROOT_SLOT;
}

/* A free place, or ROOT_SLOT when there is none. */
static __noinline u32 take_slot(void)
{
	u32 i;

	bpf_for(i, 1, MAX_GROUPS) {
		u32 slot = i & (MAX_GROUPS - 1);

		if (!groups[slot].used && !__sync_val_compare_and_swap(&groups[slot].used, 0, 1))
			return slot;
	}
	return ROOT_SLOT;
}

/* A task more (or a child that became active) in a group: count up the tree until one was active already. */
static __noinline int activate(u32 slot)
{
	u32 i;

	bpf_for(i, 0, MAX_DEPTH) {
		struct group *group = group_at(slot);

		if (__sync_fetch_and_add(&group->nr_active, 1) || slot == ROOT_SLOT)
			return 0;
		group->counted_weight = group->weight;
		slot = group->parent;
		__sync_fetch_and_add(&group_at(slot)->active_weight, group->counted_weight);
	}
	return 0;
}

static __noinline int deactivate(u32 slot)
{
	u32 i;

	bpf_for(i, 0, MAX_DEPTH) {
		struct group *group = group_at(slot);

		if (__sync_fetch_and_add(&group->nr_active, -1) != 1 || slot == ROOT_SLOT)
			return 0;
		slot = group->parent;
		__sync_fetch_and_add(&group_at(slot)->active_weight, -group->counted_weight);
	}
	return 0;
}

/* What a group's run time is multiplied with to get virtual time, times SHARE_ONE. Bounded so that each of its
 * tasks has its turn within patience_ns, however small the share and however many they are. */
static __noinline u64 inverse_share(u32 slot)
{
	struct group *group = group_at(slot);
	u64 inverse = SHARE_ONE, limit;
	u32 i, tasks = group->nr_own;

	/* tasks of a cgroup compete with its children as one child of the default weight would */
	if (group->active_weight && (s32)group->active_weight > 0)
		inverse = inverse * (WEIGHT_DEFAULT + group->active_weight) / WEIGHT_DEFAULT;
	bpf_for(i, 0, MAX_DEPTH) {
		struct group *parent;
		u64 all;
		u32 weight;

		if (slot == ROOT_SLOT)
			break;
		group = group_at(slot);
		parent = group_at(group->parent);
		weight = group->weight ? group->weight : 1;
		all = (s32)parent->active_weight > 0 ? parent->active_weight : 0;
		if (parent->nr_own)
			all += WEIGHT_DEFAULT;
		if (all > weight)
			inverse = inverse * all / weight;
		if (inverse > SHARE_MAX)
			inverse = SHARE_MAX;
		slot = group->parent;
	}
	limit = patience_ns * SHARE_ONE / (slice_min_ns ? slice_min_ns : 1) / (tasks ? tasks : 1);
	if (inverse > limit)
		inverse = limit;
	return inverse < SHARE_ONE ? SHARE_ONE : inverse;
}

static __always_inline u64 scale(u64 ran_ns, u64 inverse)
{
	return ran_ns * inverse / SHARE_ONE;
}

/* `agentrun-agent` is the leaf of everything in a container that is not a call (agentrun/cgroups/layout.py). */
static __always_inline bool is_agent_leaf(struct cgroup *cgroup)
{
	static const char agent[16] = "agentrun-agent";
	char name[16] = {};
	int i;

	if (bpf_probe_read_kernel_str(name, sizeof(name), cgroup->kn->name) != sizeof("agentrun-agent"))
		return false;
#pragma unroll
	for (i = 0; i < (int)sizeof("agentrun-agent"); i++)
		if (name[i] != agent[i])
			return false;
	return true;
}

static __always_inline u32 parent_slot(struct cgroup *cgroup)
{
	struct cgroup *parent;
	u32 slot = ROOT_SLOT;

	if (cgroup->level == 0)
		return slot;
	parent = bpf_cgroup_ancestor(cgroup, cgroup->level - 1);
	if (parent) {
		slot = slot_of(parent);
		bpf_cgroup_release(parent);
	}
	return slot;
}

/* Begin a group in its place. Everything is as if it had never run; its queue may be there from before. */
static __always_inline s32 start_group(u32 slot, struct cgroup *cgroup, u32 weight)
{
	struct group *group = group_at(slot);
	s32 error;

	group->vtime = vnow_latest;
	group->held_until = group->task_vtime = 0;
	group->nr_own = group->nr_active = group->active_weight = 0;
	group->weight = weight ? weight : WEIGHT_DEFAULT;
	group->parent = slot == ROOT_SLOT ? ROOT_SLOT : parent_slot(cgroup);
	group->is_agent = is_agent_leaf(cgroup);
	group->id = cgroup->kn->id;
	group->quota_ns = 0;
	group->used = 1;
	if (!group->has_queue) {
		error = scx_bpf_create_dsq(DSQ_GROUP + slot, -1);
		if (error)
			return error;
		group->has_queue = 1;
	}
	return 0;
}

static __always_inline void set_weight(u32 slot, u32 weight)
{
	struct group *group = group_at(slot);
	u32 before = group->counted_weight;

	group->weight = weight;
	if (group->nr_active && slot != ROOT_SLOT) {
		group->counted_weight = weight;
		__sync_fetch_and_add(&group_at(group->parent)->active_weight, weight - before);
	}
}

#endif
