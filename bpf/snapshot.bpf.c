// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What calls use, all of them in one system call: agentrund runs this program (BPF_PROG_RUN) instead of reading
 * three files a call. Not an iterator (iter/cgroup): that walks every cgroup below one with cgroup_mutex held,
 * which whoever makes a cgroup waits for, and its output has to fit one buffer of the kernel.
 */
#include "compat.h"
#include "agentrun.h"
#include "loops.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Who is asked about, and the answers; agentrund has it mapped. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, AR_SNAPSHOT_CALLS);
	__type(key, u32);
	__type(value, struct ar_seen);
} ar_seen SEC(".maps");

static __noinline int look(struct ar_seen *seen)
{
	struct mem_cgroup *memcg;
	struct cgroup *cgrp;

	if (!seen)
		return 0;
	seen->is_populated = 0;
	cgrp = bpf_cgroup_from_id(seen->id);
	if (!cgrp)
		return 0;
	seen->is_populated = cgrp->self.nr_populated_csets + cgrp->self.nr_populated_children > 0;
	memcg = bpf_get_mem_cgroup(&cgrp->self);
	if (memcg) {
		seen->usage = bpf_mem_cgroup_usage(memcg);
		seen->high = bpf_mem_cgroup_memory_events(
			memcg, bpf_core_enum_value(enum memcg_memory_event, MEMCG_HIGH));
		bpf_put_mem_cgroup(memcg);
	}
	bpf_cgroup_release(cgrp);
	return 0;
}

/* The first `count` entries of ar_seen. */
SEC("syscall")
int read_calls(struct ar_snapshot *asked)
{
	u32 count = asked->count, i;

	bpf_for(i, 0, count) {
		u32 place = i;
		struct ar_seen *seen = bpf_map_lookup_elem(&ar_seen, &place);

		if (!seen)
			break;
		look(seen);
	}
	return 0;
}
