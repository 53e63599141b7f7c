/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef AGENTRUN_LOOPS_H
#define AGENTRUN_LOOPS_H

#include <linux/version.h>

/* libbpf before 1.3 does not have it. A loop that the verifier looks at once, whatever its bound. */
#ifndef bpf_for
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0) /* of the headers: 6018bc7af2f8 */
struct bpf_iter_num {
	u64 opaque;
};
#endif
extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end) __ksym;
extern int *bpf_iter_num_next(struct bpf_iter_num *it) __ksym;
extern void bpf_iter_num_destroy(struct bpf_iter_num *it) __ksym;
#define bpf_for(i, start, end) for ( \
	struct bpf_iter_num ___it __attribute__((aligned(8), cleanup(bpf_iter_num_destroy))), \
	*___p __attribute__((unused)) = (bpf_iter_num_new(&___it, (start), (end)), \
		(void)bpf_iter_num_destroy, (void *)0); \
	({ int *___t = bpf_iter_num_next(&___it); (___t ? ((i) = *___t, (i) >= (start) && (i) < (end)) : 0); }); \
	)
#endif

#endif
