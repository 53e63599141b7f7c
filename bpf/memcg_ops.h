/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What agentrund and the memcg_bpf_ops object share: one entry per cgroup id. */
struct memcg_policy {
	__u64 throttle_until_ns; /* CLOCK_MONOTONIC; charges are delayed until then */
	__u64 soft_bytes;	 /* ... while the cgroup's subtree holds more than this */
	__u64 protect_bytes;	 /* below_low: reclaim spares the subtree up to this */
	__u64 charges;		 /* slow-path charges seen */
	__u64 delays;		 /* of them delayed */
	__u32 delay_ms;		 /* at most 2,000; the kernel ignores delays up to 10 */
	__u32 padding;
};

_Static_assert(sizeof(struct memcg_policy) == 48, "shared with agentrun/bpf/types.py");
