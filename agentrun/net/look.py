"""One look at all containers: what their networks are, what is wanted, and, if asked, bring it about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agentrun.base.errors import NetError
from agentrun.base.paths import Paths
from agentrun.decision.config import Config
from agentrun.net import plan as planning
from agentrun.net.model import ROOT, Counts, Host, Link
from agentrun.net.netlink import Netlink
from agentrun.net.rate import NONE, Rates, strictest
from agentrun.net.sessions import Session, netns_key, own_netns
from agentrun.net.sessions import read as read_sessions


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a container: its name inside, the host's end, what ours counted in each direction."""

    name: str
    kind: str | None
    host: Link | None
    rates: Rates = NONE
    egress: Counts | None = None
    ingress: Counts | None = None


@dataclass(slots=True)
class Network:
    """A network namespace with the sessions that are in it. `rates` are the strictest of theirs.

    `why` says why these do not hold, or not everywhere; empty where they do, or where none are wanted.
    """

    key: tuple[int, int]
    sessions: list[Session]
    is_host: bool = False
    netns_id: int | None = None
    peers: list[Link] = field(default_factory=list)
    inside: dict[str, str | None] = field(default_factory=dict)  # those without an end on the host
    names: dict[int, str] = field(default_factory=dict)  # by the index of the host's end: its name inside
    why: list[str] = field(default_factory=list)

    @property
    def rates(self) -> Rates:
        """What is to hold here."""
        return NONE if self.is_host else strictest(session.rates for session in self.sessions)


def networks_of(netlink: Netlink, host: Host, sessions: Iterable[Session], *, names: bool) -> list[Network]:
    """The network namespaces of sessions, each once. Sessions that ended meanwhile are left out."""
    found: dict[tuple[int, int], Network] = {}
    for session in sessions:
        fd = session.open_netns()
        if fd is None:
            continue
        try:
            key = netns_key(fd)
            if key in found:
                found[key].sessions.append(session)
                continue
            network = found[key] = Network(key, [session], key == own_netns())
            if not network.is_host:
                network.netns_id = netlink.netns_id(fd)
                _look_inside(netlink, host, network, session, names=names)
        finally:
            os.close(fd)
    return list(found.values())


def _look_inside(netlink: Netlink, host: Host, network: Network, session: Session, *, names: bool) -> None:
    """Which of the container's interfaces have an end here, and what the others are."""
    network.peers = host.peers(network.netns_id)
    found = session.interfaces()
    if not names and len(found) <= len(network.peers):
        return  # each peer's other end is one of them, so there is no other
    for peer in network.peers:
        there = None
        if network.netns_id is not None and peer.peer:
            there = netlink.inside(network.netns_id, index=peer.peer)
        network.names[peer.index] = there.name if there else "?"
    for name in found:
        if name in network.names.values():
            continue
        other = None if network.netns_id is None else netlink.inside(network.netns_id, name=name)
        network.inside[name] = None if other is None else other.kind


def bring_about(netlink: Netlink, host: Host, networks: Iterable[Network]) -> int:
    """Put rates in force and take ours away where none are wanted; fills `why`. Returns what was done.

    What fails does not keep the others from theirs.
    """
    by_id = {network.netns_id: network for network in networks if network.netns_id is not None}
    done = 0
    for netns_id, plan in planning.plan_all(host, {i: n.rates for i, n in by_id.items()}).items():
        network = by_id[netns_id]
        network.why += plan.problems
        failed: set[str] = set()  # interfaces: what follows for them would fail as well, or do harm
        for operation in plan.operations:
            if failed.intersection(planning.interfaces(operation)):
                continue
            try:
                netlink.apply(host, operation)
                done += 1
            except NetError as error:
                network.why.append(str(error))
                failed.add(planning.interfaces(operation)[0])
    for operation in planning.orphans(host):
        # Where it fails: its interface is gone, so it harms nobody, and the next look tries again.
        with contextlib.suppress(NetError):
            netlink.apply(host, operation)
            done += 1
    return done


def judge(networks: Iterable[Network]) -> None:
    """Fill `why` with what netlink could not tell."""
    for network in networks:
        wanted = strictest(session.rates for session in network.sessions)
        if network.is_host and wanted:
            network.why.append("it uses the host's network")
        network.why += planning.gaps(network.peers, network.inside, network.rates)


def look(
    paths: Paths, configuration: Config, netlink: Netlink, *, change: bool, names: bool = False
) -> tuple[Host, list[Network]]:
    """See the module. With `change` off nothing is done, and what is not in force yet is in `why`.

    `names`, of containers and of interfaces inside, are looked up for people only: they cost time.

    Raises NetError, StateError.
    """
    host = netlink.read()
    networks = networks_of(netlink, host, read_sessions(paths, configuration, names=names), names=names)
    if change:
        if bring_about(netlink, host, networks):
            host = netlink.read()
    else:
        _name_what_is_missing(host, networks)
    judge(networks)
    return host, networks


def _name_what_is_missing(host: Host, networks: Iterable[Network]) -> None:
    for network in networks:
        if network.is_host:
            continue
        for link in network.peers:
            plan = planning.plan_link(host, link, network.rates)
            network.why += plan.problems
            if plan.operations and not plan.problems:
                network.why.append(f"{link.name} is not as it should be yet")


def interfaces_of(host: Host, network: Network) -> Iterator[Interface]:
    """The interfaces of a namespace, with what our qdiscs have counted."""
    for link in network.peers:
        ingress = host.qdisc(link.index, ROOT)
        ifb = host.named(planning.ifb_name(link))
        egress = host.qdisc(ifb.index, ROOT) if ifb is not None and planning.is_ifb(ifb) else None
        ours = [qdisc if planning.is_ours(qdisc) else None for qdisc in (egress, ingress)]
        rates = Rates(*(None if qdisc is None else qdisc.rate * 8 for qdisc in ours))
        counts = [None if qdisc is None else qdisc.counts for qdisc in ours]
        yield Interface(network.names.get(link.index, "?"), "veth", link, rates, *counts)
    for name, kind in network.inside.items():
        yield Interface(name, kind, None)
