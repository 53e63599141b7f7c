// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * agentrun's CPU scheduler (sched_ext): weighted fair shares by cgroup, from the root down to a single tool call.
 *
 * Model. Each cgroup has a virtual time: what its tasks ran, divided by the share that its weight and those of
 * its ancestors give it among what is active now (scx/groups.h). Whenever a CPU has to choose, the group that is
 * furthest behind runs, and in it the task that is furthest behind (scx/queues.h). A slice is paid when it
 * begins and put right when it ends, so that CPUs that choose at the same time do not all choose the same group.
 * A group that slept comes back at the CPU's present time: nobody saves up.
 *
 * Wake-ups go to an idle CPU at once. Without one, the agent's own leaf interrupts what runs while it keeps
 * within its share, and so does, a little later, any task that only ever runs for a moment.
 *
 * cpu.max is honoured here (scx/bandwidth.h), because the kernel's own throttle does not reach sched_ext.
 * What has no place or no memory falls back to the kernel's global queue, never to nowhere.
 */
#include "scx/dispatch.h"

char _license[] SEC("license") = "Dual BSD/GPL";

SEC("struct_ops/ar_select_cpu")
s32 BPF_PROG(ar_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct task_state *task = state_of(p);
	bool is_idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);

	if (is_idle && task && !(nr_limited && is_held(task->slot, scx_bpf_now()))) {
		task->is_boosted = 0;
		count(COUNT_DIRECT);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
	}
	return cpu;
}

/* The agent's own leaf, within its share. */
static __always_inline bool may_boost(struct group *group, s32 cpu, u64 inverse)
{
	u64 farthest = cpu_at(cpu)->vnow + scale(slice_ns, inverse) * lag_slices;

	return agent_boost && group->is_agent && !is_before(farthest, group->vtime);
}

static __always_inline void boost(struct task_struct *p, struct task_state *task, s32 cpu, u64 enq_flags)
{
	u64 how = cpu_at(cpu)->is_boosted ? 0 : ENUM(scx_enq_flags, SCX_ENQ_PREEMPT);

	task->is_boosted = 1;
	count(COUNT_BOOSTED);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags | how);
}

/* An interactive task of a group that is behind the one that runs. */
static __always_inline bool may_preempt(struct task_state *task, s32 cpu, u64 now)
{
	struct cpu_state *at = cpu_at(cpu);

	return task->burst_ns < interactive_ns && !at->is_boosted && at->slot != task->slot &&
	       now - at->started >= preempt_after_ns &&
	       is_before(group_at(task->slot)->vtime, group_at(at->slot)->vtime);
}

SEC("struct_ops/ar_enqueue")
void BPF_PROG(ar_enqueue, struct task_struct *p, u64 enq_flags)
{
	bool is_wakeup = enq_flags & ENUM(scx_enq_flags, SCX_ENQ_WAKEUP), is_kthread = p->flags & PF_KTHREAD;
	struct task_state *task = state_of(p);
	s32 cpu = scx_bpf_task_cpu(p);
	u64 now = scx_bpf_now(), inverse;
	struct group *group;

	if (!task) {
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns, enq_flags);
		return;
	}
	task->is_boosted = 0;
	/* Only on a wake-up: one that burns a whole slice lines up with everybody else. */
	if (is_kthread && is_wakeup) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags | ENUM(scx_enq_flags, SCX_ENQ_HEAD));
		return;
	}
	group = group_at(task->slot);
	if (broken_group_id && group->id == broken_group_id)
		return;
	inverse = inverse_share(task->slot);
	bound_lag(group, cpu, inverse, is_wakeup && group->nr_own == 1);
	if (!is_kthread && nr_limited && is_held(task->slot, now)) {
		queue_with_group(p, task, inverse, true, enq_flags);
		return;
	}
	if (parking && is_marked(task->slot) && may_park(p, enq_flags)) {
		park(p, task, enq_flags);
		return;
	}
	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_LAST)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		return;
	}
	if (is_wakeup && may_boost(group, cpu, inverse)) {
		boost(p, task, cpu, enq_flags);
		return;
	}
	if (p->nr_cpus_allowed < nr_online)
		cpu = queue_on_cpu(p, task, inverse, enq_flags);
	else
		queue_with_group(p, task, inverse, false, enq_flags);
	if (is_wakeup && may_preempt(task, cpu, now)) {
		count(COUNT_PREEMPTED);
		scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
	}
}

