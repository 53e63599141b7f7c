"""`agentrunctl net`: the networks of containers, their rates, and what went through."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentrun.base.errors import AgentrunError
from agentrun.base.paths import Paths, host_paths
from agentrun.base.units import show_rate, show_size
from agentrun.bpf.netcounts import NetCounts
from agentrun.calls.session import open_where
from agentrun.decision import inforce
from agentrun.net import keeper, status
from agentrun.net.look import Interface, Network, interfaces_of, look
from agentrun.net.model import Counts, Host
from agentrun.net.netlink import opened
from agentrun.net.sessions import Session
from agentrun.terminal import plain


@click.command()
@click.argument("container", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--apply", "change", is_flag=True, help="Bring the rates of the policy in force, once.")
@click.option("--keep", is_flag=True, help="Go on doing so (what agentrun-net.service runs).")
def net(container: str | None, as_json: bool, change: bool, keep: bool) -> None:
    """Show the networks of all containers, or of CONTAINER (its id or name, or how that begins)."""
    if os.geteuid() != 0:
        raise AgentrunError("needs root, like the engines whose networks it looks at")
    paths = host_paths()
    if keep:
        keeper.keep(paths)
        return
    if change and container:
        raise click.UsageError("--apply is for all containers")
    lock = keeper.take_lock(paths) if change else None
    with opened() as netlink:
        host, networks = look(paths, inforce.load(paths), netlink, change=lock is not None, names=True)
    if lock is not None:
        status.write(paths, status.describe(networks), "")
        os.close(lock)
    rows = [
        describe(paths, host, network, session)
        for network in networks
        for session in network.sessions
        if _is_meant(session, container)
    ]
    if container and not rows:
        raise AgentrunError(f"find container {container!r}: none that agentrun takes part in runs")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(_table(rows))


def _is_meant(session: Session, container: str | None) -> bool:
    return not container or session.container_id.startswith(container) or session.name == container


def _counts(counts: Counts | None) -> dict[str, int] | None:
    if counts is None:
        return None
    return {
        "bytes": counts.bytes,
        "packets": counts.packets,
        "drops": counts.drops,
        "waiting": counts.backlog,
    }


def _interface(found: Interface) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "host": None if found.host is None else {"name": found.host.name, "index": found.host.index},
        "rates": dict(found.rates.items()),
        "egress": _counts(found.egress),
        "ingress": _counts(found.ingress),
    }


def describe(paths: Paths, host: Host, network: Network, session: Session) -> dict[str, Any]:
    """One session as JSON. Rates are bit/s; `calls` is what the eBPF programs counted for its live calls."""
    rates = dict(session.rates.items())
    return {
        "container": session.container_id,
        "name": session.name,
        "tier": session.tier,
        "netns": None if network.is_host else network.key[1],
        "is_host": network.is_host,
        "shared_with": [other.container_id for other in network.sessions if other is not session],
        "rates": rates,
        "enforced": bool(session.rates) and not network.why,
        "why": network.why if session.rates else [],
        "interfaces": [_interface(found) for found in interfaces_of(host, network)],
        "calls": _calls(paths, session),
    }


def _calls(paths: Paths, session: Session) -> list[dict[str, Any]]:
    """The counters of the session's live calls, where the `net` programs are loaded."""
    live = open_where(paths, session.where)
    if live is None:
        return []
    counters, found = NetCounts(), []
    with contextlib.closing(counters), contextlib.closing(live):
        for slot, state in live.states():
            counts = counters.read(f"{state.get('calls')}/{slot}")
            if counts is not None:
                found.append({"id": state.get("id"), **counts})
    return found


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("CONTAINER", "NAME", "TIER", "INTERFACE", "HOST", "DIRECTION", "RATE", "BYTES", "PACKETS",
                   "DROPPED"):  # fmt: skip
        table.add_column(column, no_wrap=True)
    for row in rows:
        head = (row["container"][:12], row["name"] or "-", row["tier"] or "-")
        for cells in _lines(row):
            table.add_row(*map(plain, (*head, *cells)))
            head = ("", "", "")
        for why in row["why"]:
            table.add_row("", "", "", plain(f"not enforced: {why}"))
    return table


def _lines(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """The interfaces of a session, one line for each direction that has a rate, or one; then its calls."""
    lines: list[tuple[str, ...]] = []
    for found in row["interfaces"]:
        where = (found["name"], found["host"]["name"] if found["host"] else "-")
        limited = [name for name in ("egress", "ingress") if found[name] is not None]
        for name in limited:
            counts = found[name]
            numbers = (show_size(counts["bytes"]), str(counts["packets"]), str(counts["drops"]))
            lines.append((*where, name, show_rate(found["rates"][name]), *numbers))
        if not limited:
            lines.append((*where, "-", "-", "-", "-", "-"))
    kind = "the host's" if row["is_host"] else "none"
    lines = lines or [(kind, "-", "-", "-", "-", "-", "-")]
    for call in row["calls"]:
        denied = f"{call['denied']} denied" if call["denied"] else "-"
        lines.append((f"call {call['id']}", "-", "egress", "-", show_size(call["tx_bytes"]), "-", denied))
        lines.append(("", "-", "ingress", "-", show_size(call["rx_bytes"]), "-", "-"))
    return lines
