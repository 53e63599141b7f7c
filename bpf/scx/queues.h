/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a task waits, and who is next.
 *
 * A task that may run on every CPU waits in its group's queue, ordered among its siblings by its own virtual
 * time. One that may not (cpuset, pinned) waits in the queue of a CPU where it may, under a start tag: its
 * group's virtual time, which is paid for its slice in advance, so that several of one group line up behind
 * each other instead of together (start-time fair queueing). Both are in the same virtual time: dispatch takes
 * whichever is furthest behind.
 */
#ifndef AGENTRUN_SCX_QUEUES_H
#define AGENTRUN_SCX_QUEUES_H

#include "bandwidth.h"

static __always_inline u64 current_slice(void)
{
	u64 waiting = nr_waiting_groups_tasks + nr_waiting_cpu_tasks, room = (u64)nr_cpus * crowd;
	u64 slice = slice_ns;

	if (waiting > room)
		slice = slice_ns * room / waiting;
	return slice < slice_min_ns ? slice_min_ns : slice;
}

/* Bring a group's virtual time near to that of the CPU that it comes to: what it did not use while it slept
 * (`was_idle`) is gone, and what it was charged when its share was smaller is bounded by what that is now. */
static __always_inline void bound_lag(struct group *group, s32 cpu, u64 inverse, bool was_idle)
{
	u64 vnow = cpu_at(cpu)->vnow, step = scale(slice_ns, inverse) * lag_slices;
	u64 oldest = was_idle ? vnow : vnow - step;
	u64 farthest = vnow + step + step * group->nr_own;

	if (farthest - vnow > patience_ns)
		farthest = vnow + patience_ns;
	if (is_before(group->vtime, oldest))
		group->vtime = oldest;
	else if (is_before(farthest, group->vtime))
		group->vtime = farthest;
}

static __always_inline void count_waiting(u32 slot, u32 where)
{
	u32 word = slot / 64;

	if (where == ON_CPU)
		__sync_fetch_and_add(&nr_waiting_cpu_tasks, 1);
	if (where != IN_GROUP)
		return;
	__sync_fetch_and_add(&nr_waiting_groups_tasks, 1);
	if (!__sync_fetch_and_add(&group_at(slot)->nr_waiting, 1)) {
		group_at(slot)->let_at = scx_bpf_now();
		__sync_fetch_and_or(&waiting_groups[word & (MAX_GROUPS / 64 - 1)], 1ULL << (slot & 63));
	}
	if (word > top_word)
		top_word = word; /* a lost race costs nothing: the next one in this word repeats it */
}

static __always_inline void uncount_waiting(u32 slot, u32 where)
{
	u32 word = slot / 64 & (MAX_GROUPS / 64 - 1);

	if (where == ON_CPU)
		__sync_fetch_and_add(&nr_waiting_cpu_tasks, -1);
	if (where != IN_GROUP)
		return;
	__sync_fetch_and_add(&nr_waiting_groups_tasks, -1);
	if (__sync_fetch_and_add(&group_at(slot)->nr_waiting, -1) != 1)
		return;
	/* clear, then look again: whoever came in between found the count at zero and set the bit before or after */
	__sync_fetch_and_and(&waiting_groups[word], ~(1ULL << (slot & 63)));
	if (*(volatile u32 *)&group_at(slot)->nr_waiting)
		__sync_fetch_and_or(&waiting_groups[word], 1ULL << (slot & 63));
}

/* Atomic, because a parked task is let go of by a CPU that does not hold its run queue (scx/parking.h). What it waited
 * for before is over: a task that moves to another run queue is queued again without having been quiescent. */
/* Atomic, because a parked task is let go of by a CPU that does not hold its run queue (scx/parking.h). What it waited
 * for before is over: a task that moves to another run queue is queued again without having been quiescent. */
static __always_inline void begin_waiting(struct task_state *task, u32 where)
{
	u32 slot = task->slot & (MAX_GROUPS - 1);

	uncount_waiting(slot, __sync_lock_test_and_set(&task->waiting, where));
	count_waiting(slot, where);
}

static __always_inline void end_waiting(struct task_state *task)
{
	if (task->waiting != NOT_WAITING)
		begin_waiting(task, NOT_WAITING);
}