SEC("struct_ops/ar_dispatch")
void BPF_PROG(ar_dispatch, s32 cpu, struct task_struct *prev)
{
	bool is_prev = prev && prev->scx.flags & ENUM(scx_ent_flags, SCX_TASK_QUEUED), has_head;
	struct task_state *task = is_prev ? state_of(prev) : NULL;
	struct candidate best = {};
	struct task_struct *head;
	u64 now = scx_bpf_now(), inverse = SHARE_ONE, head_tag = 0, behind;

	if (are_parked())
		release(bpf_ktime_get_ns());
	is_prev = task;
	if (task) {
		inverse = inverse_share(task->slot);
		settle(prev, inverse);
		is_prev = !(nr_limited && is_held(task->slot, now)) && !(parking && is_marked(task->slot));
	}
	head = scx_bpf_dsq_peek(DSQ_CPU + cpu);
	has_head = head;
	if (head)
		head_tag = head->scx.dsq_vtime;
	if (nr_waiting_groups_tasks)
		next_group(&best, now);
	behind = has_head && (!best.found || !is_before(best.vtime, head_tag)) ? head_tag : best.vtime;
	if (is_prev && keeps(prev, behind, has_head || best.found)) {
		keep(cpu, prev, inverse);
		return;
	}
	if (take_next(cpu, has_head, head_tag, &best))
		return;
	if (is_prev)
		keep(cpu, prev, inverse);
	else
		steal(cpu);
}

SEC("struct_ops/ar_runnable")
void BPF_PROG(ar_runnable, struct task_struct *p, u64 enq_flags)
{
	struct task_state *task = state_of(p);

	if (!task || task->counted_slot)
		return;
	task->counted_slot = task->slot + 1;
	task->woke_at = p->se.sum_exec_runtime;
	__sync_fetch_and_add(&group_at(task->slot)->nr_own, 1);
	activate(task->slot);
}

SEC("struct_ops/ar_running")
void BPF_PROG(ar_running, struct task_struct *p)
{
	struct task_state *task = state_of(p);
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu_state *at = cpu_at(cpu);
	struct group *group;
	bool has_waited;

	if (!task)
		return;
	/* who came past the queue (woken on an idle CPU, boosted, a kthread) says nothing about its time */
	has_waited = task->waiting != NOT_WAITING;
	end_waiting(task);
	group = group_at(task->slot);
	task->ran_until = p->se.sum_exec_runtime;
	if (!task->reserved) {
		u64 inverse = inverse_share(task->slot);

		if (!has_waited)
			bound_lag(group, cpu, inverse, group->nr_own == 1);
		task->tag = group->vtime;
		reserve(task, slice_ns, inverse);
	}
	if (has_waited && is_before(at->vnow, task->tag))
		at->vnow = task->tag;
	if (is_before(vnow_latest, at->vnow))
		vnow_latest = at->vnow;
	if (is_before(group->task_vtime, task->vtime))
		group->task_vtime = task->vtime;
	if (parking)
		bound_burst(task->slot, cpu);
	at->started = scx_bpf_now();
	at->slot = task->slot;
	at->is_boosted = task->is_boosted;
}

SEC("struct_ops/ar_stopping")
void BPF_PROG(ar_stopping, struct task_struct *p, bool runnable)
{
	struct task_state *task = state_of(p);

	if (!task)
		return;
	settle(p, inverse_share(task->slot));
	if (!runnable)
		task->burst_ns = (task->burst_ns * 3 + p->se.sum_exec_runtime - task->woke_at) / 4;
}

SEC("struct_ops/ar_quiescent")
void BPF_PROG(ar_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct task_state *task = state_of(p);
	u32 slot;

	if (!task)
		return;
	end_waiting(task);
	if (task->reserved) { /* it never ran */
		__sync_fetch_and_add(&group_at(task->slot)->vtime, -task->reserved);
		task->reserved = 0;
	}
	if (!task->counted_slot)
		return;
	slot = task->counted_slot - 1;
	task->counted_slot = 0;
	__sync_fetch_and_add(&group_at(slot)->nr_own, -1);
	deactivate(slot);
}

/* A CPU that was idle begins at the time of the others. And who queued a task while this one was still on its
 * way to idle found no idle CPU to kick. */
SEC("struct_ops/ar_update_idle")
void BPF_PROG(ar_update_idle, s32 cpu, bool idle)
{
	struct cpu_state *at = cpu_at(cpu);

	if (is_before(at->vnow, vnow_latest))
		at->vnow = vnow_latest;
	if (idle) {
		at->slot = ROOT_SLOT;
		at->is_boosted = 0;
		if (nr_waiting_groups_tasks)
			scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_IDLE));
	}
}

SEC("struct_ops.s/ar_init_task")
s32 BPF_PROG(ar_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_state *task = bpf_task_storage_get(&ar_scx_tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!task)
		return -ENOMEM;
	__builtin_memset(task, 0, sizeof(*task));
	task->slot = slot_of(args->cgroup);
	task->vtime = group_at(task->slot)->task_vtime;
	return 0;
}

SEC("struct_ops.s/ar_cgroup_init")
s32 BPF_PROG(ar_cgroup_init, struct cgroup *cgroup, struct scx_cgroup_init_args *args)
{
	u64 id = cgroup->kn->id;
	struct slot slot = {.number = ROOT_SLOT, .is_own = 1};
	s32 error;

	if (cgroup->level)
		slot.number = take_slot();
	if (cgroup->level && slot.number == ROOT_SLOT) {
		slot.number = parent_slot(cgroup);
		slot.is_own = 0;
		count(COUNT_SHARED_SLOT);
		bpf_map_update_elem(&ar_scx_slots, &id, &slot, BPF_ANY);
		return 0; /* without an entry it counts as the root: worse shares, no harm */
	}
	error = start_group(slot.number, cgroup, args->weight);
	if (!error)
		error = bpf_map_update_elem(&ar_scx_slots, &id, &slot, BPF_ANY);
	if (error) {
		group_at(slot.number)->used = 0;
		return error;
	}
	set_limit(slot.number, args->bw_period_us, args->bw_quota_us, args->bw_burst_us);
	if (nr_limited)
		run_timer();
	return 0;
}

