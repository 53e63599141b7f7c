/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which calls have to wait for memory: written by mempressure, read by the scheduler (scx/parking.h). */
#ifndef AGENTRUN_MARKS_H
#define AGENTRUN_MARKS_H

/* By the id of the call's cgroup: until when (CLOCK_MONOTONIC, ns). A deadline, not a flag: whoever wrote it may
 * be gone, and nobody waits for long then.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ar_marks SEC(".maps");

#endif
