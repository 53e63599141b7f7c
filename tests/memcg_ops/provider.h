/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A test provider of the struct_ops type memcg_bpf_ops, for kernels that do not have it.
 *
 * No released kernel has memcg_bpf_ops; two forms of it were posted (bpf-next RFC v6 of 4 Feb 2026 and
 * v7 of 26 May 2026). FORM chooses one. What the real thing takes from the memory controller's source,
 * this module takes by kprobes:
 *
 *   bpf_struct_ops_link_create   the cgroup that the attach names. A stock kernel ignores these fields,
 *                                so the real attach arguments are checked here: v6 link_create.cgroup.
 *                                relative_fd, v7 link_create.target_fd with BPF_F_CGROUP_FD
 *   try_charge_memcg             the charge hook: get_high_delay_ms (v6), memcg_charged (v7). The delay is
 *                                slept on the way back to user space, as the kernel's own throttle is
 *   mem_cgroup_css_online/offline  handle_cgroup_online/offline
 *
 * below_low, below_min and memcg_uncharged are inlined into reclaim on stock kernels: debugfs drives them
 * (`echo CALLBACK CGROUP > /sys/kernel/debug/memcg_bpf_ops/drive`, the result is in `result`).
 *
 * Attach rules are v6's and v7's: a cgroup takes ops when it has none of its own, when the nearest
 * ancestor's attachment has BPF_F_ALLOW_OVERRIDE, and when nothing below it has ops (so: top-down).
 */
#include <linux/atomic.h>
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/cgroup.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/uaccess.h>

#ifndef BPF_F_CGROUP_FD
#define BPF_F_CGROUP_FD (1U << 7)
#endif

#define PENDING_ATTACHES 16

struct memcg_bpf_ops {
	void (*handle_cgroup_online)(struct mem_cgroup *memcg);
	void (*handle_cgroup_offline)(struct mem_cgroup *memcg);
#if FORM == 6
	bool (*below_low)(struct mem_cgroup *memcg);
	bool (*below_min)(struct mem_cgroup *memcg);
	unsigned int (*get_high_delay_ms)(struct mem_cgroup *memcg);
#else
	bool (*below_low)(struct mem_cgroup *memcg, unsigned long elow, unsigned long usage);
	bool (*below_min)(struct mem_cgroup *memcg, unsigned long emin, unsigned long usage);
	unsigned int (*memcg_charged)(struct mem_cgroup *memcg, unsigned int nr_pages);
	void (*memcg_uncharged)(struct mem_cgroup *memcg, unsigned int nr_pages);
#endif
};

static_assert(sizeof(struct memcg_bpf_ops) == (FORM == 6 ? 40 : 48));

/* One attachment: these ops hold for this cgroup and all below it that have none of their own. */
struct attachment {
	struct list_head list;
	struct bpf_link *link; /* one map may be attached to several cgroups, by several links */
	struct memcg_bpf_ops *ops;
	struct cgroup *cgroup;
	u32 flags;
};

static LIST_HEAD(attachments);
static DEFINE_MUTEX(attach_lock);

/* What BPF_LINK_CREATE was given, from its kprobe to ops_reg, which runs in the same task. */
struct attach_arguments {
	struct task_struct *task;
	u32 target_fd;
	u32 relative_fd;
	u32 flags;
};
static struct attach_arguments pending[PENDING_ATTACHES];
static DEFINE_SPINLOCK(pending_lock);

/* Figures for tests, in debugfs. */
static atomic_t charges, delays, onlines, offlines, sleeping; /* sleeping: tasks in sleep_delay */
static u32 last_delay_ms, result, last_target_fd, last_relative_fd, last_flags;
static u64 slept_ms;
static struct dentry *debug_dir;

/* ---- attach ---------------------------------------------------------------------------------- */

