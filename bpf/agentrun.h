/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the BPF programs and agentrun/bpf/types.py: fixed widths, explicit padding, no bit
 * fields. tests/unit/bpf/test_types.py compares the two by the BTF of build/align.bpf.o.
 */
#ifndef AGENTRUN_H
#define AGENTRUN_H

#include <linux/types.h>

/* Names of the layout's directories (agentrun/cgroups/layout.py). */
#define AR_CALLS "agentrun-calls"
#define AR_COMM_LEN 16

enum ar_event_kind {
	AR_EVENT_POPULATED = 1, /* value: 1 first process came, 0 last one is gone */
	AR_EVENT_EXEC = 2,
	AR_EVENT_EXIT = 3,	/* value: wait status of a process */
	AR_EVENT_OOM_VICTIM = 4, /* struct ar_oom follows the head; value: 1 chosen, 0 dies with its group */
	AR_EVENT_ATTACH = 5,	/* pid: who was moved into a call from outside */
	AR_EVENT_DENIED = 6,	/* struct ar_denied follows the head */
	AR_EVENT_PRESSURE = 7,	/* call: whose limit gets short; value: MiB that are left */
};

/* Head of every event in the ring buffer. */
struct ar_event {
	__u64 time_ns;	 /* CLOCK_BOOTTIME */
	__u64 call;	 /* id of the call's cgroup */
	__u32 kind;	 /* enum ar_event_kind */
	__u32 pid;	 /* thread group, in the host's namespace */
	__s32 value;
	__u32 pad;
	char comm[AR_COMM_LEN];
};

/* Whose limit an OOM kill was for, beside the id of a cgroup. */
#define AR_LIMIT_HOST 0ULL
#define AR_LIMIT_UNKNOWN (~0ULL)

struct ar_oom {
	struct ar_event event; /* call, pid, comm: the victim's */
	__u64 limit;	       /* id of the cgroup whose limit was hit, or AR_LIMIT_* */
	__u64 pages;	       /* of the victim in memory, nearly; 0 where the kernel does not tell */
};

/*
 * Who wants to be told of OOM kills before the victims end (map ar_listener, one entry). Somebody who died is
 * not waited for: the entry holds for a few seconds only, and is written anew as long as its writer lives.
 */
struct ar_listener {
	__u64 until_ns; /* CLOCK_BOOTTIME */
	__u32 hold_ms;	/* how long a victim waits at most; 0: not at all */
	__u32 pad;
};

enum ar_denied_by {
	AR_BY_CONNECT = 1,
	AR_BY_SENDMSG = 2,
	AR_BY_SOCKET = 3, /* address: all zero; port: the socket's type */
};

struct ar_denied {
	struct ar_event event;
	__u32 family;	    /* AF_INET, AF_INET6, or of the socket that was refused */
	__u32 by;	    /* enum ar_denied_by */
	__u8 address[16];   /* network order; IPv4 in the first four bytes */
	__u32 port;	    /* host order */
	__u32 protocol;
	__u64 count;	    /* denials of this call so far: most are counted only */
};

/* Counters of one call's network, in the map ar_net_counts by the cgroup's id. */
struct ar_net_count {
	__u64 denied;
	__u64 tx_bytes;
	__u64 rx_bytes;
	__u64 last_sample_ns;
};

#define AR_NET_FORMAT 1
#define AR_NET_RULES 128
#define AR_NET_XATTR "user.agentrun.net"

enum ar_net_flags {
	AR_NET_DEFAULT_ALLOW = 1, /* what no rule names */
};

/* One rule; the first that matches decides. An IPv4 prefix has its address in the first four bytes. */
struct ar_net_rule {
	__u8 address[16]; /* network order, host bits zero */
	__u8 family;	  /* 4, 6, or 0 for any */
	__u8 prefix;	  /* leading bits that count */
	__u8 allow;	  /* 1 or 0 */
	__u8 pad;
	__u16 port;	  /* host order; 0 for any */
	__u16 pad2;
};

/* What the extended attribute AR_NET_XATTR of a call's cgroup holds; only `count` rules are there. */
struct ar_net_profile {
	__u16 format;
	__u16 flags; /* enum ar_net_flags */
	__u16 count;
	__u16 pad;
	struct ar_net_rule rules[AR_NET_RULES];
};

