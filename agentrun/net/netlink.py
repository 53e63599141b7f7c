"""The only module that speaks rtnetlink, by pyroute2, which is optional: 0.7 to 0.9 are known to work.

That is imported on first use (0.1 s of CPU time): most hosts have no rates.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from agentrun.base.errors import NetError, NetLibraryError, reason
from agentrun.net.model import (
    AT_INGRESS,
    HANDLE,
    INGRESS,
    PRIORITY,
    ROOT,
    Counts,
    DropLink,
    DropRedirect,
    DropShape,
    Filter,
    Host,
    Link,
    MakeClsact,
    MakeIfb,
    Operation,
    Qdisc,
    Redirect,
    SetShape,
)

MISSING = "pyroute2 is not installed (apt install python3-pyroute2)"
_LINK_GROUP = 1  # RTMGRP_LINK
_ALL_PROTOCOLS = 3  # ETH_P_ALL
# value/mask+offset: a u32 key that always matches. The classifier `matchall` is not in every kernel.
_EVERYTHING = "0x0/0x0+0"
_MODULES = {errno.ENOENT, errno.EOPNOTSUPP}  # a kind that this kernel has no module for
# What is to be taken away is gone already.
_GONE = {errno.ENODEV, errno.ENOENT, errno.EINVAL}
_DROPS = (DropShape, DropLink, DropRedirect)


def is_installed() -> bool:
    """Whether pyroute2 is there."""
    from importlib.util import find_spec

    return find_spec("pyroute2") is not None


def link_notices() -> socket.socket:
    """A socket that is readable when a link of our own network namespace came, went or changed."""
    links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    links.setblocking(False)
    links.bind((0, _LINK_GROUP))
    return links


class Netlink:
    """A route socket in our own network namespace. Use `opened`."""

    def __init__(self, socket: Any, error: type[Exception]) -> None:
        self._socket = socket
        self._error = error

    def read(self) -> Host:
        """All interfaces and qdiscs, and the filters where there can be some. Raises NetError."""
        with self._explained("read the host's network"):
            links = tuple(map(_link, self._socket.get_links()))
            qdiscs = tuple(map(_qdisc, self._socket.get_qdiscs()))
            places = {qdisc.link for qdisc in qdiscs if qdisc.parent == INGRESS}
            filters: list[Filter] = []
            for index in sorted(places):
                filters += _filters(index, self._socket.get_filters(index=index, parent=AT_INGRESS))
        return Host(links, qdiscs, tuple(filters))

    def netns_id(self, fd: int) -> int | None:
        """How our namespace calls another one; None where they share no veth. Raises NetError.

        Ask after `read`: the kernel gives the id when it first tells of a veth that leads there.
        """
        with self._explained("ask for the id of a network namespace"):
            found = self._socket.get_netnsid(fd=fd)["nsid"]
        return None if found is None or found < 0 or found == 0xFFFF_FFFF else int(found)

    def inside(self, netns_id: int, *, index: int = 0, name: str = "") -> Link | None:
        """One interface of another namespace; None where it has no such one. Raises NetError.

        One at a time: a container may make as many as it likes, and we are not to read them all.
        """
        which: dict[str, Any] = {"index": index} if index else {"ifname": name}
        try:
            with self._explained("look at an interface of a container"):
                found = list(self._socket.link("get", if_netnsid=netns_id, **which))
        except (NetError, UnicodeError):  # gone, or a name that is no text
            return None
        return _link(found[0]) if found else None

    def apply(self, host: Host, operation: Operation) -> None:
        """Carry one operation out. `host` is what the decision was made by. Raises NetError."""
        try:
            with self._explained(_words(operation)):
                self._carry_out(host, operation)
        except NetError as error:
            number = getattr(error.__cause__, "code", None)
            if not (isinstance(operation, _DROPS) and number in _GONE):
                raise

    def _carry_out(self, host: Host, operation: Operation) -> None:
        match operation:
            case SetShape(link, shape, exists):
                self._socket.tc(
                    "change" if exists else "add",
                    "tbf",
                    index=self._index(host, link),
                    handle=HANDLE,
                    rate=shape.rate,
                    burst=shape.burst,
                    limit=shape.limit,
                )
            case DropShape(link):
                self._socket.tc("del", index=self._index(host, link), handle=HANDLE, parent=ROOT)
            case MakeIfb(name):
                self._socket.link("add", ifname=name, kind="ifb")
                self._socket.link("set", index=self._index(host, name), state="up")
            case DropLink(name):
                self._socket.link("del", index=self._index(host, name))
            case MakeClsact(link):
                self._socket.tc("add", "clsact", index=self._index(host, link))
            case Redirect(link, ifb):
                self._socket.tc(
                    "add-filter",
                    "u32",
                    index=self._index(host, link),
                    parent=AT_INGRESS,
                    prio=PRIORITY,
                    protocol=_ALL_PROTOCOLS,
                    target=1 << 16,
                    keys=[_EVERYTHING],
                    action={
                        "kind": "mirred",
                        "direction": "egress",
                        "action": "redirect",
                        "ifindex": self._index(host, ifb),
                    },
                )
            case DropRedirect(link):
                self._socket.tc(
                    "del-filter",
                    index=self._index(host, link),
                    parent=AT_INGRESS,
                    info=PRIORITY << 16,
                )

    def _index(self, host: Host, name: str) -> int:
        """By what was read, as names may be another interface's by now; what we just made is looked up."""
        known = host.named(name)
        if known is not None:
            return known.index
        found = self._socket.link_lookup(ifname=name)
        if not found:
            raise self._error(errno.ENODEV, "no such interface")
        return int(found[0])

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            code = abs(int(getattr(error, "code", 0) or 0))
            text = reason(OSError(code, os.strerror(code)))
            hint = "; has this kernel the module?" if code in _MODULES else ""
            raise NetError(f"{what}: {text}{hint}") from error
        except OSError as error:
            raise NetError(f"{what}: {reason(error)}") from error


