// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the calls of one container do, for `agentrunctl trace`. bcc compiles it on the host, each time anew.
 *
 * agentrun/trace/source.py defines, all as numbers: AR_CONTAINER and AR_CALLS (ids of the container's cgroup and of
 * its `agentrun-calls`), AR_LEVEL (how deep the container's cgroup is), AR_ENTRIES (calls that are counted at once),
 * and which parts are wanted: AR_MEMORY, AR_FAULTS, AR_HIGH, AR_CPU, AR_SYSCALLS.
 *
 * Only tracepoints, whose arguments bcc takes from the running kernel, and no type of the kernel: what a header of a
 * kernel newer than bcc says cannot break it. A task's cgroup is only known while that task is the current one.
 */

/* What is asked for by numbers: a call's counters are by the id of its cgroup. */
struct ar_counts {
	u64 faults;
	u64 pages;
	u64 reclaims;
	u64 reclaim_ns;
	u64 highs;
	u64 high_ns;
	u64 waits;
	u64 wait_ns;
};

/* Per CPU, so that calls that fault on all of them do not share a line. A count may be lost where an interrupt comes
 * between reading and writing one: this is a diagnosis, no bill.
 */
BPF_PERCPU_HASH(ar_counts, u64, struct ar_counts, AR_ENTRIES);
/* What a full table could not take. */
BPF_ARRAY(ar_lost, u64, 1);

static __always_inline void count_lost(void)
{
	int zero = 0;
	u64 *lost = ar_lost.lookup(&zero);

	if (lost)
		lock_xadd(lost, 1);
}

/* The cgroup that the current task counts for: its call, else the leaf that it is in, else the container; 0 where it
 * is not of the container. A call's own cgroups below it count for the call.
 */
static __always_inline u64 where(void)
{
	u64 id;

	if (bpf_get_current_ancestor_cgroup_id(AR_LEVEL) != AR_CONTAINER)
		return 0;
	id = bpf_get_current_ancestor_cgroup_id(AR_LEVEL + 1);
	if (id == AR_CALLS)
		id = bpf_get_current_ancestor_cgroup_id(AR_LEVEL + 2);
	return id ? id : AR_CONTAINER;
}

static __always_inline struct ar_counts *counts_of(u64 id)
{
	struct ar_counts zero = {};
	struct ar_counts *counts = ar_counts.lookup_or_try_init(&id, &zero);

	if (!counts)
		count_lost();
	return counts;
}

#ifdef AR_HIGH
/* Being over memory.high has no tracepoint. By fentry and fexit (BTF), because a kretprobe has room for a few tasks
 * only, and these sleep. AR_HIGH is 1 where the function has its newer name, else 0. First in this file: bcc attaches
 * in order, and where a kernel takes no such program nothing else is attached yet.
 */
#if AR_HIGH
#define AR_OVER_HIGH __mem_cgroup_handle_over_high
#else
#define AR_OVER_HIGH mem_cgroup_handle_over_high
#endif
#define AR_ENTRY(name) KFUNC_PROBE(name)
#define AR_RETURN(name) KRETFUNC_PROBE(name)
#define AR_SHORT_NS 1000000 /* it returns at once where there is no reason to wait */

BPF_TABLE("lru_hash", u32, u64, ar_over, 16384);

AR_ENTRY(AR_OVER_HIGH)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();

	if (where())
		ar_over.update(&task, &now);
	return 0;
}

AR_RETURN(AR_OVER_HIGH)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 *since = ar_over.lookup(&task);
	struct ar_counts *counts;
	u64 took, id;

	if (!since)
		return 0;
	took = bpf_ktime_get_ns() - *since;
	ar_over.delete(&task);
	id = took > AR_SHORT_NS ? where() : 0;
	counts = id ? counts_of(id) : NULL;
	if (counts) {
		counts->highs++;
		counts->high_ns += took;
	}
	return 0;
}
#endif

#ifdef AR_MEMORY
/* Since when a task is in reclaim. */
BPF_TABLE("lru_hash", u32, u64, ar_reclaiming, 16384);

#ifdef AR_FAULTS
TRACEPOINT_PROBE(exceptions, page_fault_user)
{
	u64 id = where();
	struct ar_counts *counts = id ? counts_of(id) : NULL;

	if (counts)
		counts->faults++;
	return 0;
}
#endif

TRACEPOINT_PROBE(kmem, mm_page_alloc)
{
	u64 id = where();
	struct ar_counts *counts = id ? counts_of(id) : NULL;

	if (counts)
		counts->pages += 1ULL << (args->order & 31);
	return 0;
}