SEC("struct_ops.s/ar_cgroup_exit")
void BPF_PROG(ar_cgroup_exit, struct cgroup *cgroup)
{
	u64 id = cgroup->kn->id;
	struct slot *slot = own_slot(cgroup);
	u32 number;

	if (slot && slot->number != ROOT_SLOT) {
		number = slot->number;
		set_limit(number, 0, 0, 0);
		group_at(number)->id = 0;
		group_at(number)->used = 0;
	}
	bpf_map_delete_elem(&ar_scx_slots, &id);
}

SEC("struct_ops/ar_cgroup_move")
void BPF_PROG(ar_cgroup_move, struct task_struct *p, struct cgroup *from, struct cgroup *to)
{
	struct task_state *task = state_of(p);

	if (!task)
		return;
	task->slot = slot_of(to);
	task->vtime = group_at(task->slot)->task_vtime;
}

SEC("struct_ops/ar_cgroup_set_weight")
void BPF_PROG(ar_cgroup_set_weight, struct cgroup *cgroup, u32 weight)
{
	struct slot *slot = own_slot(cgroup);

	if (slot)
		set_weight(slot->number, weight);
}

SEC("struct_ops/ar_cgroup_set_bandwidth")
void BPF_PROG(ar_cgroup_set_bandwidth, struct cgroup *cgroup, u64 period_us, u64 quota_us, u64 burst_us)
{
	struct slot *slot = own_slot(cgroup);

	if (!slot)
		return;
	set_limit(slot->number, period_us, quota_us, burst_us);
	if (nr_limited)
		run_timer();
}

SEC("struct_ops.s/ar_init")
s32 BPF_PROG(ar_init)
{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	struct ar_scx_exit *last;
	u32 zero = 0;
	s32 cpu, error;

	/* clang describes a type that is only pointed to by its name alone, which libbpf then takes for another one
	 * than the kernel's; asking for it makes it whole */
	if (!bpf_core_type_exists(struct cpumask))
		return -ENOMEM;
	nr_online = bpf_cpumask_weight(online);
	scx_bpf_put_cpumask(online);
	error = scx_bpf_create_dsq(DSQ_PARKED, -1);
	if (error)
		return error;
	nr_cpus = scx_bpf_nr_cpu_ids();
	if (nr_cpus > MAX_CPUS)
		return -ENOMEM;
	bpf_for(cpu, 0, nr_cpus) {
		error = scx_bpf_create_dsq(DSQ_CPU + cpu, -1);
		if (error)
			return error;
	}
	last = bpf_map_lookup_elem(&ar_scx_exit, &zero);
	if (last)
		__builtin_memset(last, 0, sizeof(*last));
	error = init_bursts();
	if (error)
		return error;
	return init_timer();
}

SEC("struct_ops.s/ar_exit")
void BPF_PROG(ar_exit, struct scx_exit_info *info)
{
	u32 zero = 0;
	struct ar_scx_exit *last = bpf_map_lookup_elem(&ar_scx_exit, &zero);

	stop_timer();
	stop_bursts();
	if (!last)
		return;
	last->code = info->exit_code;
	last->time_ns = bpf_ktime_get_boot_ns();
	bpf_probe_read_kernel_str(last->reason, sizeof(last->reason), info->reason);
	bpf_probe_read_kernel_str(last->message, sizeof(last->message), info->msg);
	last->kind = info->kind;
}

SEC(".struct_ops.link")
struct sched_ext_ops agentrun = {
	.select_cpu = (void *)ar_select_cpu,
	.enqueue = (void *)ar_enqueue,
	.dispatch = (void *)ar_dispatch,
	.runnable = (void *)ar_runnable,
	.running = (void *)ar_running,
	.stopping = (void *)ar_stopping,
	.quiescent = (void *)ar_quiescent,
	.update_idle = (void *)ar_update_idle,
	.init_task = (void *)ar_init_task,
	.cgroup_init = (void *)ar_cgroup_init,
	.cgroup_exit = (void *)ar_cgroup_exit,
	.cgroup_move = (void *)ar_cgroup_move,
	.cgroup_set_weight = (void *)ar_cgroup_set_weight,
	.cgroup_set_bandwidth = (void *)ar_cgroup_set_bandwidth,
	.init = (void *)ar_init,
	.exit = (void *)ar_exit,
	.flags = SCX_OPS_ENQ_LAST | SCX_OPS_KEEP_BUILTIN_IDLE,
	.timeout_ms = TIMEOUT_MS,
	.name = "agentrun",
};
