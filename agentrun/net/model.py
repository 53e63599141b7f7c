"""What there is on the host's side of containers' networks, and what can be done about it. No netlink here.

Handles and parents are as the kernel has them: `major << 16 | minor`.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT = 0xFFFF_FFFF  # TC_H_ROOT
INGRESS = 0xFFFF_FFF1  # TC_H_INGRESS, also TC_H_CLSACT: where an ingress or clsact qdisc hangs
AT_INGRESS = 0xFFFF_FFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS): where its filters hang
# Ours are known by these and by nothing that we would have to remember.
HANDLE = 0xA6E7_0000  # of our tbf qdiscs, `a6e7:` to tc(8)
PRIORITY = 0xA6E7  # of our filters (`pref 42727`)
IFB_PREFIX = "arifb"  # arifb12 shapes what comes in by interface 12


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of the host's network namespace.

    `peer` is the index of a veth's other end, in the namespace that ours knows as `netns_id` (None: our own).
    """

    index: int
    name: str
    kind: str = ""
    peer: int | None = None
    netns_id: int | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a token bucket does: bytes per second, bytes at once, bytes that may wait."""

    rate: int
    burst: int
    limit: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a qdisc, since it was made."""

    bytes: int = 0
    packets: int = 0
    drops: int = 0
    backlog: int = 0  # bytes


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline. `rate` (bytes per second) and `limit` are those of a tbf."""

    link: int
    kind: str
    handle: int
    parent: int
    rate: int = 0
    limit: int = 0
    counts: Counts = Counts()


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter at an interface's ingress; `target` is the interface that it redirects to, if it does."""

    link: int
    kind: str
    priority: int
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The host's namespace as it was found. `filters` are only those of interfaces with an ingress qdisc."""

    links: tuple[Link, ...] = ()
    qdiscs: tuple[Qdisc, ...] = ()
    filters: tuple[Filter, ...] = ()

    def link(self, index: int) -> Link | None:
        """The interface of that index."""
        return next((link for link in self.links if link.index == index), None)

    def named(self, name: str) -> Link | None:
        """The interface of that name."""
        return next((link for link in self.links if link.name == name), None)

    def qdisc(self, index: int, parent: int = ROOT) -> Qdisc | None:
        """What is there; None also for the kernel's own default, which has handle 0 and nobody made."""
        for qdisc in self.qdiscs:
            if qdisc.link == index and qdisc.parent == parent and qdisc.handle:
                return qdisc
        return None

    def filters_of(self, index: int) -> list[Filter]:
        """The filters at an interface's ingress."""
        return [found for found in self.filters if found.link == index]

    def peers(self, netns_id: int | None) -> list[Link]:
        """The host's ends of the veths that lead into a namespace."""
        return [
            link
            for link in self.links
            if netns_id is not None and link.netns_id == netns_id and link.kind == "veth"
        ]


@dataclass(frozen=True, slots=True)
class SetShape:
    """Give an interface our tbf as its root qdisc, or change that."""

    link: str
    shape: Shape
    exists: bool


@dataclass(frozen=True, slots=True)
class DropShape:
    """Take our tbf off an interface."""

    link: str


@dataclass(frozen=True, slots=True)
class MakeIfb:
    """Make an ifb interface of that name and bring it up."""

    name: str


@dataclass(frozen=True, slots=True)
class DropLink:
    """Remove an ifb of ours."""

    name: str


@dataclass(frozen=True, slots=True)
class MakeClsact:
    """Make the place where filters at an interface's ingress hang."""

    link: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send all that comes in by an interface through an ifb; it goes on from there as if it came in then."""

    link: str
    ifb: str


@dataclass(frozen=True, slots=True)
class DropRedirect:
    """Take our filter away."""

    link: str


Operation = SetShape | DropShape | MakeIfb | DropLink | MakeClsact | Redirect | DropRedirect
