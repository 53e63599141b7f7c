"""bpf/agentrun.h in Python. A test compares names, offsets and sizes with the BTF of the built object."""

from __future__ import annotations

import ctypes
import enum

NET_FORMAT = 1
NET_RULES = 128
NET_DEFAULT_ALLOW = 1
NET_XATTR = "user.agentrun.net"
PRESSURE_MEMBERS = 16
SNAPSHOT_CALLS = 1024
LIMIT_HOST = 0
LIMIT_UNKNOWN = (1 << 64) - 1


class Kind(enum.IntEnum):
    """enum ar_event_kind."""

    POPULATED = 1
    EXEC = 2
    EXIT = 3
    OOM_VICTIM = 4
    ATTACH = 5
    DENIED = 6
    PRESSURE = 7


class DeniedBy(enum.IntEnum):
    """enum ar_denied_by."""

    CONNECT = 1
    SENDMSG = 2
    SOCKET = 3


class Event(ctypes.Structure):
    """struct ar_event: the head of everything in the ring buffer."""

    _fields_ = (
        ("time_ns", ctypes.c_uint64),
        ("call", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("value", ctypes.c_int32),
        ("pad", ctypes.c_uint32),
        ("comm", ctypes.c_char * 16),
    )


class Oom(ctypes.Structure):
    """struct ar_oom: a victim, and whose limit it was."""

    _fields_ = (
        ("event", Event),
        ("limit", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
    )


class Listener(ctypes.Structure):
    """struct ar_listener: who is told of OOM kills, and how long a victim waits for that."""

    _fields_ = (
        ("until_ns", ctypes.c_uint64),
        ("hold_ms", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class Denied(ctypes.Structure):
    """struct ar_denied."""

    _fields_ = (
        ("event", Event),
        ("family", ctypes.c_uint32),
        ("by", ctypes.c_uint32),
        ("address", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint32),
        ("protocol", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
    )


class NetCount(ctypes.Structure):
    """struct ar_net_count: one call's network."""

    _fields_ = (
        ("denied", ctypes.c_uint64),
        ("tx_bytes", ctypes.c_uint64),
        ("rx_bytes", ctypes.c_uint64),
        ("last_sample_ns", ctypes.c_uint64),
    )


class NetRule(ctypes.Structure):
    """struct ar_net_rule."""

    _fields_ = (
        ("address", ctypes.c_uint8 * 16),
        ("family", ctypes.c_uint8),
        ("prefix", ctypes.c_uint8),
        ("allow", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
        ("pad2", ctypes.c_uint16),
    )


class NetProfile(ctypes.Structure):
    """struct ar_net_profile."""

    _fields_ = (
        ("format", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("count", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("rules", NetRule * NET_RULES),
    )


class MemcgPolicy(ctypes.Structure):
    """struct ar_memcg_policy: what is wanted of one cgroup, and what came of it."""

    _fields_ = (
        ("throttle_until_ns", ctypes.c_uint64),
        ("soft_bytes", ctypes.c_uint64),
        ("protect_bytes", ctypes.c_uint64),
        ("charges", ctypes.c_uint64),
        ("delays", ctypes.c_uint64),
        ("delay_ms", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class How(enum.IntFlag):
    """enum ar_pressure_how."""

    TELL = 1
    MARK = 2
    TIMER = 4


class PressureMember(ctypes.Structure):
    """struct ar_pressure_member: a call below a limit that calls share."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("soft_bytes", ctypes.c_uint64),
        ("usage", ctypes.c_uint64),
        ("base_bytes", ctypes.c_uint64),
        ("base_ns", ctypes.c_uint64),
        ("grew_ns", ctypes.c_uint64),
        ("marked_ns", ctypes.c_uint64),
        ("rest_ns", ctypes.c_uint64),
        ("rank", ctypes.c_uint32),
        ("is_populated", ctypes.c_uint32),
    )


class Pressure(ctypes.Structure):
    """struct ar_pressure: the limit, its calls, and what the program knows of them."""

    _fields_ = (
        ("limit_bytes", ctypes.c_uint64),
        ("tight_bytes", ctypes.c_uint64),
        ("ample_bytes", ctypes.c_uint64),
        ("looked_ns", ctypes.c_uint64),
        ("told_ns", ctypes.c_uint64),
        ("told_left", ctypes.c_uint64),
        ("looks", ctypes.c_uint64),
        ("marks", ctypes.c_uint64),
        ("how", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("is_short", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("members", PressureMember * PRESSURE_MEMBERS),
    )


class Seen(ctypes.Structure):
    """struct ar_seen: what a call uses."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("usage", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("is_populated", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class Snapshot(ctypes.Structure):
    """struct ar_snapshot: about how many calls we ask."""

    _fields_ = (
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


STRUCTS = {
    "ar_event": Event,
    "ar_oom": Oom,
    "ar_listener": Listener,
    "ar_denied": Denied,
    "ar_net_count": NetCount,
    "ar_net_rule": NetRule,
    "ar_net_profile": NetProfile,
    "ar_memcg_policy": MemcgPolicy,
    "ar_pressure_member": PressureMember,
    "ar_pressure": Pressure,
    "ar_seen": Seen,
    "ar_snapshot": Snapshot,
}
