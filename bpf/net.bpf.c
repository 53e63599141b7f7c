// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Network profiles of calls.
 *
 * A call's profile is an extended attribute of its cgroup, set before its first process: it needs no map, no
 * daemon and no attaching for each container, so there is no moment in which it does not hold, and nothing to
 * restore after a restart. It is read once (only names in `user.` can be read, and the directory is root's, so a
 * container cannot write it) and kept in the cgroup's own storage, which goes with the cgroup.
 *
 * The programs are attached once, at the root of the cgroup tree. For every other task of the host they are one
 * lookup in the storage of its cgroup ("this is no call").
 *
 * Who connects counts, not who made the socket: the policy follows the current task, so a descriptor that was
 * passed around gives nobody more. What was connected before stays connected.
 *
 * Sockets other than TCP and UDP are refused to a call with a profile: raw and packet sockets send to anybody,
 * and MPTCP has no hook before it connects. That is done at security_socket_create, which also sees AF_PACKET
 * (the cgroup hook sock_create does not); fmod_ret there needs no `lsm=bpf` on the kernel's command line.
 */
#include "events.bpf.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "Dual BSD/GPL";

const volatile u64 sample_ns = 1000000000ULL; /* one denial of a call in this time is told, the others counted */

#define AF_ALG 38
#define IP_ANY_LOOPBACK bpf_htonl(0x7f000001)
#define ENODATA 61
#define DEEPEST 48 /* cgroups between a task and the root; deeper, a container that can nest could hide from us */

enum verdict { UNKNOWN, NO_CALL, OPEN, PROFILE };

/* What is known of a task's cgroup; `level` is that of its call. */
struct seen {
	u32 verdict;
	u32 level;
	u64 call;
};

struct {
	__uint(type, AR_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct seen);
} ar_net_seen SEC(".maps");

struct {
	__uint(type, AR_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ar_net_profile);
} ar_net_profile SEC(".maps");

/* By the id of the call's cgroup. Only counts: nothing is decided by what is in here, so it may be evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct ar_net_count);
} ar_net_counts SEC(".maps");

struct destination {
	u8 address[16];
	u8 family; /* 4 or 6 */
	u16 port;
	u32 protocol;
};

/* Read the profile of a call into its storage. A damaged one denies everything; so does no memory for it, until
 * there is some.
 */
static __always_inline u32 read_profile(struct cgroup *call)
{
	struct ar_net_profile *profile;
	struct bpf_dynptr value;
	int size;

	profile = bpf_cgrp_storage_get(&ar_net_profile, call, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!profile || bpf_dynptr_from_mem(profile, sizeof(*profile), 0, &value))
		return UNKNOWN;
	size = bpf_cgroup_read_xattr(call, AR_NET_XATTR, &value);
	if (size == -ENODATA) {
		bpf_cgrp_storage_delete(&ar_net_profile, call);
		return OPEN;
	}
	if (size < (int)offsetof(struct ar_net_profile, rules) || profile->format != AR_NET_FORMAT) {
		profile->count = 0;
		profile->flags = 0;
	}
	return PROFILE;
}

static __always_inline void look(struct cgroup *cgrp, struct seen *seen)
{
	bool at_root;
	struct cgroup *found = find_call(cgrp, DEEPEST, &at_root), *call;
	u32 verdict;

	if (!found) {
		/* Level 0 is the root, which has no profile: whoever hides that deep sends nothing. */
		seen->verdict = at_root ? NO_CALL : PROFILE;
		return;
	}
	seen->level = found->level;
	seen->call = found->kn->id;
	call = bpf_cgroup_ancestor(cgrp, seen->level);
	if (!call)
		return;
	verdict = read_profile(call);
	bpf_cgroup_release(call);
	/* A full barrier: another CPU that sees the verdict sees the profile as well. */
	__sync_lock_test_and_set(&seen->verdict, verdict);
}

