// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Which calls are to wait because a call of higher rank is short of memory, seen where memory is charged.
 *
 * agentrund keeps an entry in ar_pressure for each cgroup whose limit calls share. Whenever one of those calls is
 * charged (at most once a millisecond), or every few milliseconds, the program looks at what is left of the
 * limit and at who grows. Nobody says in advance what a call will need. While little is left and a call of higher
 * rank has grown lately, lower ones above their soft limit are marked for a tenth of a second at a time, or
 * agentrund is told at once, or both. File cache counts as left.
 *
 * Nobody starves: who was marked for LONGEST_NS has REST_NS to itself, as with agentrund's own rules
 * (agentrun/daemon/controller/rules.py).
 */
#include "events.bpf.h"
#include "loops.h"
#include "marks.h"
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define NR_PRESSURES 64
#define MS 1000000ULL
#define GAP_NS MS	       /* between two looks at one limit */
#define TICK_NS (5 * MS)       /* of the timer */
#define MARK_NS (100 * MS)
#define QUIET_NS (1000 * MS)   /* who has not grown for so long does not grow */
#define LONGEST_NS (10000 * MS)
#define REST_NS (500 * MS)
#define TELL_NS (100 * MS)     /* again, though nothing changed */
#define STEP (2ULL << 20)      /* bytes that count as growth */
#define CLOCK_MONOTONIC 1
#define MAX_LEVELS 12

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NR_PRESSURES);
	__type(key, u64);
	__type(value, struct ar_pressure);
} ar_pressure SEC(".maps");

/* Calls that any entry of ar_pressure names, by id: what keeps everybody else's charges cheap. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NR_PRESSURES * AR_PRESSURE_MEMBERS);
	__type(key, u64);
	__type(value, u64);
} ar_pressure_calls SEC(".maps");

struct pressure_timer {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pressure_timer);
} ar_pressure_timer SEC(".maps");

u32 timer_runs;
u32 timer_made;

/* What a cgroup uses, in bytes, and whether anything lives in it; nothing and nobody for one that is gone. Lives by
 * processes, not by usage: what a call leaves charged behind it would keep others waiting. `without_cache`: only
 * what it would not give back before somebody is killed.
 */
static __noinline bool read_cgroup(u64 id, bool without_cache, u64 *usage)
{
	struct mem_cgroup *memcg;
	struct cgroup *cgrp;
	u64 bytes = 0, cache = 0;
	bool is_populated;

	if (!usage)
		return false;
	cgrp = bpf_cgroup_from_id(id);
	if (!cgrp)
		return false;
	memcg = bpf_get_mem_cgroup(&cgrp->self);
	if (memcg) {
		bytes = bpf_mem_cgroup_usage(memcg);
		if (without_cache) {
			cache = bpf_mem_cgroup_page_state(
				memcg, bpf_core_enum_value(enum node_stat_item, NR_INACTIVE_FILE));
			cache += bpf_mem_cgroup_page_state(
				memcg, bpf_core_enum_value(enum node_stat_item, NR_ACTIVE_FILE));
		}
		bpf_put_mem_cgroup(memcg);
	}
	is_populated = cgrp->self.nr_populated_csets + cgrp->self.nr_populated_children > 0;
	bpf_cgroup_release(cgrp);
	*usage = bytes > cache ? bytes - cache : 0;
	return is_populated;
}

static __always_inline void observe(struct ar_pressure_member *member, u64 now)
{
	u64 usage = 0;

	member->is_populated = read_cgroup(member->id, false, &usage);
	member->usage = usage;
	if (!member->is_populated) {
		member->grew_ns = 0;
	} else if (usage >= member->base_bytes + STEP) {
		member->grew_ns = now;
		member->base_bytes = usage;
		member->base_ns = now;
	} else if (usage < member->base_bytes || now - member->base_ns > QUIET_NS) {
		member->base_bytes = usage;
		member->base_ns = now;
	}
}

static __always_inline void unmark(struct ar_pressure_member *member)
{
	u64 id = member->id;

	if (!member->marked_ns)
		return;
	member->marked_ns = 0;
	bpf_map_delete_elem(&ar_marks, &id);
}

static __always_inline void mark(struct ar_pressure *pressure, struct ar_pressure_member *member, u64 now)
{
	u64 id = member->id, until = now + MARK_NS;

	if (now < member->rest_ns)
		return;
	if (!member->marked_ns) {
		member->marked_ns = now;
	} else if (now - member->marked_ns > LONGEST_NS) {
		member->rest_ns = now + REST_NS;
		unmark(member);
		return;
	}
	pressure->marks++;
	bpf_map_update_elem(&ar_marks, &id, &until, BPF_ANY);
}

static __always_inline void tell_short(struct ar_pressure *pressure, u64 id, u64 left, u64 now)
{
	bool is_less = left + pressure->limit_bytes / 64 < pressure->told_left;
	struct ar_event *event;

	if (!is_less && now - pressure->told_ns < TELL_NS)
		return;
	pressure->told_ns = now;
	pressure->told_left = left;
	event = bpf_ringbuf_reserve(&ar_ring, sizeof(*event), 0);
	if (!event) {
		count_drop(AR_EVENT_PRESSURE);
		return;
	}
	fill_event(event, AR_EVENT_PRESSURE, id);
	event->value = left >> 20;
	tell(event);
}

