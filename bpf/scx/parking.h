/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parking: a call that bpf/mempressure.bpf.c has marked gets no CPU until its mark ends, so it takes no memory.
 *
 * A parked task must not hold what others wait for. So nobody is parked on a wake-up, on the way out, as a kthread,
 * inside an RCU reader, with migration disabled, in a transaction of a file system or in reclaim, and only who
 * entered the kernel last by an interrupt or a fault (x86: orig_ax is -1), not by a system call. That leaves faults: a
 * task can be parked while it holds a lock on a page of a file that others map. And what it holds in user space,
 * it keeps.
 *
 * The watchdog, a kill, a freeze, and a mark that ends are looked at while CPUs dispatch; a timer has idle ones do so.
 */
#ifndef AGENTRUN_SCX_PARKING_H
#define AGENTRUN_SCX_PARKING_H

#include "queues.h"
#include "../marks.h"

#define SIGNAL_GROUP_EXIT 4
#define JOBCTL_TRAP_FREEZE (1UL << 23) /* include/linux/sched/jobctl.h: cgroup.freeze waits for it */
#define PF_EXITING 0x4
#define PF_MEMALLOC 0x800
#define PF_MEMALLOC_NOFS 0x40000
#define PF_MEMALLOC_NOIO 0x80000
#define NEVER_PARKED (PF_EXITING | PF_MEMALLOC | PF_MEMALLOC_NOFS | PF_MEMALLOC_NOIO | PF_KTHREAD)
#define RELEASE_GAP_NS 1000000ULL  /* between two walks through those who are parked ... */
#define RELEASE_MOST_NS 200000ULL  /* ... and how long one may take: the oldest come first */

static __always_inline bool is_marked(u32 slot)
{
	u64 id = group_at(slot)->id, *until = bpf_map_lookup_elem(&ar_marks, &id);

	return until && bpf_ktime_get_ns() < *until;
}

/* Somebody waits for it to do something: to die, or to stop where it can. */
static __always_inline bool is_wanted(struct task_struct *p)
{
	return p->flags & PF_EXITING || p->signal->flags & SIGNAL_GROUP_EXIT || p->jobctl & JOBCTL_TRAP_FREEZE;
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

	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_WAKEUP) || p->flags & NEVER_PARKED || p->journal_info || is_wanted(p))
		return false;
	/* without preemptible RCU a task in a reader is not preempted, and there is no such field */
	if (bpf_core_field_exists(p->rcu_read_lock_nesting) && p->rcu_read_lock_nesting > own)
		return false;
	/* who may not run everywhere would come back to a queue that every CPU takes from */
	return p->migration_disabled <= own && p->nr_cpus_allowed >= nr_online && came_by_interrupt(p);
}

/*
 * Who wakes up is not parked, and may sleep again before its slice is over: a call that takes memory in short bursts
 * would never be. So a marked one is interrupted a millisecond after it began to run, and parked then.
 */
struct burst_timer {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, u32);
	__type(value, struct burst_timer);
} ar_scx_bursts SEC(".maps");

static __always_inline struct burst_timer *burst_timer_of(u32 cpu)
{
	return bpf_map_lookup_elem(&ar_scx_bursts, &cpu);
}

static int end_burst(void *map, u32 *cpu, struct burst_timer *timer)
{
	scx_bpf_kick_cpu(*cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
	return 0;
}

static __always_inline void bound_burst(u32 slot, u32 cpu)
{
	struct burst_timer *timer;

	if (!is_marked(slot))
		return;
	timer = burst_timer_of(cpu);
	if (timer)
		bpf_timer_start(&timer->timer, slice_min_ns, 0);
}

static __noinline int init_bursts(void)
{
	s32 cpu;

	if (!parking)
		return 0;
	bpf_for(cpu, 0, nr_cpus) {
		struct burst_timer *timer = burst_timer_of(cpu);

		if (!timer)
			return -ENOMEM;
		bpf_timer_init(&timer->timer, &ar_scx_bursts, CLOCK_MONOTONIC);
		bpf_timer_set_callback(&timer->timer, end_burst);
	}
	return 0;
}

static __noinline int stop_bursts(void)
{
	s32 cpu;

	if (!parking)
		return 0;
	bpf_for(cpu, 0, nr_cpus) {
		struct burst_timer *timer = burst_timer_of(cpu);

		if (timer)
			bpf_timer_cancel(&timer->timer);
	}
	return 0;
}

static __always_inline void park(struct task_struct *p, struct task_state *task, u64 enq_flags)
{
	begin_waiting(task, PARKED);
	count(COUNT_PARKED);
	scx_bpf_dsq_insert_vtime(p, DSQ_PARKED, slice_min_ns, bpf_ktime_get_ns(), enq_flags);
	run_timer();
}

/* Whether a parked task goes on: its mark has ended, somebody waits for it, or it waited as long as anybody may. */
static __always_inline bool may_go(struct task_struct *p, struct task_state *task, u64 now)
{
	return !is_marked(task->slot) || is_wanted(p) || (s64)(now - p->scx.dsq_vtime) >= (s64)patience_ns;
}

/* Let one go on in its group's queue. Its run queue is not ours, so it may leave and come back at any moment: only
 * who turns PARKED into IN_GROUP moves it, and a move that fails says that it has left, which ended its wait.
 */
static __always_inline void let_go(struct bpf_iter_scx_dsq *parked, struct task_struct *p, struct task_state *task)
{
	u32 slot = task->slot & (MAX_GROUPS - 1);
	s32 cpu;

	if (__sync_val_compare_and_swap(&task->waiting, PARKED, IN_GROUP) != PARKED)
		return;
	count_waiting(slot, IN_GROUP);
	scx_bpf_dsq_move_set_vtime(parked, task->vtime);
	if (!scx_bpf_dsq_move_vtime(parked, p, DSQ_GROUP + slot, 0))
		return;
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_IDLE));
}

u64 released_at;

static __noinline int release(u64 now)
{
	struct bpf_iter_scx_dsq parked;
	struct task_struct *p;
	u64 before = released_at;

	if (now - before < RELEASE_GAP_NS || __sync_val_compare_and_swap(&released_at, before, now) != before)
		return 0;
	bpf_iter_scx_dsq_new(&parked, DSQ_PARKED, 0);
	while ((p = bpf_iter_scx_dsq_next(&parked))) {
		struct task_state *task = state_of(p);

		if (task && may_go(p, task, now))
			let_go(&parked, p, task);
		if (bpf_ktime_get_ns() - now > RELEASE_MOST_NS)
			break;
	}
	bpf_iter_scx_dsq_destroy(&parked);
	return 0;
}

#endif
