/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one place for what differs between kernels: kfuncs (weak, so that an object loads where a program that
 * needs one is left out) and types under several names. Each with the version and the commit that brought it.
 */
#ifndef AGENTRUN_COMPAT_H
#define AGENTRUN_COMPAT_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#ifndef __weak
#define __weak __attribute__((weak))
#endif
#ifndef __ksym
#define __ksym __attribute__((section(".ksyms")))
#endif
/* libbpf before 1.2 does not have it. */
#ifndef bpf_ksym_exists
#define bpf_ksym_exists(sym) (!!(sym))
#endif

/* Linux 6.2, c4bcfb38a95e; the headers that we are built with may be older. */
#define AR_MAP_TYPE_CGRP_STORAGE 32

/* Linux 6.2, f1a7941243c1: before it the pages of a process are counted in this type, which is not read. */
struct mm_rss_stat {
	int unused;
} __attribute__((preserve_access_index));

/* Pages of a process that are in memory. */
static __always_inline u64 pages_of(const struct task_struct *task)
{
	const struct mm_struct *mm = task->mm;
	s64 pages;

	if (bpf_core_type_exists(struct mm_rss_stat) || !mm)
		return 0;
	pages = mm->rss_stat[MM_FILEPAGES].count + mm->rss_stat[MM_ANONPAGES].count +
		mm->rss_stat[MM_SHMEMPAGES].count;
	return pages > 0 ? pages : 0;
}

/* Linux 6.17, 535b070f4a80: only names that begin with "user." */
extern int bpf_cgroup_read_xattr(struct cgroup *cgroup, const char *name__str,
				 struct bpf_dynptr *value_p) __ksym;
/* Linux 7.0, mm/bpf_memcontrol.c: memory of a cgroup, asked from anywhere. */
extern struct mem_cgroup *bpf_get_mem_cgroup(struct cgroup_subsys_state *css) __ksym __weak;
extern void bpf_put_mem_cgroup(struct mem_cgroup *memcg) __ksym __weak;
extern unsigned long bpf_mem_cgroup_usage(struct mem_cgroup *memcg) __ksym __weak;
extern unsigned long bpf_mem_cgroup_page_state(struct mem_cgroup *memcg, int idx) __ksym __weak;
extern unsigned long bpf_mem_cgroup_memory_events(struct mem_cgroup *memcg,
						  enum memcg_memory_event event) __ksym __weak;
/* Linux 6.4, 332ea1f697be */
extern struct cgroup *bpf_cgroup_from_id(u64 cgid) __ksym;
/* Linux 6.2, fda01efc6160 and 5ca786707829 */
extern struct cgroup *bpf_cgroup_ancestor(struct cgroup *cgrp, int level) __ksym;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym;

#endif