static __always_inline int begin_reclaim(void)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();

	if (where())
		ar_reclaiming.update(&task, &now);
	return 0;
}

static __always_inline int end_reclaim(void)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 *since = ar_reclaiming.lookup(&task);
	struct ar_counts *counts;
	u64 id;

	if (!since)
		return 0;
	id = where();
	counts = id ? counts_of(id) : NULL;
	if (counts) {
		counts->reclaims++;
		counts->reclaim_ns += bpf_ktime_get_ns() - *since;
	}
	ar_reclaiming.delete(&task);
	return 0;
}

/* For the host's or a NUMA node's memory, and for a limit: its own, the container's, or one above. */
TRACEPOINT_PROBE(vmscan, mm_vmscan_direct_reclaim_begin) { return begin_reclaim(); }
TRACEPOINT_PROBE(vmscan, mm_vmscan_direct_reclaim_end) { return end_reclaim(); }
TRACEPOINT_PROBE(vmscan, mm_vmscan_memcg_reclaim_begin) { return begin_reclaim(); }
TRACEPOINT_PROBE(vmscan, mm_vmscan_memcg_reclaim_end) { return end_reclaim(); }
#endif

#ifdef AR_CPU
/* A task as it was when it last gave up its CPU. */
struct ar_task {
	u64 id;
	u64 runnable_ns; /* since when it waits for a CPU; 0: it sleeps or runs */
};

BPF_TABLE("lru_hash", u32, struct ar_task, ar_tasks, 65536);

/* The one that gives up its CPU is still the current task here. It goes on waiting where it was preempted, which is
 * also how the time begins in which cpu.max keeps it off.
 */
TRACEPOINT_PROBE(sched, sched_switch)
{
	u64 now = bpf_ktime_get_ns();
	u32 prev = args->prev_pid, next = args->next_pid;
	u64 id = prev ? where() : 0;
	struct ar_counts *counts;
	struct ar_task *task;

	if (id) {
		struct ar_task left = { .id = id, .runnable_ns = args->prev_state & 0xff ? 0 : now };

		ar_tasks.update(&prev, &left);
	}
	task = ar_tasks.lookup(&next);
	if (!task || !task->runnable_ns)
		return 0;
	counts = counts_of(task->id);
	if (counts) {
		counts->waits++;
		counts->wait_ns += now - task->runnable_ns;
	}
	task->runnable_ns = 0;
	return 0;
}

TRACEPOINT_PROBE(sched, sched_wakeup)
{
	u32 pid = args->pid;
	struct ar_task *task = ar_tasks.lookup(&pid);

	if (task && !task->runnable_ns)
		task->runnable_ns = bpf_ktime_get_ns();
	return 0;
}

/* A new task is where its parent is, which is the current one. */
TRACEPOINT_PROBE(sched, sched_wakeup_new)
{
	struct ar_task task = { .id = where(), .runnable_ns = bpf_ktime_get_ns() };
	u32 pid = args->pid;

	if (task.id)
		ar_tasks.update(&pid, &task);
	return 0;
}
#endif

#ifdef AR_SYSCALLS
#define AR_OTHER 1023 /* a number is the caller's choice: none above makes an entry of its own */

struct ar_syscall {
	u64 id;
	u64 number;
};

struct ar_syscall_count {
	u64 count;
	u64 ns;
};

BPF_TABLE("hash", struct ar_syscall, struct ar_syscall_count, ar_syscalls, AR_ENTRIES * 16);
BPF_TABLE("lru_hash", u32, u64, ar_entered, 65536);

static __always_inline struct ar_syscall_count *syscall_of(u64 id, s64 number)
{
	struct ar_syscall key = { .id = id, .number = number >= 0 && number < AR_OTHER ? number : AR_OTHER };
	struct ar_syscall_count zero = {};
	struct ar_syscall_count *found = ar_syscalls.lookup_or_try_init(&key, &zero);

	if (!found)
		count_lost();
	return found;
}

TRACEPOINT_PROBE(raw_syscalls, sys_enter)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns(), id = where();
	struct ar_syscall_count *found = id ? syscall_of(id, args->id) : NULL;

	if (found) {
		lock_xadd(&found->count, 1);
		ar_entered.update(&task, &now);
	}
	return 0;
}

TRACEPOINT_PROBE(raw_syscalls, sys_exit)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 id = where();
	u64 *since = id ? ar_entered.lookup(&task) : NULL;
	struct ar_syscall_count *found = since ? syscall_of(id, args->id) : NULL;

	if (found) {
		lock_xadd(&found->ns, bpf_ktime_get_ns() - *since);
		ar_entered.delete(&task);
	}
	return 0;
}
#endif
