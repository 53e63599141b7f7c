/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's types as far as these programs read them. Every access is relocated at load time (CO-RE), so
 * neither order nor completeness matters, and no vmlinux.h of a particular kernel is needed to build.
 * What changed its name or place between kernels is in compat.h.
 */
#ifndef AGENTRUN_KERNEL_H
#define AGENTRUN_KERNEL_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#define PATH_MAX 4096
#define EPERM 1
#define ENOENT 2
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_TYPE_MASK 0xf
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	const char *name;
	u64 id; /* what stat(2) calls the inode, and bpf_get_current_cgroup_id() the cgroup's id */
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
	int nr_populated_csets; /* as in 7.3; earlier kernels have them in struct cgroup */
	int nr_populated_children;
};

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* the task's cgroup on v2 */
};

struct percpu_counter {
	s64 count; /* what the CPUs have not handed in yet is missing: at most a few hundred pages */
};

enum { MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES };

struct mm_struct {
	struct percpu_counter rss_stat[4];
};

struct task_struct {
	int pid;
	int tgid;
	int exit_code;
	struct task_struct *real_parent;
	struct css_set *cgroups;
	struct mm_struct *mm;
	char comm[16];
};

typedef struct {
	long counter;
} atomic_long_t;

struct page_counter {
	atomic_long_t usage;
};

struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
};

enum memcg_memory_event { MEMCG_HIGH = 1 }; /* by CO-RE */
enum node_stat_item { NR_INACTIVE_FILE = 2, NR_ACTIVE_FILE }; /* by CO-RE */

struct oom_control {
	struct mem_cgroup *memcg; /* whose limit it is; NULL: the machine ran out */
	struct task_struct *chosen;
};

struct linux_binprm {
	const char *filename;
};

#pragma clang attribute pop

#endif