@contextlib.contextmanager
def opened() -> Iterator[Netlink]:
    """Netlink while it is used. Raises NetError, also where pyroute2 is missing."""
    try:
        from pyroute2 import IPRoute, NetlinkError
    except ImportError as error:
        raise NetLibraryError(MISSING) from error
    try:
        socket = IPRoute()
    except OSError as error:
        raise NetError(f"open a netlink socket: {reason(error)}") from error
    try:
        yield Netlink(socket, NetlinkError)
    finally:
        socket.close()


def _words(operation: Operation) -> str:
    match operation:
        case SetShape(link, shape):
            return f"shape {link} to {shape.rate * 8} bit/s (tbf)"
        case MakeIfb(name):
            return f"make {name} (ifb)"
        case MakeClsact(link):
            return f"make an ingress qdisc on {link} (clsact)"
        case Redirect(link, ifb):
            return f"redirect {link} to {ifb} (u32, mirred)"
        case DropShape(name) | DropLink(name) | DropRedirect(name):
            return f"take our rate off {name}"


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    return Link(
        int(message["index"]),
        str(message.get_attr("IFLA_IFNAME")),
        str(kind or ""),
        message.get_attr("IFLA_LINK"),
        message.get_attr("IFLA_LINK_NETNSID"),
    )


def _qdisc(message: Any) -> Qdisc:
    kind = str(message.get_attr("TCA_KIND"))
    options = message.get_attr("TCA_OPTIONS") if kind == "tbf" else None
    parameters = (options.get_attr("TCA_TBF_PARMS") if options else None) or {}
    return Qdisc(
        int(message["index"]),
        kind,
        int(message["handle"]),
        int(message["parent"]),
        int(parameters.get("rate", 0)),
        int(parameters.get("limit", 0)),
        _counts(message.get_attr("TCA_STATS2")),
    )


def _counts(stats: Any) -> Counts:
    """TCA_STATS2 has 64 bits of bytes; the older TCA_STATS wraps within the hour at a gigabit."""
    basic = (stats.get_attr("TCA_STATS_BASIC") if stats else None) or {}
    queue = (stats.get_attr("TCA_STATS_QUEUE") if stats else None) or {}
    return Counts(
        int(basic.get("bytes", 0)),
        int(basic.get("packets", 0)),
        int(queue.get("drops", 0)),
        int(queue.get("backlog", 0)),
    )


def _filters(index: int, messages: Any) -> Iterator[Filter]:
    """Each priority once: u32 also tells of its hash table, which has no action."""
    found: dict[int, Filter] = {}
    for message in messages:
        priority = int(message["info"]) >> 16
        kind, target = str(message.get_attr("TCA_KIND")), _redirect_target(message)
        if priority not in found or target is not None:
            found[priority] = Filter(index, kind, priority, target)
    yield from found.values()


def _redirect_target(message: Any) -> int | None:
    """Where our own kind of filter redirects to; None for every other."""
    at: Any = message
    if message.get_attr("TCA_KIND") != "u32":
        return None
    for name in ("TCA_OPTIONS", "TCA_U32_ACT", "TCA_ACT_PRIO_1", "TCA_ACT_OPTIONS", "TCA_MIRRED_PARMS"):
        at = at.get_attr(name)
        if at is None or (name == "TCA_OPTIONS" and not hasattr(at, "get_attr")):
            return None
    return int(at["ifindex"])