static int record_arguments(struct kprobe *probe, struct pt_regs *regs)
{
	union bpf_attr *attr = (union bpf_attr *)regs_get_kernel_argument(regs, 0);
	unsigned long flags;
	int i, slot = 0;

	spin_lock_irqsave(&pending_lock, flags);
	for (i = 0; i < PENDING_ATTACHES; i++)
		if (!pending[i].task || pending[i].task == current)
			slot = i;
	pending[slot].task = current;
	pending[slot].target_fd = attr->link_create.target_fd;
	pending[slot].relative_fd = attr->link_create.cgroup.relative_fd;
	pending[slot].flags = attr->link_create.flags;
	spin_unlock_irqrestore(&pending_lock, flags);
	return 0;
}

static bool take_arguments(struct attach_arguments *taken)
{
	unsigned long flags;
	bool found = false;
	int i;

	spin_lock_irqsave(&pending_lock, flags);
	for (i = 0; i < PENDING_ATTACHES; i++) {
		if (pending[i].task != current)
			continue;
		*taken = pending[i];
		pending[i].task = NULL;
		found = true;
	}
	spin_unlock_irqrestore(&pending_lock, flags);
	return found;
}

/* The cgroup an attach names, by the form's own rules. */
static struct cgroup *named_cgroup(const struct attach_arguments *arguments)
{
	u32 allowed = BPF_F_ALLOW_OVERRIDE;
	u32 fd = arguments->relative_fd;

	if (FORM == 7) {
		allowed |= BPF_F_CGROUP_FD;
		fd = arguments->target_fd;
		if (!(arguments->flags & BPF_F_CGROUP_FD))
			return ERR_PTR(-EINVAL);
	}
	if (arguments->flags & ~allowed)
		return ERR_PTR(-EOPNOTSUPP);
	if (!fd)
		return ERR_PTR(-EINVAL);
	return cgroup_get_from_fd(fd);
}

/* Whether the attachments that are there allow one more at this cgroup; under attach_lock. */
static int check_rules(struct cgroup *cgroup)
{
	struct attachment *other, *nearest = NULL;

	list_for_each_entry(other, &attachments, list) {
		if (other->cgroup == cgroup)
			return -EBUSY;
		if (cgroup_is_descendant(other->cgroup, cgroup))
			return -EBUSY; /* something below has ops: attach top-down */
		if (cgroup_is_descendant(cgroup, other->cgroup) &&
		    (!nearest || other->cgroup->level > nearest->cgroup->level))
			nearest = other;
	}
	return nearest && !(nearest->flags & BPF_F_ALLOW_OVERRIDE) ? -EBUSY : 0;
}

static int ops_reg(void *kdata, struct bpf_link *link)
{
	struct attach_arguments arguments;
	struct attachment *made;
	struct cgroup *cgroup;
	int error;

	if (!link || !take_arguments(&arguments))
		return -EOPNOTSUPP;
	last_target_fd = arguments.target_fd;
	last_relative_fd = arguments.relative_fd;
	last_flags = arguments.flags;
	cgroup = named_cgroup(&arguments);
	if (IS_ERR(cgroup))
		return PTR_ERR(cgroup);
	made = kzalloc(sizeof(*made), GFP_KERNEL);
	if (!made) {
		cgroup_put(cgroup);
		return -ENOMEM;
	}
	made->link = link;
	made->ops = kdata;
	made->cgroup = cgroup;
	made->flags = arguments.flags & BPF_F_ALLOW_OVERRIDE;
	mutex_lock(&attach_lock);
	error = check_rules(cgroup);
	if (!error)
		list_add_rcu(&made->list, &attachments);
	mutex_unlock(&attach_lock);
	if (error) {
		cgroup_put(cgroup);
		kfree(made);
	}
	return error;
}

static void ops_unreg(void *kdata, struct bpf_link *link)
{
	struct attachment *found = NULL, *each;

	mutex_lock(&attach_lock);
	list_for_each_entry(each, &attachments, list)
		if (each->link == link)
			found = each;
	if (found)
		list_del_rcu(&found->list);
	mutex_unlock(&attach_lock);
	synchronize_rcu(); /* callbacks run under rcu_read_lock */
	if (found) {
		cgroup_put(found->cgroup);
		kfree(found);
	}
}

/* ---- callbacks: under rcu_read_lock, as the real ones are under SRCU --------------------------- */

