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

/* Linux 6.17, 535b070f4a80: only names that begin with "user." */
extern int bpf_cgroup_read_xattr(struct cgroup *cgroup, const char *name__str,
				 struct bpf_dynptr *value_p) __ksym;
/* Linux 6.2, fda01efc6160 and 5ca786707829 */
extern struct cgroup *bpf_cgroup_ancestor(struct cgroup *cgrp, int level) __ksym;
extern void bpf_cgroup_release(struct cgroup *cgrp) __ksym;

#endif