/*
 * memcg_bpf_ops: what agentrund wants of one cgroup, by its id in the map ar_memcg_policies. The nearest entry
 * from a charged cgroup upwards counts, and its numbers are about that entry's whole subtree.
 */
struct ar_memcg_policy {
	__u64 throttle_until_ns; /* CLOCK_MONOTONIC; charges are delayed until then */
	__u64 soft_bytes;	 /* ... while the subtree holds more than this */
	__u64 protect_bytes;	 /* below_low: reclaim spares the subtree up to this */
	__u64 charges;		 /* slow-path charges seen */
	__u64 delays;		 /* of them delayed */
	__u32 delay_ms;		 /* at most 2,000; the kernel ignores delays up to 10 */
	__u32 pad;
};

/*
 * Memory pressure: a cgroup whose limit calls share, in the map ar_pressure by its id. agentrund says who they are
 * and where it gets tight; the rest is kept by the program. Times are CLOCK_MONOTONIC.
 */
#define AR_PRESSURE_MEMBERS 16

enum ar_pressure_how {
	AR_PRESSURE_TELL = 1,  /* an event when it gets tight */
	AR_PRESSURE_MARK = 2,  /* mark calls in ar_marks: the scheduler parks them */
	AR_PRESSURE_TIMER = 4, /* look every few milliseconds, not only when somebody is charged */
};

struct ar_pressure_member {
	__u64 id;	  /* of the call's cgroup */
	__u64 soft_bytes; /* never marked below this */
	__u64 usage;
	__u64 base_bytes; /* it grows when it is a step above this */
	__u64 base_ns;
	__u64 grew_ns;
	__u64 marked_ns; /* since when it is marked; 0: it is not */
	__u64 rest_ns;	 /* it was marked for long: not again before this */
	__u32 rank;	 /* who is higher goes first */
	__u32 is_populated;
};

struct ar_pressure {
	__u64 limit_bytes;
	__u64 tight_bytes; /* of it left: too little */
	__u64 ample_bytes; /* of it left: enough again */
	__u64 looked_ns;
	__u64 told_ns;
	__u64 told_left;
	__u64 looks;
	__u64 marks;
	__u32 how; /* enum ar_pressure_how */
	__u32 count;
	__u32 is_short;
	__u32 pad;
	struct ar_pressure_member members[AR_PRESSURE_MEMBERS];
};

/*
 * What calls use at this moment, in the map ar_seen: agentrund writes the ids into the first entries, runs the
 * program with their number, and finds the rest filled in.
 */
#define AR_SNAPSHOT_CALLS 1024

struct ar_seen {
	__u64 id;    /* of the call's cgroup */
	__u64 usage; /* bytes */
	__u64 high;  /* how often it was over memory.high */
	__u32 is_populated;
	__u32 pad;
};

struct ar_snapshot {
	__u32 count;
	__u32 pad;
};

_Static_assert(sizeof(struct ar_seen) == 32, "ar_seen is shared with Python");
_Static_assert(sizeof(struct ar_snapshot) == 8, "ar_snapshot is shared with Python");
_Static_assert(sizeof(struct ar_pressure_member) == 72, "ar_pressure_member is shared with Python");
_Static_assert(sizeof(struct ar_pressure) == 80 + 72 * AR_PRESSURE_MEMBERS, "ar_pressure is shared with Python");
_Static_assert(sizeof(struct ar_memcg_policy) == 48, "ar_memcg_policy is shared with Python");
_Static_assert(sizeof(struct ar_event) == 48, "ar_event is shared with Python");
_Static_assert(sizeof(struct ar_oom) == 48 + 16, "ar_oom is shared with Python");
_Static_assert(sizeof(struct ar_listener) == 16, "ar_listener is shared with Python");
_Static_assert(sizeof(struct ar_denied) == 48 + 40, "ar_denied is shared with Python");
_Static_assert(sizeof(struct ar_net_count) == 32, "ar_net_count is shared with Python");
_Static_assert(sizeof(struct ar_net_rule) == 24, "ar_net_rule is shared with Python");
_Static_assert(sizeof(struct ar_net_profile) == 8 + 24 * AR_NET_RULES, "ar_net_profile is shared with Python");

#endif
