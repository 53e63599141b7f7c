/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The ring buffer that all modules share, and which cgroup is a call. */
#ifndef AGENTRUN_EVENTS_BPF_H
#define AGENTRUN_EVENTS_BPF_H

#include "agentrun.h"
#include "compat.h"

#define AR_WALK 8 /* cgroups between a task and its call that are looked at: who nests deeper has no events */

/* Pinned by name, so that a new version of a module goes on in the same buffer (a change of size needs a new
 * name: libbpf refuses to reuse a map that differs).
 */
#define AR_RING_SIZE (256 * 1024)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, AR_RING_SIZE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ar_ring SEC(".maps");

/* Events that did not fit, by kind (0: of all). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, u32);
	__type(value, u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ar_dropped SEC(".maps");

static __always_inline void count_drop(u32 kind)
{
	u64 *dropped = bpf_map_lookup_elem(&ar_dropped, &kind);

	if (dropped)
		__sync_fetch_and_add(dropped, 1);
	kind = 0;
	dropped = bpf_map_lookup_elem(&ar_dropped, &kind);
	if (dropped)
		__sync_fetch_and_add(dropped, 1);
}

/* Whether a cgroup is the parent of calls. Two overlapping words instead of a loop: this is on hot paths. */
static __always_inline bool is_calls(const struct cgroup *cgrp)
{
	const char want[16] = AR_CALLS;
	u64 name[2] = {};

	if (!cgrp || bpf_probe_read_kernel_str(name, sizeof(name), cgrp->kn->name) != sizeof(AR_CALLS))
		return false;
	return name[0] == *(const u64 *)want && name[1] == *(const u64 *)(want + 8);
}

static __always_inline struct cgroup *parent_of(const struct cgroup *cgrp)
{
	struct cgroup_subsys_state *parent = cgrp->self.parent;

	return parent ? parent->cgroup : NULL;
}

/* The call that a cgroup is or is in, looked for `steps` up; NULL for none. `at_root`: all the way was looked. */
static __always_inline struct cgroup *find_call(struct cgroup *cgrp, int steps, bool *at_root)
{
	*at_root = false;
	for (int i = 0; i < steps; i++) {
		struct cgroup *parent = parent_of(cgrp);

		if (!parent) {
			*at_root = true;
			return NULL;
		}
		if (is_calls(parent))
			return cgrp;
		cgrp = parent;
	}
	return NULL;
}

static __always_inline struct cgroup *call_of(struct cgroup *cgrp)
{
	bool at_root;

	return find_call(cgrp, AR_WALK, &at_root);
}

/* Tell the reader now. Without FORCE the kernel wakes it only if it has read all before this record, which is not
 * so after tell_later().
 */
static __always_inline void tell(void *record)
{
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
}

/* Leave it for when there is something to tell (nobody waits for an exec), or until half of the buffer is full. */
static __always_inline void tell_later(void *record)
{
	bool is_half = bpf_ringbuf_query(&ar_ring, BPF_RB_AVAIL_DATA) > AR_RING_SIZE / 2;

	bpf_ringbuf_submit(record, is_half ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

/* Whether what nobody waits for still has room: the last quarter is for ends, OOM victims and denials, so that
 * no container's execs can hide those.
 */
static __always_inline bool has_room(void)
{
	return bpf_ringbuf_query(&ar_ring, BPF_RB_AVAIL_DATA) < AR_RING_SIZE / 4 * 3;
}

static __always_inline void fill_event(struct ar_event *event, u32 kind, u64 call)
{
	event->time_ns = bpf_ktime_get_boot_ns();
	event->call = call;
	event->kind = kind;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->value = 0;
	event->pad = 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

#endif