static __always_inline struct ar_pressure_member *member_at(struct ar_pressure *pressure, u32 i)
{
	return &pressure->members[i & (AR_PRESSURE_MEMBERS - 1)];
}

/* The highest rank that has grown lately; 0 for nobody. */
static __noinline u32 observe_all(struct ar_pressure *pressure, u64 now)
{
	u32 top = 0, i;

	if (!pressure)
		return 0;
	bpf_for(i, 0, pressure->count) {
		struct ar_pressure_member *member = member_at(pressure, i);

		observe(member, now);
		if (member->grew_ns && now - member->grew_ns < QUIET_NS && member->rank > top)
			top = member->rank;
	}
	return top;
}

/* Mark whoever is to wait, and let go of the others; whether there is anybody who is to wait. */
static __noinline bool mark_all(struct ar_pressure *pressure, u32 top, u64 now)
{
	bool is_any = false;
	u32 i;

	if (!pressure)
		return false;
	bpf_for(i, 0, pressure->count) {
		struct ar_pressure_member *member = member_at(pressure, i);
		bool is_lower = member->is_populated && member->rank < top && member->usage > member->soft_bytes;

		is_any |= is_lower;
		if (is_lower && pressure->is_short && pressure->how & AR_PRESSURE_MARK)
			mark(pressure, member, now);
		else
			unmark(member);
	}
	return is_any;
}

static __noinline int look(u64 id)
{
	struct ar_pressure *pressure = bpf_map_lookup_elem(&ar_pressure, &id);
	u64 now = bpf_ktime_get_ns(), before, usage = 0, left;
	u32 top;

	if (!pressure)
		return 0;
	before = pressure->looked_ns;
	if (now - before < GAP_NS || !__sync_bool_compare_and_swap(&pressure->looked_ns, before, now))
		return 0;
	pressure->looks++;
	read_cgroup(id, true, &usage);
	left = usage < pressure->limit_bytes ? pressure->limit_bytes - usage : 0;
	pressure->is_short = left < (pressure->is_short ? pressure->ample_bytes : pressure->tight_bytes);
	top = observe_all(pressure, now);
	if (mark_all(pressure, top, now) && pressure->is_short && pressure->how & AR_PRESSURE_TELL)
		tell_short(pressure, id, left, now);
	if (!pressure->is_short)
		pressure->told_left = pressure->limit_bytes;
	return 0;
}

static long look_by_timer(void *map, u64 *id, struct ar_pressure *pressure, u32 *count)
{
	if (pressure->how & AR_PRESSURE_TIMER) {
		look(*id);
		(*count)++;
	}
	return 0;
}

static int tick(void *map, u32 *key, struct pressure_timer *timer)
{
	u32 count = 0;

	bpf_for_each_map_elem(&ar_pressure, look_by_timer, &count, 0);
	if (count)
		bpf_timer_start(&timer->timer, TICK_NS, 0);
	else
		timer_runs = 0;
	return 0;
}

static __always_inline void run_timer(void)
{
	u32 zero = 0;
	struct pressure_timer *timer = bpf_map_lookup_elem(&ar_pressure_timer, &zero);

	if (!timer || __sync_val_compare_and_swap(&timer_runs, 0, 1))
		return;
	if (!__sync_val_compare_and_swap(&timer_made, 0, 1)) {
		bpf_timer_init(&timer->timer, &ar_pressure_timer, CLOCK_MONOTONIC);
		bpf_timer_set_callback(&timer->timer, tick);
	}
	bpf_timer_start(&timer->timer, TICK_NS, 0);
}

/* Looks at every limit around a call that is watched: its container's, a pod's. */
static __noinline int look_upwards(struct cgroup *cgrp)
{
	u32 i;

	if (!cgrp)
		return 0;
	for (i = 0; i < MAX_LEVELS; i++) {
		struct ar_pressure *pressure;
		u64 id;

		cgrp = parent_of(cgrp);
		if (!cgrp)
			return 0;
		id = cgrp->kn->id;
		pressure = bpf_map_lookup_elem(&ar_pressure, &id);
		if (!pressure)
			continue;
		if (pressure->how & AR_PRESSURE_TIMER)
			run_timer(); /* the first charge begins it; it goes on while there is anything to look at */
		else
			look(id);
	}
	return 0;
}

/* Every charge of the host comes here (the stock of a CPU is looked at inside of it): one lookup for who is no call
 * that is watched. */
SEC("fentry/try_charge_memcg")
int BPF_PROG(on_charge, struct mem_cgroup *memcg)
{
	struct cgroup *cgrp = memcg->css.cgroup;
	u64 id = cgrp->kn->id;

	if (bpf_map_lookup_elem(&ar_pressure_calls, &id))
		look_upwards(cgrp);
	return 0;
}