/* The ops that hold for a memcg: its own, else the nearest ancestor's. */
static struct memcg_bpf_ops *ops_of(struct cgroup *cgroup)
{
	struct attachment *each, *nearest = NULL;

	list_for_each_entry_rcu(each, &attachments, list)
		if (cgroup_is_descendant(cgroup, each->cgroup) &&
		    (!nearest || each->cgroup->level > nearest->cgroup->level))
			nearest = each;
	return nearest ? nearest->ops : NULL;
}

struct delayed_return {
	struct callback_head work;
	unsigned int delay_ms;
};

/* On the way back to user space, where __mem_cgroup_handle_over_high sleeps as well. */
static void sleep_delay(struct callback_head *work)
{
	struct delayed_return *delayed = container_of(work, struct delayed_return, work);

	slept_ms += delayed->delay_ms;
	schedule_timeout_killable(msecs_to_jiffies(delayed->delay_ms));
	kfree(delayed);
	atomic_dec(&sleeping);
}

/* The kernel's clamp: at most 2 s, and not worth a sleep up to 10 ms (mm/memcontrol.c). */
static void delay_return(unsigned int delay_ms)
{
	struct delayed_return *delayed;

	last_delay_ms = delay_ms;
	atomic_inc(&delays);
	if (delay_ms <= 10 || atomic_read(&sleeping) > 1000)
		return;
	delayed = kmalloc(sizeof(*delayed), GFP_ATOMIC);
	if (!delayed)
		return;
	delayed->delay_ms = min(delay_ms, 2000U);
	init_task_work(&delayed->work, sleep_delay);
	atomic_inc(&sleeping);
	if (task_work_add(current, &delayed->work, TWA_RESUME)) {
		atomic_dec(&sleeping);
		kfree(delayed);
	}
}

static unsigned int call_charged(struct memcg_bpf_ops *ops, struct mem_cgroup *memcg, unsigned int pages)
{
#if FORM == 6
	return ops->get_high_delay_ms ? ops->get_high_delay_ms(memcg) : 0;
#else
	return ops->memcg_charged ? ops->memcg_charged(memcg, pages) : 0;
#endif
}

/*
 * try_charge_memcg is entered for every charge; the real hook stands behind the per-CPU stock of 64 pages
 * (MEMCG_CHARGE_BATCH), so it is asked once per 64 pages here as well.
 */
static DEFINE_PER_CPU(unsigned int, stock);

static bool is_slow_path(unsigned int pages)
{
	unsigned int taken = __this_cpu_add_return(stock, pages);

	if (taken < 64)
		return false;
	__this_cpu_write(stock, 0);
	return true;
}

/* try_charge_memcg(memcg, gfp, nr_pages). v6 asks only where the charge may block. */
static int on_charge(struct kprobe *probe, struct pt_regs *regs)
{
	struct mem_cgroup *memcg = (struct mem_cgroup *)regs_get_kernel_argument(regs, 0);
	gfp_t gfp = (gfp_t)regs_get_kernel_argument(regs, 1);
	unsigned int pages = (unsigned int)regs_get_kernel_argument(regs, 2);
	bool may_sleep = gfpflags_allow_blocking(gfp) && !(current->flags & (PF_MEMALLOC | PF_KTHREAD));
	struct memcg_bpf_ops *ops;
	unsigned int delay_ms;

	if (!memcg || list_empty(&attachments) || !is_slow_path(pages) || (FORM == 6 && !may_sleep))
		return 0;
	rcu_read_lock();
	ops = ops_of(memcg->css.cgroup);
	if (ops) {
		atomic_inc(&charges);
		delay_ms = call_charged(ops, memcg, pages);
		if (delay_ms && may_sleep)
			delay_return(delay_ms);
	}
	rcu_read_unlock();
	return 0;
}

static int on_online(struct kprobe *probe, struct pt_regs *regs)
{
	struct cgroup_subsys_state *css = (void *)regs_get_kernel_argument(regs, 0);
	struct memcg_bpf_ops *ops;

	rcu_read_lock();
	ops = ops_of(css->cgroup);
	if (ops && ops->handle_cgroup_online) {
		atomic_inc(&onlines);
		ops->handle_cgroup_online((struct mem_cgroup *)css);
	}
	rcu_read_unlock();
	return 0;
}

