// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What happens in calls, into one ring buffer: the first and the last process of a call, its execs and exits,
 * OOM victims with whose limit they died for, and tasks that are moved into a call from outside.
 *
 * The exact end of a call is cgroup_notify_populated with 0; the kernel reports it in any context, so the current
 * task says nothing there. It also fires for every ancestor, hence the test that the cgroup itself is a call.
 * Execs and exits of one call are limited to `burst` a second (a build runs thousands); what is left out is
 * counted as dropped, and nothing depends on it.
 */
#include "events.bpf.h"
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "Dual BSD/GPL";

const volatile u32 burst = 50; /* exec and exit events of one call in a second */

#define SECOND_NS 1000000000ULL

struct pace {
	u64 second_ns;
	u32 count;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct pace);
} ar_pace SEC(".maps");

/* Whether one more exec or exit of a call may be told. Two CPUs may both count one: it is a bound, not a number. */
static __always_inline bool in_pace(u64 call)
{
	u64 now = bpf_ktime_get_boot_ns();
	struct pace *pace = bpf_map_lookup_elem(&ar_pace, &call);

	if (!pace) {
		struct pace first = { .second_ns = now, .count = 1 };

		bpf_map_update_elem(&ar_pace, &call, &first, BPF_ANY);
		return true;
	}
	if (now - pace->second_ns > SECOND_NS) {
		pace->second_ns = now;
		pace->count = 0;
	}
	return __sync_fetch_and_add(&pace->count, 1) < burst;
}

static __always_inline struct ar_event *reserve(u32 kind, u64 call)
{
	struct ar_event *event = bpf_ringbuf_reserve(&ar_ring, sizeof(*event), 0);

	if (!event) {
		count_drop(kind);
		return NULL;
	}
	fill_event(event, kind, call);
	return event;
}

static __always_inline void take_comm(struct ar_event *event, const struct task_struct *task)
{
	bpf_probe_read_kernel_str(event->comm, sizeof(event->comm), task->comm);
}

SEC("tp_btf/cgroup_notify_populated")
int BPF_PROG(on_populated, struct cgroup *cgrp, const char *path, int populated)
{
	struct ar_event *event;

	if (!is_calls(parent_of(cgrp)))
		return 0;
	event = reserve(AR_EVENT_POPULATED, cgrp->kn->id);
	if (event) {
		event->value = populated;
		tell(event);
	}
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct cgroup *call = call_of(task->cgroups->dfl_cgrp);
	struct ar_event *event;
	u64 id;

	if (!call)
		return 0;
	id = call->kn->id;
	if (!has_room() || !in_pace(id)) {
		count_drop(AR_EVENT_EXEC);
		return 0;
	}
	event = reserve(AR_EVENT_EXEC, id);
	if (event) {
		take_comm(event, task);
		tell_later(event);
	}
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct ar_event *event;
	struct cgroup *call;
	u64 id;

	if (task->pid != task->tgid)
		return 0;
	call = call_of(task->cgroups->dfl_cgrp);
	if (!call)
		return 0;
	id = call->kn->id;
	if (!has_room() || !in_pace(id)) {
		count_drop(AR_EVENT_EXIT);
		return 0;
	}
	event = reserve(AR_EVENT_EXIT, id);
	if (event) {
		event->value = task->exit_code;
		event->pid = task->tgid;
		take_comm(event, task);
		tell_later(event);
	}
	return 0;
}

/*
 * The OOM kill that is under way. There is one at a time in the whole system, and all of it happens in the task
 * that ran out of memory, under oom_lock (mm/oom_kill.c): out_of_memory() chooses, and mark_victim follows for
 * each process that is killed for it.
 */
struct {
	u64 control; /* address of its struct oom_control, on that task's stack */
	u64 limit;
	u64 task;    /* bpf_get_current_pid_tgid() */
} oom;

SEC("fentry/out_of_memory")
int BPF_PROG(on_oom, struct oom_control *control)
{
	struct mem_cgroup *memcg = control->memcg;

	oom.control = (u64)control;
	oom.limit = memcg ? memcg->css.cgroup->kn->id : AR_LIMIT_HOST;
	oom.task = bpf_get_current_pid_tgid();
	return 0;
}

