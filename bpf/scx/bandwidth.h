/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cpu.max: the kernel's own throttling belongs to EEVDF and does not reach tasks of a sched_ext scheduler.
 *
 * Each group with a limit has a budget per period; run time is charged to it and to all limited groups above.
 * A group without budget is held: its tasks wait in its queue until the budget of a later period pays the debt.
 * A slice may cost many periods, and N tasks N times that, so one of them is let go of, debt or not, whenever
 * none was for so long that the last one would wait for more than half of patience_ns. (Looking at the budget
 * again after that time, and at nothing else, let 24 tasks with 1 % wait for 36 s: the watchdog's end.)
 */
#ifndef AGENTRUN_SCX_BANDWIDTH_H
#define AGENTRUN_SCX_BANDWIDTH_H

#include "groups.h"

struct bandwidth_timer {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct bandwidth_timer);
} ar_scx_timer SEC(".maps");

u32 timer_runs;
u32 nr_held;	/* any group was found without budget since the timer last looked */

/* Give the budget of the periods that went by. One CPU does it, the others see the new start. */
static __always_inline void refill(struct group *group, u64 now)
{
	u64 start = group->period_start, periods;
	s64 spent, left;

	if (!group->period_ns || now - start < group->period_ns || is_before(now, start))
		return;
	periods = (now - start) / group->period_ns;
	if (__sync_val_compare_and_swap(&group->period_start, start, start + periods * group->period_ns) != start)
		return;
	if (periods > 1000)
		periods = 1000;
	spent = group->spent_ns;
	left = spent - (s64)(periods * group->quota_ns);
	if (left < -(s64)group->burst_ns)
		left = -(s64)group->burst_ns;
	if (left < spent)
		__sync_fetch_and_add(&group->spent_ns, left - spent);
}

static __noinline int charge_limits(u32 slot, u64 ran_ns)
{
	u32 i;

	bpf_for(i, 0, MAX_DEPTH) {
		struct group *group = group_at(slot);

		if (group->quota_ns)
			__sync_fetch_and_add(&group->spent_ns, (s64)ran_ns);
		if (slot == ROOT_SLOT)
			return 0;
		slot = group->parent;
	}
	return 0;
}

/* Until when a limited group has no budget; 0 when it has some. */
static __always_inline u64 without_budget(struct group *group, u64 now)
{
	s64 debt;

	refill(group, now);
	debt = group->spent_ns - (s64)group->quota_ns;
	if (debt < 0)
		return 0;
	return group->period_start + ((u64)debt / group->quota_ns + 1) * group->period_ns;
}

/* When one of a held group's tasks has to run, whatever it owes. */
static __always_inline u64 overdue_at(const struct group *group)
{
	return group->let_at + patience_ns / 2 / (group->nr_own + 1);
}

/* Until when a group is held by its own or a limit above; 0 when it is not. Remembered in held_until. */
static __noinline u64 held_until(u32 slot, u64 now)
{
	struct group *group = group_at(slot);
	u64 until = 0, limit;
	u32 i, at = slot;

	if (!bandwidth || !nr_limited)
		return 0;
	bpf_for(i, 0, MAX_DEPTH) {
		struct group *above = group_at(at);

		if (above->quota_ns) {
			u64 then = without_budget(above, now);

			if (is_before(until, then) || !until)
				until = then ? then : until;
		}
		if (at == ROOT_SLOT)
			break;
		at = above->parent;
	}
	if (until) {
		limit = overdue_at(group);
		if (is_before(limit, until))
			until = is_before(limit, now) ? now : limit;
		nr_held = 1;
		count(COUNT_HELD);
	}
	group->held_until = until;
	return until;
}

static __always_inline bool is_held(u32 slot, u64 now)
{
	u64 until = group_at(slot)->held_until;

	if (until && is_before(now, until))
		return true;
	return held_until(slot, now) != 0;
}

static __always_inline bool are_parked(void)
{
	return parking && scx_bpf_dsq_nr_queued(DSQ_PARKED) > 0;
}

/* While any group is held or any task parked: have idle CPUs look again. The cheapest thing that cannot forget anybody. */
static int bandwidth_tick(void *map, u32 *key, struct bandwidth_timer *timer)
{
	s32 cpu;

	nr_held = nr_held && nr_waiting_groups_tasks;
	if (nr_held || are_parked()) {
		bpf_for(cpu, 0, nr_cpus)
			scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_IDLE));
	}
	if (!nr_limited && !are_parked()) {
		timer_runs = 0;
		/* whoever came in between found it running */
		if ((!nr_limited && !are_parked()) || __sync_val_compare_and_swap(&timer_runs, 0, 1))
			return 0;
	}
	bpf_timer_start(&timer->timer, bandwidth_tick_ns, 0);
	return 0;
}

/* Runs until nothing is limited and nobody parked any more. */
static __always_inline void run_timer(void)
{
	u32 zero = 0;
	struct bandwidth_timer *timer = bpf_map_lookup_elem(&ar_scx_timer, &zero);

	if (timer && !__sync_val_compare_and_swap(&timer_runs, 0, 1))
		bpf_timer_start(&timer->timer, bandwidth_tick_ns, 0);
}

static __always_inline s32 init_timer(void)
{
	u32 zero = 0;
	struct bandwidth_timer *timer = bpf_map_lookup_elem(&ar_scx_timer, &zero);

	if (!timer)
		return -ENOMEM;
	bpf_timer_init(&timer->timer, &ar_scx_timer, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&timer->timer, bandwidth_tick);
	return 0;
}

/* The map is pinned, so an armed timer would outlive the scheduler. */
static __always_inline void stop_timer(void)
{
	u32 zero = 0;
	struct bandwidth_timer *timer = bpf_map_lookup_elem(&ar_scx_timer, &zero);

	if (timer)
		bpf_timer_cancel(&timer->timer);
}

/* The kernel says ULLONG_MAX for no limit (RUNTIME_INF in microseconds), and 0 where it never had one. */
static __noinline int set_limit(u32 slot, u64 period_us, u64 quota_us, u64 burst_us)
{
	struct group *group = group_at(slot);
	bool was = group->quota_ns, is = period_us && quota_us && quota_us < (1ULL << 44);

	if (!bandwidth)
		return 0;
	group->period_ns = period_us * 1000;
	group->burst_ns = burst_us * 1000;
	group->period_start = scx_bpf_now();
	group->spent_ns = 0;
	group->held_until = 0;
	group->quota_ns = is ? quota_us * 1000 : 0;
	if (is != was)
		__sync_fetch_and_add(&nr_limited, is ? 1 : -1);
	return 0;
}

#endif