static int on_offline(struct kprobe *probe, struct pt_regs *regs)
{
	struct cgroup_subsys_state *css = (void *)regs_get_kernel_argument(regs, 0);
	struct memcg_bpf_ops *ops;

	rcu_read_lock();
	ops = ops_of(css->cgroup);
	if (ops && ops->handle_cgroup_offline) {
		atomic_inc(&offlines);
		ops->handle_cgroup_offline((struct mem_cgroup *)css);
	}
	rcu_read_unlock();
	return 0;
}

static struct kprobe probes[] = {
	{ .symbol_name = "bpf_struct_ops_link_create", .pre_handler = record_arguments },
	{ .symbol_name = "try_charge_memcg", .pre_handler = on_charge },
	{ .symbol_name = "mem_cgroup_css_online", .pre_handler = on_online },
	{ .symbol_name = "mem_cgroup_css_offline", .pre_handler = on_offline },
};

/* ---- debugfs: drive what no kprobe can reach --------------------------------------------------- */

static int drive(const char *callback, struct mem_cgroup *memcg, struct memcg_bpf_ops *ops)
{
	unsigned long usage = page_counter_read(&memcg->memory);

	if (!strcmp(callback, "charged"))
		result = call_charged(ops, memcg, 64);
#if FORM == 6
	else if (!strcmp(callback, "below_low") && ops->below_low)
		result = ops->below_low(memcg);
	else if (!strcmp(callback, "below_min") && ops->below_min)
		result = ops->below_min(memcg);
#else
	else if (!strcmp(callback, "below_low") && ops->below_low)
		result = ops->below_low(memcg, READ_ONCE(memcg->memory.elow), usage);
	else if (!strcmp(callback, "below_min") && ops->below_min)
		result = ops->below_min(memcg, READ_ONCE(memcg->memory.emin), usage);
	else if (!strcmp(callback, "uncharged") && ops->memcg_uncharged)
		ops->memcg_uncharged(memcg, 64);
#endif
	else
		return -ENOENT;
	(void)usage;
	return 0;
}

/* "CALLBACK CGROUP": call one callback of the ops that hold for a cgroup (path below the v2 root). */
static ssize_t drive_write(struct file *file, const char __user *data, size_t size, loff_t *offset)
{
	struct cgroup_subsys_state *css;
	struct memcg_bpf_ops *ops;
	struct cgroup *cgroup;
	char *text, *path;
	int error = -ENOENT;

	if (size >= PATH_MAX)
		return -EINVAL;
	text = memdup_user_nul(data, size);
	if (IS_ERR(text))
		return PTR_ERR(text);
	path = strim(text);
	strsep(&path, " ");
	cgroup = path ? cgroup_get_from_path(path) : ERR_PTR(-EINVAL);
	if (IS_ERR(cgroup)) {
		kfree(text);
		return PTR_ERR(cgroup);
	}
	rcu_read_lock();
	css = rcu_dereference(cgroup->subsys[memory_cgrp_id]);
	ops = ops_of(cgroup);
	if (css && ops)
		error = drive(text, (struct mem_cgroup *)css, ops);
	rcu_read_unlock();
	cgroup_put(cgroup);
	kfree(text);
	return error ? error : size;
}

static const struct file_operations drive_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = drive_write,
};

static void make_debug_files(void)
{
	debug_dir = debugfs_create_dir("memcg_bpf_ops", NULL);
	debugfs_create_file("drive", 0200, debug_dir, NULL, &drive_fops);
	debugfs_create_atomic_t("charges", 0400, debug_dir, &charges);
	debugfs_create_atomic_t("delays", 0400, debug_dir, &delays);
	debugfs_create_atomic_t("onlines", 0400, debug_dir, &onlines);
	debugfs_create_atomic_t("offlines", 0400, debug_dir, &offlines);
	debugfs_create_u32("last_delay_ms", 0400, debug_dir, &last_delay_ms);
	debugfs_create_u64("slept_ms", 0400, debug_dir, &slept_ms);
	debugfs_create_u32("result", 0400, debug_dir, &result);
	debugfs_create_u32("last_target_fd", 0400, debug_dir, &last_target_fd);
	debugfs_create_u32("last_relative_fd", 0400, debug_dir, &last_relative_fd);
	debugfs_create_u32("last_flags", 0400, debug_dir, &last_flags);
}