/*
 * How far a task may be ahead of its siblings when it lines up: what they need to come past it has to fit into
 * patience_ns. A held group gets hardly more than a slice for each task in that time, so that one long slice (or
 * a low priority) would make a task wait for minutes.
 */
static __always_inline u64 longest_lead(const struct group *group, u64 inverse, bool held)
{
	u64 lead = held ? 0 : patience_ns / (inverse / SHARE_ONE) / (group->nr_own + 1);

	return lead < 2 * slice_ns ? 2 * slice_ns : lead;
}

static __always_inline void queue_with_group(struct task_struct *p, struct task_state *task, u64 inverse,
					     bool held, u64 enq_flags)
{
	struct group *group = group_at(task->slot);
	u64 earliest = group->task_vtime - slice_ns;
	u64 farthest = group->task_vtime + longest_lead(group, inverse, held);
	s32 cpu;

	if (is_before(task->vtime, earliest))
		task->vtime = earliest;
	else if (is_before(farthest, task->vtime))
		task->vtime = farthest;
	begin_waiting(task, IN_GROUP);
	count(COUNT_GROUP);
	scx_bpf_dsq_insert_vtime(p, DSQ_GROUP + (task->slot & (MAX_GROUPS - 1)), current_slice(), task->vtime,
				 enq_flags);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_IDLE));
}

/* The CPU that a restricted task waits for: where it was put, or a shorter queue of those where it may run. */
static __always_inline s32 choose_queue(struct task_struct *p)
{
	s32 cpu = scx_bpf_task_cpu(p), other;

	if (p->nr_cpus_allowed == 1)
		return cpu;
	other = scx_bpf_pick_any_cpu(p->cpus_ptr, 0);
	if (other >= 0 && other < nr_cpus && other != cpu &&
	    scx_bpf_dsq_nr_queued(DSQ_CPU + other) < scx_bpf_dsq_nr_queued(DSQ_CPU + cpu))
		return other;
	return cpu;
}

/* Returns the CPU. */
static __always_inline s32 queue_on_cpu(struct task_struct *p, struct task_state *task, u64 inverse, u64 enq_flags)
{
	struct group *group = group_at(task->slot);
	u64 slice = current_slice();
	s32 cpu = choose_queue(p);

	task->reserved = scale(slice, inverse);
	task->tag = __sync_fetch_and_add(&group->vtime, task->reserved);
	begin_waiting(task, ON_CPU);
	count(COUNT_CPU);
	scx_bpf_dsq_insert_vtime(p, DSQ_CPU + cpu, slice, task->tag, enq_flags);
	scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_IDLE));
	return cpu;
}

struct candidate {
	u64 vtime;
	u32 slot;
	u32 found;
};

/* Of the waiting groups that are not held, the one furthest behind and after (`vtime`, `slot`), which are those
 * of one that had nothing for this CPU; all when `found` is not set. */
static __noinline int next_group(struct candidate *best, u64 now)
{
	u64 after = best->vtime, best_vtime = 0;
	u32 after_slot = best->slot, best_slot = 0, words = top_word + 1, word, bit;
	bool skip = best->found, found = false;

	if (words > MAX_GROUPS / 64)
		words = MAX_GROUPS / 64;
	bpf_for(word, 0, words) {
		u64 bits = waiting_groups[word & (MAX_GROUPS / 64 - 1)];

		if (!bits)
			continue;
		bpf_for(bit, 0, 64) {
			u32 slot = (word * 64 + bit) & (MAX_GROUPS - 1);
			struct group *group = &groups[slot];
			u64 vtime;

			if (!(bits >> (bit & 63)))
				break;
			if (!(bits >> (bit & 63) & 1))
				continue;
			if (group->held_until && is_before(now, group->held_until))
				continue;
			vtime = group->vtime;
			if (skip && (is_before(vtime, after) || (vtime == after && slot <= after_slot)))
				continue;
			if (found && !is_before(vtime, best_vtime))
				continue;
			best_vtime = vtime;
			best_slot = slot;
			found = true;
		}
	}
	best->vtime = best_vtime;
	best->slot = best_slot;
	best->found = found;
	return found;
}

#endif