/* What is known of the current task's cgroup, found out first where that is not known yet. */
static __always_inline struct seen *current_seen(struct cgroup *cgrp)
{
	struct seen *seen = bpf_cgrp_storage_get(&ar_net_seen, cgrp, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (seen && seen->verdict == UNKNOWN)
		look(cgrp, seen);
	return seen;
}

static __always_inline bool is_in_call(struct cgroup *cgrp)
{
	bool at_root;

	return find_call(cgrp, DEEPEST, &at_root) || !at_root;
}

static __always_inline struct ar_net_count *counts_of(u64 call)
{
	struct ar_net_count none = {}, *count = bpf_map_lookup_elem(&ar_net_counts, &call);

	if (count)
		return count;
	bpf_map_update_elem(&ar_net_counts, &call, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&ar_net_counts, &call);
}

static __always_inline void tell_denied(u64 call, u32 by, u32 family, const struct destination *to)
{
	struct ar_net_count *count = counts_of(call);
	u64 now = bpf_ktime_get_boot_ns();
	struct ar_denied *event;

	if (!count)
		return;
	__sync_fetch_and_add(&count->denied, 1);
	if (count->last_sample_ns && now - count->last_sample_ns < sample_ns)
		return;
	count->last_sample_ns = now;
	event = bpf_ringbuf_reserve(&ar_ring, sizeof(*event), 0);
	if (!event) {
		count_drop(AR_EVENT_DENIED);
		return;
	}
	fill_event(&event->event, AR_EVENT_DENIED, call);
	event->family = family;
	event->by = by;
	__builtin_memcpy(event->address, to->address, sizeof(event->address));
	event->port = to->port;
	event->protocol = to->protocol;
	event->count = count->denied;
	tell(event);
}

/* Whether the first `bits` of two addresses are the same. */
static __always_inline bool same_prefix(const u8 *left, const u8 *right, u32 bits)
{
	for (int word = 0; word < 4; word++) {
		u32 a = bpf_ntohl(((const u32 *)left)[word]), b = bpf_ntohl(((const u32 *)right)[word]);

		if (bits < 32)
			return !bits || (a ^ b) >> (32 - bits) == 0;
		if (a != b)
			return false;
		bits -= 32;
	}
	return true;
}

static __always_inline bool matches(const struct ar_net_rule *rule, const struct destination *to)
{
	return (!rule->port || rule->port == to->port) && (!rule->family || rule->family == to->family) &&
	       same_prefix(rule->address, to->address, rule->prefix);
}

static __always_inline bool is_allowed(const struct ar_net_profile *profile, const struct destination *to)
{
	for (int i = 0; i < AR_NET_RULES; i++) {
		if (i >= profile->count)
			break;
		if (matches(&profile->rules[i], to))
			return profile->rules[i].allow;
	}
	return profile->flags & AR_NET_DEFAULT_ALLOW;
}

static __always_inline bool profile_allows(struct cgroup *cgrp, const struct seen *seen,
					   const struct destination *to)
{
	struct cgroup *call = bpf_cgroup_ancestor(cgrp, seen->level);
	struct ar_net_profile *profile;
	bool allowed = false;

	if (!call)
		return false;
	profile = bpf_cgrp_storage_get(&ar_net_profile, call, 0, 0);
	if (profile)
		allowed = is_allowed(profile, to);
	bpf_cgroup_release(call);
	return allowed;
}

/* 1 to let a task send there, 0 for EPERM. */
static __always_inline int check(const struct destination *to, u32 by)
{
	struct cgroup *cgrp = bpf_get_current_task_btf()->cgroups->dfl_cgrp;
	struct seen *seen = current_seen(cgrp);

	if (!seen) /* no memory: a call is denied, all others are none of our business */
		return !is_in_call(cgrp);
	if (seen->verdict == NO_CALL)
		return 1;
	if (seen->verdict == OPEN || (seen->verdict == PROFILE && profile_allows(cgrp, seen, to))) {
		counts_of(seen->call); /* from here on its bytes are counted */
		return 1;
	}
	tell_denied(seen->call, by, to->family == 4 ? AF_INET : AF_INET6, to);
	return 0;
}

static __always_inline int check4(struct bpf_sock_addr *ctx, u32 by)
{
	struct destination to = { .family = 4, .protocol = ctx->protocol };
	/* To the kernel 0.0.0.0 is this host (and :: as well). */
	u32 address = ctx->user_ip4 ?: IP_ANY_LOOPBACK;

	*(u32 *)to.address = address;
	to.port = bpf_ntohs((u16)ctx->user_port);
	return check(&to, by);
}

static __always_inline int check6(struct bpf_sock_addr *ctx, u32 by)
{
	struct destination to = { .family = 6, .protocol = ctx->protocol };
	u32 *address = (u32 *)to.address;
	u32 a = ctx->user_ip6[0], b = ctx->user_ip6[1], c = ctx->user_ip6[2], d = ctx->user_ip6[3];

	to.port = bpf_ntohs((u16)ctx->user_port);
	if (!a && !b && c == bpf_htonl(0xffff)) { /* ::ffff:a.b.c.d is IPv4 by another name */
		to.family = 4;
		address[0] = d ?: IP_ANY_LOOPBACK;
		return check(&to, by);
	}
	address[0] = a;
	address[1] = b;
	address[2] = c;
	address[3] = a || b || c || d ? d : bpf_htonl(1);
	return check(&to, by);
}

SEC("cgroup/connect4")
int net_connect4(struct bpf_sock_addr *ctx)
{
	return check4(ctx, AR_BY_CONNECT);
}

SEC("cgroup/connect6")
int net_connect6(struct bpf_sock_addr *ctx)
{
	return check6(ctx, AR_BY_CONNECT);
}

SEC("cgroup/sendmsg4")
int net_sendmsg4(struct bpf_sock_addr *ctx)
{
	return check4(ctx, AR_BY_SENDMSG);
}

SEC("cgroup/sendmsg6")
int net_sendmsg6(struct bpf_sock_addr *ctx)
{
	return check6(ctx, AR_BY_SENDMSG);
}

/* Whether a kind of socket is one whose every destination we see, or one that stays on this host. */
static __always_inline bool is_guarded(int family, int type, int protocol)
{
	type &= SOCK_TYPE_MASK;
	if (family == AF_UNIX || family == AF_NETLINK || family == AF_ALG)
		return true;
	if (family != AF_INET && family != AF_INET6)
		return false;
	return (type == SOCK_STREAM && (!protocol || protocol == IPPROTO_TCP)) ||
	       (type == SOCK_DGRAM && (!protocol || protocol == IPPROTO_UDP));
}

SEC("fmod_ret/security_socket_create")
int BPF_PROG(net_socket, int family, int type, int protocol, int kern, int ret)
{
	struct destination to = { .port = type & SOCK_TYPE_MASK, .protocol = protocol };
	struct cgroup *cgrp;
	struct seen *seen;

	if (ret || kern || family == AF_UNIX)
		return ret;
	cgrp = bpf_get_current_task_btf()->cgroups->dfl_cgrp;
	seen = current_seen(cgrp);
	if (!seen)
		return is_guarded(family, type, protocol) || !is_in_call(cgrp) ? 0 : -EPERM;
	if (seen->verdict == NO_CALL)
		return 0;
	if (seen->verdict == OPEN || is_guarded(family, type, protocol)) {
		if (family == AF_INET || family == AF_INET6)
			counts_of(seen->call); /* a server never connects, and has bytes as well */
		return 0;
	}
	tell_denied(seen->call, AR_BY_SOCKET, family, &to);
	return -EPERM;
}

/* Bytes by the cgroup in which the socket was made; there is no current task here. */
SEC("cgroup_skb/egress")
int net_egress(struct __sk_buff *skb)
{
	u64 id = bpf_skb_cgroup_id(skb);
	struct ar_net_count *count = bpf_map_lookup_elem(&ar_net_counts, &id);

	if (count)
		__sync_fetch_and_add(&count->tx_bytes, skb->len);
	return 1;
}

SEC("cgroup_skb/ingress")
int net_ingress(struct __sk_buff *skb)
{
	u64 id = bpf_skb_cgroup_id(skb);
	struct ar_net_count *count = bpf_map_lookup_elem(&ar_net_counts, &id);

	if (count)
		__sync_fetch_and_add(&count->rx_bytes, skb->len);
	return 1;
}
