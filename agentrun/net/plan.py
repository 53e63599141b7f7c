"""From what is there and what is wanted to what is to be done. Pure.

What goes to a container waits in a token bucket (tbf) at the host's end of its veth. What comes from it is
redirected to an ifb of its own, and waits there in another one: a police action would need no ifb, but it
drops where a bucket lets wait. Nothing of this is in the container's namespace, so nothing in the container
can take it away, whatever its capabilities.

What somebody else put there is never touched: their qdisc or filter stays, and the rate is not enforced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentrun.net.model import (
    HANDLE,
    IFB_PREFIX,
    INGRESS,
    PRIORITY,
    DropLink,
    DropRedirect,
    DropShape,
    Host,
    Link,
    MakeClsact,
    MakeIfb,
    Operation,
    Qdisc,
    Redirect,
    SetShape,
    Shape,
)
from agentrun.net.rate import Rates

_BURST_S, _BURST_LEAST, _BURST_MOST = 0.05, 16 << 10, 4 << 20
_QUEUE_S, _QUEUE_LEAST, _QUEUE_MOST = 0.1, 64 << 10, 4 << 20


@dataclass(slots=True)
class Plan:
    """Operations in order, and why what is wanted cannot be."""

    operations: list[Operation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def shape_of(rate: int) -> Shape:
    """The token bucket of a rate in bit/s.

    50 ms of it at once, so that a timer that comes late loses nothing, and at least what jumbo frames need;
    100 ms more may wait: TCP then fills the rate, and nobody waits longer than that for a packet.
    """
    per_s = rate // 8
    burst = min(max(int(per_s * _BURST_S), _BURST_LEAST), _BURST_MOST)
    waiting = min(max(int(per_s * _QUEUE_S), _QUEUE_LEAST), _QUEUE_MOST)
    return Shape(per_s, burst, burst + waiting)


def ifb_name(link: Link) -> str:
    """The ifb of an interface: by index, which is not given twice while the host is up, as names are."""
    return f"{IFB_PREFIX}{link.index}"


def is_ifb(link: Link) -> bool:
    """Whether it is one of ours."""
    return link.kind == "ifb" and link.name.startswith(IFB_PREFIX) and link.name[len(IFB_PREFIX) :].isdigit()


def is_ours(qdisc: Qdisc | None) -> bool:
    """Whether a qdisc is one that we made."""
    return qdisc is not None and qdisc.kind == "tbf" and qdisc.handle == HANDLE


def plan_link(host: Host, link: Link, rates: Rates) -> Plan:
    """What to do at the host's end of one veth so that it has these rates (none: nothing of ours)."""
    plan = Plan()
    _plan_shape(plan, host, link, rates.ingress)
    _plan_redirect(plan, host, link, rates.egress)
    return plan


def _plan_shape(plan: Plan, host: Host, link: Link, rate: int | None) -> None:
    """Our tbf as the root qdisc."""
    there = host.qdisc(link.index)
    if there is not None and not is_ours(there):
        if rate is not None:
            plan.problems.append(f"{link.name} has a qdisc of somebody else ({there.kind})")
    elif rate is None:
        if there is not None:
            plan.operations.append(DropShape(link.name))
    else:
        shape = shape_of(rate)
        if there is None or (there.rate, there.limit) != (shape.rate, shape.limit):
            plan.operations.append(SetShape(link.name, shape, there is not None))


def _plan_redirect(plan: Plan, host: Host, link: Link, rate: int | None) -> None:
    """An ifb with our tbf, and a filter that leads there."""
    filters = host.filters_of(link.index)
    ours = [found for found in filters if found.priority == PRIORITY]
    others = [found for found in filters if found.priority != PRIORITY]
    ifb = host.named(ifb_name(link))
    if rate is None or others:
        # A filter of theirs may accept or redirect what ours should see, or ours hide it from theirs.
        if rate is not None:
            plan.problems.append(
                f"{link.name} has filters of somebody else at its ingress ({others[0].kind})"
            )
        plan.operations += [DropRedirect(link.name)] if ours else []
        plan.operations += [DropLink(ifb.name)] if ifb is not None and is_ifb(ifb) else []
        return
    if ifb is not None and not is_ifb(ifb):
        plan.problems.append(f"{ifb.name} is an interface of somebody else ({ifb.kind})")
        return
    name = ifb_name(link)
    if ifb is None:
        plan.operations += [MakeIfb(name), SetShape(name, shape_of(rate), False)]
    else:
        _plan_shape(plan, host, ifb, rate)
    if host.qdisc(link.index, INGRESS) is None:
        plan.operations.append(MakeClsact(link.name))
    if ifb is None or [found.target for found in ours] != [ifb.index]:
        plan.operations += [DropRedirect(link.name)] if ours else []
        plan.operations.append(Redirect(link.name, name))


def interfaces(operation: Operation) -> tuple[str, ...]:
    """The interfaces that an operation is about, first the one that it changes."""
    if isinstance(operation, Redirect):
        return operation.link, operation.ifb
    return (operation.name if isinstance(operation, (MakeIfb, DropLink)) else operation.link,)


def orphans(host: Host) -> list[Operation]:
    """Remove our ifbs whose interface is gone: they outlive the veth that they were made for."""
    return [
        DropLink(link.name)
        for link in host.links
        if is_ifb(link) and host.link(int(link.name[len(IFB_PREFIX) :])) is None
    ]


def has_ours(host: Host) -> bool:
    """Whether anything of ours is left on this host."""
    return any(map(is_ifb, host.links)) or any(map(is_ours, host.qdiscs))


def plan_all(host: Host, wanted: Mapping[int, Rates]) -> dict[int, Plan]:
    """What to do for each namespace, by its id. Interfaces of others keep what they have.

    A container that could hide its interface from us (a namespace inside its own) would be rid of its rate
    if they did not; the veth takes it along when it goes.
    """
    plans = {}
    for netns_id, rates in wanted.items():
        plans[netns_id] = whole = Plan()
        for link in host.peers(netns_id):
            one = plan_link(host, link, rates)
            whole.operations += one.operations
            whole.problems += one.problems
    return plans


_WAYS_OUT = ("", "macvlan", "macvtap", "ipvlan", "ipvtap")  # "": no virtual interface at all
_INNER = ("dummy", "bridge", "ifb")


def gaps(peers: Iterable[Link], inside: Mapping[str, str | None], rates: Rates) -> list[str]:
    """Why a namespace has a way around the rates, or none at all to put them.

    `inside` are the kinds (None: unknown) of those of its interfaces that have no end on the host, by name,
    without loopback. Beside others that have one, those that lead out are named: a bridge or a tunnel inside
    leads to one of the others.
    """
    if not rates:
        return []
    has_end = any(True for _ in peers)
    return [
        f"{name} has no end on this host" + ("" if kind is None else f" ({kind or 'physical'})")
        for name, kind in inside.items()
        if (kind in _WAYS_OUT if has_end else kind not in _INNER)
    ]