/* Whether the process is the one that was chosen. Else it dies because memory.oom.group is set above it. */
static __always_inline bool is_chosen(const struct task_struct *task)
{
	const struct oom_control *control = (const void *)oom.control;
	const struct task_struct *chosen = BPF_CORE_READ(control, chosen);

	return BPF_CORE_READ(chosen, tgid) == task->tgid; /* a thread of it with memory may take its place */
}

/*
 * A call that is killed for memory ends within a millisecond or two, and conmon (podman) then reads what is in
 * its pipes and goes. So the first process of a call, when it is an OOM victim, waits on its way out until
 * agentrund has written there what happened, or a few milliseconds are over (docs/feedback.md). It has given back
 * its memory by then (exit_mm), holds no lock, and can be preempted; what it spends is its own call's CPU time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct ar_listener);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ar_listener SEC(".maps");

/* Until when (CLOCK_BOOTTIME) victims of a call wait; 0 once it was told. A call waits for its first kill only. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ar_held SEC(".maps");

#define SIGKILL 9
#define AR_SPINS (1 << 23) /* BPF_MAX_LOOPS; a second at least, and hold_ms ends it before */

static __always_inline void hold(u64 call)
{
	u32 first = 0;
	u64 now = bpf_ktime_get_boot_ns();
	const struct ar_listener *listener = bpf_map_lookup_elem(&ar_listener, &first);
	u64 until;

	if (!listener || !listener->hold_ms || listener->until_ns < now)
		return;
	until = now + listener->hold_ms * 1000000ULL;
	bpf_map_update_elem(&ar_held, &call, &until, BPF_NOEXIST);
}

static long is_over(u32 turn, const u64 *call)
{
	const u64 *until = bpf_map_lookup_elem(&ar_held, call);

	return !until || *until <= bpf_ktime_get_boot_ns();
}

SEC("fentry/exit_files")
int BPF_PROG(on_exit_files, struct task_struct *task)
{
	struct cgroup *call;
	u64 id;

	if (task->pid != task->tgid || (task->exit_code & 0x7f) != SIGKILL)
		return 0;
	call = call_of(task->cgroups->dfl_cgrp);
	if (!call || call_of(task->real_parent->cgroups->dfl_cgrp) == call)
		return 0;
	id = call->kn->id;
	if (!is_over(0, &id))
		bpf_loop(AR_SPINS, is_over, &id, 0);
	return 0;
}

SEC("tp_btf/mark_victim")
int BPF_PROG(on_victim, struct task_struct *task)
{
	bool is_known = oom.task == bpf_get_current_pid_tgid();
	struct cgroup *call = call_of(task->cgroups->dfl_cgrp);
	struct ar_oom *victim;

	if (!call)
		return 0;
	victim = bpf_ringbuf_reserve(&ar_ring, sizeof(*victim), 0);
	if (!victim) {
		count_drop(AR_EVENT_OOM_VICTIM);
		return 0;
	}
	fill_event(&victim->event, AR_EVENT_OOM_VICTIM, call->kn->id);
	victim->event.pid = task->tgid;
	victim->event.value = !is_known || is_chosen(task);
	take_comm(&victim->event, task);
	victim->limit = is_known ? oom.limit : AR_LIMIT_UNKNOWN;
	victim->pages = pages_of(task);
	hold(call->kn->id);
	tell(victim);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_attach, struct cgroup *cgrp, const char *path, struct task_struct *task, bool threadgroup)
{
	struct ar_event *event;

	if (!is_calls(parent_of(cgrp)))
		return 0;
	if (!has_room()) {
		count_drop(AR_EVENT_ATTACH);
		return 0;
	}
	event = reserve(AR_EVENT_ATTACH, cgrp->kn->id);
	if (event) {
		event->pid = task->tgid;
		take_comm(event, task);
		tell_later(event);
	}
	return 0;
}
