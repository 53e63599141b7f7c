/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parking: a call that bpf/mempressure.bpf.c has marked gets no CPU until its mark ends, so it takes no memory.
 *
 * A parked task must not hold what others wait for. So nobody is parked on a wake-up, on the way out, as a kthread,
 * inside an RCU reader or with migration disabled, and only who entered the kernel last by an interrupt or a fault
 * (x86: orig_ax is -1), not by a system call. That leaves faults: a task can be parked while it holds a lock on a
 * page of a file that others map. And what it holds in user space, it keeps.
 *
 * The watchdog, a kill, and a mark that ends are looked at in each dispatch; a timer has idle CPUs dispatch.
 */
#ifndef AGENTRUN_SCX_PARKING_H
#define AGENTRUN_SCX_PARKING_H

#include "queues.h"
#include "../marks.h"

#define SIGNAL_GROUP_EXIT 4
#define PF_EXITING 4

static __always_inline bool is_marked(u32 slot)
{
	u64 id = group_at(slot)->id, *until = bpf_map_lookup_elem(&ar_marks, &id);

	return until && bpf_ktime_get_ns() < *until;
}

static __always_inline bool is_dying(struct task_struct *p)
{
	return p->flags & PF_EXITING || p->signal->flags & SIGNAL_GROUP_EXIT;
}

static __always_inline bool came_by_interrupt(struct task_struct *p)
{
#ifdef __TARGET_ARCH_x86
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(p);

	return (s64)regs->orig_ax == -1;
#else
	return false; /* not known how to tell: nobody is parked */
#endif
}

static __noinline bool may_park(struct task_struct *p, u64 enq_flags)
{
	/* this program itself adds one to both where p is the current task */
	int own = bpf_get_current_task_btf() == p;

	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_WAKEUP) || p->flags & PF_KTHREAD || is_dying(p))
		return false;
	if (p->rcu_read_lock_nesting > own || p->migration_disabled > own)
		return false;
	/* who may not run everywhere would come back to a queue that every CPU takes from */
	return p->nr_cpus_allowed >= nr_online && came_by_interrupt(p);
}

static __always_inline void park(struct task_struct *p, struct task_state *task, u64 enq_flags)
{
	begin_waiting(task, PARKED);
	count(COUNT_PARKED);
	run_timer();
	scx_bpf_dsq_insert_vtime(p, DSQ_PARKED, slice_min_ns, bpf_ktime_get_ns(), enq_flags);
}

/* Whether a parked task goes on: its mark has ended, it is to die, or it has waited for as long as anybody may. */
static __always_inline bool may_go(struct task_struct *p, struct task_state *task, u64 now)
{
	return !is_marked(task->slot) || is_dying(p) || now - p->scx.dsq_vtime >= patience_ns;
}

u32 is_releasing; /* one CPU at a time: two that walk the queue would both count the same task */

static __noinline int release(u64 now)
{
	struct bpf_iter_scx_dsq parked;
	struct task_struct *p;

	if (__sync_val_compare_and_swap(&is_releasing, 0, 1))
		return 0;
	bpf_iter_scx_dsq_new(&parked, DSQ_PARKED, 0);
	while ((p = bpf_iter_scx_dsq_next(&parked))) {
		struct task_state *task = state_of(p);

		if (!task || !may_go(p, task, now))
			continue;
		scx_bpf_dsq_move_set_vtime(&parked, task->vtime);
		/* before the move: from then on it may run, and end its wait */
		end_waiting(task);
		begin_waiting(task, IN_GROUP);
		if (!scx_bpf_dsq_move_vtime(&parked, p, DSQ_GROUP + (task->slot & (MAX_GROUPS - 1)), 0))
			end_waiting(task); /* somebody else has taken it */
	}
	bpf_iter_scx_dsq_destroy(&parked);
	is_releasing = 0;
	return 0;
}

#endif
