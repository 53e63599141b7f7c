/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a task pays for its slice, and what a CPU takes next. */
#ifndef AGENTRUN_SCX_DISPATCH_H
#define AGENTRUN_SCX_DISPATCH_H

#include "parking.h"

/* Put right what was paid in advance for p with what it ran. */
static __noinline int settle(struct task_struct *p, u64 inverse)
{
	struct task_state *task = state_of(p);
	struct group *group;
	u64 until, ran = 0;

	if (!task)
		return 0;
	group = group_at(task->slot);
	until = p->se.sum_exec_runtime;
	if (task->ran_until && is_before(task->ran_until, until))
		ran = until - task->ran_until;
	task->ran_until = until;
	__sync_fetch_and_add(&group->vtime, scale(ran, inverse) - task->reserved);
	task->reserved = 0;
	task->vtime += ran * WEIGHT_DEFAULT / (p->scx.weight ? p->scx.weight : 1);
	if (ran && nr_limited)
		charge_limits(task->slot, ran);
	return 0;
}

static __always_inline void reserve(struct task_state *task, u64 slice, u64 inverse)
{
	task->reserved = scale(slice, inverse);
	__sync_fetch_and_add(&group_at(task->slot)->vtime, task->reserved);
}

/* Whether prev may go on although its slice is over: nobody else is further behind. `behind`: the virtual time
 * of the first of the others, if there is one. */
static __noinline bool keeps(struct task_struct *prev, u64 behind, bool is_contended)
{
	struct task_state *task = state_of(prev);
	struct task_struct *sibling;
	u64 vtime;

	if (!task)
		return false;
	vtime = group_at(task->slot)->vtime;
	if (is_contended && is_before(behind, vtime))
		return false;
	sibling = scx_bpf_dsq_peek(DSQ_GROUP + (task->slot & (MAX_GROUPS - 1)));
	return !sibling || !is_before(sibling->scx.dsq_vtime, task->vtime);
}

static __always_inline void keep(s32 cpu, struct task_struct *prev, u64 inverse)
{
	struct task_state *task = state_of(prev);
	u64 slice = current_slice(), tag;

	if (!task)
		return;
	tag = group_at(task->slot)->vtime;
	if (is_before(cpu_at(cpu)->vnow, tag))
		cpu_at(cpu)->vnow = tag;
	reserve(task, slice, inverse);
	count(COUNT_KEPT);
	scx_bpf_task_set_slice(prev, slice);
}

/* Nothing of ours: what waits for other CPUs and may run here. */
static __noinline bool steal(s32 cpu)
{
	s32 other;

	if (!nr_waiting_cpu_tasks)
		return false;
	bpf_for(other, 0, nr_cpus) {
		if (other != cpu && scx_bpf_dsq_nr_queued(DSQ_CPU + other) > 0 &&
		    scx_bpf_dsq_move_to_local(DSQ_CPU + other)) {
			count(COUNT_STOLEN);
			return true;
		}
	}
	return false;
}

/* Take from a group's queue, unless cpu.max holds it and nobody in it has waited for too long. */
static __always_inline bool take_from_group(u32 slot, u64 now)
{
	u64 dsq = DSQ_GROUP + (slot & (MAX_GROUPS - 1));
	struct group *group = group_at(slot);

	if (nr_limited && is_held(slot, now) && is_before(now, overdue_at(group)))
		return false;
	if (scx_bpf_dsq_nr_queued(dsq) <= 0 || !scx_bpf_dsq_move_to_local(dsq))
		return false;
	group->let_at = now; /* two CPUs may both let one go: it is a bound */
	return true;
}

#define MAX_TRIES 64 /* groups whose task went to another CPU just now, or that are found to be held */

static __noinline bool take_next(s32 cpu, bool has_head, u64 head_tag, struct candidate *best)
{
	u64 now = scx_bpf_now();
	u32 i;

	if (!best)
		return false;
	bpf_for(i, 0, MAX_TRIES) {
		if (has_head && (!best->found || !is_before(best->vtime, head_tag))) {
			if (scx_bpf_dsq_move_to_local(DSQ_CPU + cpu))
				return true;
			has_head = false;
			continue;
		}
		if (!best->found)
			return false;
		if (take_from_group(best->slot, now))
			return true;
		count(COUNT_RETRIED);
		next_group(best, now);
	}
	return false;
}

#endif
