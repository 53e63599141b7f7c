/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Everything that can be set before the load (.rodata), and the fixed sizes. Times in nanoseconds. */
#ifndef AGENTRUN_SCX_KNOBS_H
#define AGENTRUN_SCX_KNOBS_H

#include "kernel.h"

/* How long a task runs before others are looked at; the kernel looks at every tick only. */
const volatile u64 slice_ns = 5000000;
/* Slices shrink down to this when more than `crowd` tasks per CPU wait. */
const volatile u64 slice_min_ns = 1000000;
const volatile u32 crowd = 8;
/* How many of its slices an active group may be behind (credit) or ahead (debt) of the CPU it comes to. */
const volatile u32 lag_slices = 2;
/* No task waits much longer than this, whatever its weight, its limit and its number of siblings: the kernel's
 * watchdog ejects a scheduler that lets one wait for `timeout_ms`. */
const volatile u64 patience_ns = 8000000000;
/* The agent's own leaf is run at once on a wake-up while it is at most `lag_slices` ahead. */
const volatile bool agent_boost = true;
/* A task that on average runs for less than this between two sleeps is interactive ... */
const volatile u64 interactive_ns = 1000000;
/* ... and when its group is behind it interrupts one that has run for this long. */
const volatile u64 preempt_after_ns = 500000;
/* cpu.max is honoured; how often limits are looked at while any is set. */
const volatile bool bandwidth = true;
const volatile u64 bandwidth_tick_ns = 5000000;
/* Calls that are marked for memory get no CPU (scx/parking.h). */
const volatile bool parking = false;
/* For tests only: lose every task of this group, so that the watchdog has something to find. */
const volatile u64 broken_group_id = 0;

#define TIMEOUT_MS 30000

#define MAX_GROUPS 4096 /* a power of two; groups beyond share their parent's place */
#define MAX_CPUS 1024
#define MAX_DEPTH 12 /* of the cgroup tree; what is deeper counts as its ancestor at this depth */
#define WEIGHT_DEFAULT 100

#endif