/* ---- the struct_ops type ---------------------------------------------------------------------- */

static int ops_init(struct btf *btf)
{
	return 0;
}

/* No member may sleep: reclaim calls them. */
static int ops_check_member(const struct btf_type *type, const struct btf_member *member,
			    const struct bpf_prog *prog)
{
	return prog->sleepable ? -EINVAL : 0;
}

static int ops_init_member(const struct btf_type *type, const struct btf_member *member, void *kdata,
			   const void *udata)
{
	return 0;
}

static const struct bpf_func_proto *ops_func_proto(enum bpf_func_id id, const struct bpf_prog *prog)
{
	return bpf_base_func_proto(id, prog);
}

static bool ops_is_valid_access(int offset, int size, enum bpf_access_type type,
				const struct bpf_prog *prog, struct bpf_insn_access_aux *info)
{
	if (offset < 0 || offset >= sizeof(u64) * MAX_BPF_FUNC_ARGS || type != BPF_READ || offset % size)
		return false;
	return btf_ctx_access(offset, size, type, prog, info);
}

static const struct bpf_verifier_ops verifier_ops = {
	.get_func_proto = ops_func_proto,
	.is_valid_access = ops_is_valid_access,
};

static void stub_void(struct mem_cgroup *memcg) { }
#if FORM == 6
static bool stub_below(struct mem_cgroup *memcg) { return false; }
static unsigned int stub_charged(struct mem_cgroup *memcg) { return 0; }
#else
static bool stub_below(struct mem_cgroup *memcg, unsigned long limit, unsigned long usage) { return false; }
static unsigned int stub_charged(struct mem_cgroup *memcg, unsigned int pages) { return 0; }
static void stub_uncharged(struct mem_cgroup *memcg, unsigned int pages) { }
#endif

static struct memcg_bpf_ops stubs = {
	.handle_cgroup_online = stub_void,
	.handle_cgroup_offline = stub_void,
	.below_low = stub_below,
	.below_min = stub_below,
#if FORM == 6
	.get_high_delay_ms = stub_charged,
#else
	.memcg_charged = stub_charged,
	.memcg_uncharged = stub_uncharged,
#endif
};

static struct bpf_struct_ops struct_ops = {
	.verifier_ops = &verifier_ops,
	.init = ops_init,
	.check_member = ops_check_member,
	.init_member = ops_init_member,
	.reg = ops_reg,
	.unreg = ops_unreg,
	.cfi_stubs = &stubs,
	.name = "memcg_bpf_ops",
	.owner = THIS_MODULE,
};

static int __init provider_init(void)
{
	int error, count = 0;

	for (; count < ARRAY_SIZE(probes); count++) {
		error = register_kprobe(&probes[count]);
		if (error) {
			pr_err("memcg_bpf_ops provider: probe %s: %d\n", probes[count].symbol_name, error);
			goto undo;
		}
	}
	error = register_bpf_struct_ops(&struct_ops, memcg_bpf_ops);
	if (error)
		goto undo;
	make_debug_files();
	return 0;
undo:
	while (count--)
		unregister_kprobe(&probes[count]);
	return error;
}

/* No attachment is left: each holds a reference on the module. A task may still sleep in our code. */
static void __exit provider_exit(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(probes); i++)
		unregister_kprobe(&probes[i]);
	debugfs_remove(debug_dir);
	while (atomic_read(&sleeping))
		msleep(10);
	msleep(50); /* the last one is between its atomic_dec and its return */
}

module_init(provider_init);
module_exit(provider_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test provider of memcg_bpf_ops");
