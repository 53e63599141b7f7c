/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is remembered of groups, tasks and CPUs, and the maps that hold it. */
#ifndef AGENTRUN_SCX_STATE_H
#define AGENTRUN_SCX_STATE_H

#include "kernel.h"
#include "knobs.h"

#define ROOT_SLOT 0
#define DSQ_GROUP 0x10000ULL /* + slot: a group's waiting tasks, by their virtual time */
#define DSQ_PARKED 0x30000ULL /* tasks of calls that are marked, by when they came */
#define DSQ_CPU 0x20000ULL   /* + CPU: waiting tasks that may not run everywhere, by start tag */

/*
 * A cgroup. `vtime` is the run time that it got, divided by its share; the group that is furthest behind runs.
 * The fields that every dispatch looks at come first.
 */
struct group {
	u64 vtime;
	u64 held_until;	  /* cpu.max is used up: not before this (scx_bpf_now()) */
	u64 task_vtime;	  /* of the latest of its tasks to run: where a new one begins */
	u32 nr_waiting;	  /* tasks in its queue */
	u32 nr_own;	  /* runnable tasks in it, not below it */
	u32 nr_active;	  /* the same and its children that have any */
	u32 active_weight; /* of its children that have any */
	u32 weight;
	u32 counted_weight; /* what it added to its parent's active_weight */
	u32 parent;	  /* slot */
	u32 used;	  /* the slot is taken */
	u32 is_agent;
	u32 has_queue;	  /* its DSQ exists; kept for the next owner of the slot */
	u64 id;		  /* of the cgroup */
	u64 quota_ns;	  /* 0: no limit */
	u64 period_ns;
	u64 burst_ns;
	u64 period_start;
	s64 spent_ns;	  /* of the quota; below zero by at most burst_ns */
	u64 let_at;	  /* when one of its waiting tasks was taken, or the first of them came (scx_bpf_now()) */
} __attribute__((aligned(128)));

struct group groups[MAX_GROUPS];

/* A CPU. `vnow`: start tag of what runs there, never going back: the time that newcomers start with. */
struct cpu_state {
	u64 vnow;
	u64 started;	/* when the task that runs began */
	u32 slot;	/* its group */
	u32 is_boosted;
} __attribute__((aligned(64)));

struct cpu_state cpus[MAX_CPUS];

enum waiting { NOT_WAITING, IN_GROUP, ON_CPU, PARKED };

struct task_state {
	u32 slot;
	u32 counted_slot; /* + 1: where it counts as runnable */
	u32 waiting;
	u32 is_boosted;
	u64 vtime;	/* within its group */
	u64 tag;	/* of its group when it was queued */
	u64 reserved;	/* virtual time that its group paid in advance for it */
	u64 ran_until;	/* sum_exec_runtime up to which it is paid for */
	u64 woke_at;	/* sum_exec_runtime at its last wake-up */
	u64 burst_ns;	/* moving average of its run time between two sleeps */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_state);
} ar_scx_tasks SEC(".maps");

struct slot {
	u32 number;
	u32 is_own; /* else it is its parent's */
};

/* By the cgroup's id, not in its storage: init_task's cgroup is no pointer that the verifier trusts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_GROUPS * 4);
	__type(key, u64);
	__type(value, struct slot);
} ar_scx_slots SEC(".maps");

/* What Python reads (agentrun/bpf/scheduler.py): the last exit, and counters. Survives the scheduler. */
struct ar_scx_exit {
	u64 kind; /* enum scx_exit_kind; 0 while it runs */
	s64 code;
	u64 time_ns; /* CLOCK_BOOTTIME */
	char reason[128];
	char message[256];
};
_Static_assert(sizeof(struct ar_scx_exit) == 408, "agentrun/bpf/scheduler.py unpacks it");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct ar_scx_exit);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ar_scx_exit SEC(".maps");

enum counter {
	COUNT_DIRECT,	 /* put on an idle CPU at once */
	COUNT_GROUP,	 /* queued with the group */
	COUNT_CPU,	 /* queued for one CPU */
	COUNT_BOOSTED,	 /* the agent's own, run at once */
	COUNT_PREEMPTED, /* interactive, another one interrupted */
	COUNT_KEPT,	 /* slice over, still the one that is furthest behind */
	COUNT_HELD,	 /* stopped by cpu.max */
	COUNT_STOLEN,	 /* from another CPU's queue */
	COUNT_RETRIED,	 /* the group that is furthest behind had nothing for this CPU */
	COUNT_SHARED_SLOT, /* a cgroup beyond MAX_GROUPS */
	COUNT_PARKED,	 /* stopped by a mark */
	NR_COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NR_COUNTERS);
	__type(key, u32);
	__type(value, u64);
} ar_scx_count SEC(".maps");

/* The waiting groups, one bit each: what dispatch looks through. */
u64 waiting_groups[MAX_GROUPS / 64];
u32 nr_waiting_groups_tasks; /* tasks in all groups' queues */
u32 nr_waiting_cpu_tasks;    /* tasks in all CPUs' queues */
u32 top_word;		     /* index of the last word of waiting_groups that was ever used */
u32 nr_limited;		     /* groups with cpu.max */
s32 nr_cpus;
s32 nr_online;
u64 vnow_latest; /* the furthest of all CPUs' vnow: where a CPU that was idle begins again */

static __always_inline struct group *group_at(u32 slot)
{
	return &groups[slot & (MAX_GROUPS - 1)];
}

static __always_inline struct cpu_state *cpu_at(s32 cpu)
{
	return &cpus[cpu & (MAX_CPUS - 1)];
}

static __always_inline struct task_state *state_of(struct task_struct *p)
{
	return bpf_task_storage_get(&ar_scx_tasks, p, 0, 0);
}

static __always_inline void count(u32 what)
{
	u64 *counter = bpf_map_lookup_elem(&ar_scx_count, &what);

	if (counter)
		(*counter)++;
}

/* Virtual times wrap; only differences mean anything. */
static __always_inline bool is_before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

#endif
