// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Never loaded: its BTF has every struct of agentrun.h, for the test that compares them with types.py. */
#include "kernel.h"
#include "agentrun.h"

struct ar_event align_event;
struct ar_oom align_oom;
struct ar_listener align_listener;
struct ar_denied align_denied;
struct ar_net_count align_net_count;
struct ar_net_rule align_net_rule;
struct ar_net_profile align_net_profile;
struct ar_memcg_policy align_memcg_policy;
struct ar_pressure_member align_pressure_member;
struct ar_pressure align_pressure;
struct ar_seen align_seen;
struct ar_snapshot align_snapshot;
