"""Where new calls wait before they start: a gate for each domain, closed for ranks below one. Pure.

Freezing stops those that run. The gate keeps more from starting where they would take what those above them
need, or what is left of the machine:

    headroom < reserve          closed below the highest rank that grows
    a call is frozen            closed below the highest rank in the domain
    headroom < reserve * PEER   closed for every call that may wait

Promises (tested with arbitrary snapshots): closed for no longer than `CLOSED_MOST_S`, then open for at least
`OPEN_LEAST_S` whatever the rest needs; so a gate changes at most twice in that time and `CLEAR_S`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agentrun.base.units import show_size
from agentrun.daemon.controller import rules
from agentrun.daemon.controller.model import Call, Domain, Gate, Growth, Held, Rank, Snapshot

CLOSED_MOST_S = 30.0  # more than the longest wait (plan.ADMISSION_WAIT_MOST): who may be refused is, in time
OPEN_LEAST_S = 1.0
CLEAR_S = 0.5  # without shortage: then it opens
_OPENS = 1.5  # times the headroom that closed it: no flapping around one number
CLOSED_TICK_S = 0.1
CALM_S = 0.25


@dataclass(frozen=True, slots=True)
class Shortage:
    """That a domain has no room for new calls below a rank (None: of any)."""

    below: Rank | None
    why: str


def judge(
    snapshot: Snapshot,
    growth: Mapping[str, Growth],
    held: Mapping[str, Held],
    before: Mapping[str, Gate],
) -> dict[str, Gate]:
    """The gates as they are from now on; none where the policy lets no call wait."""
    if not snapshot.admits:
        return {}
    gates = {}
    for domain in snapshot.domains:
        inside = [call for call in snapshot.calls if domain.key in call.domains]
        gate = before.get(domain.key, Gate())
        found = shortage(domain, inside, growth, held, snapshot.now, is_closed=gate.is_closed)
        gates[domain.key] = move(gate, found, snapshot.now)
    for key in before.keys() - gates.keys():  # nobody lives there any more
        gate = move(before[key], None, snapshot.now)
        if gate.is_closed or snapshot.now - gate.changed_at < OPEN_LEAST_S:
            gates[key] = gate
    return gates


def shortage(
    domain: Domain,
    calls: Iterable[Call],
    growth: Mapping[str, Growth],
    held: Mapping[str, Held],
    now: float,
    *,
    is_closed: bool = False,
) -> Shortage | None:
    """Whether a domain is short of memory for new calls, and for which."""
    inside = list(calls)
    if not inside:
        return None
    frozen = [call for call in inside if held[call.key].frozen_at is not None]
    running = [call for call in inside if held[call.key].frozen_at is None]
    rate = sum(growth[call.key].rate for call in running)
    needed = rules.reserve_of(domain.limit) * (_OPENS if is_closed else 1.0)
    headroom = domain.headroom - rate * rules.REACTION_S
    left = f"{show_size(max(0, domain.headroom))} of {show_size(domain.limit)} left ({domain.key})"
    if headroom < needed * rules.PEER:
        return Shortage(None, left)
    if frozen:
        return Shortage(max(call.rank for call in inside), f"{left}, calls wait that run already")
    growing = [call.rank for call in running if _grows(growth[call.key], now)]
    if growing and headroom < needed:
        return Shortage(max(growing), f"{left}, a call of higher priority grows")
    return None


def _grows(growth: Growth, now: float) -> bool:
    """Whether it was seen to grow; that it is new alone closes no gate."""
    return growth.rate > 0 and now - growth.grew_at < rules.QUIET_S


def move(gate: Gate, found: Shortage | None, now: float) -> Gate:
    """The gate after a look: closed at once, opened only when it has been clear for a while."""
    if not gate.is_closed:
        if found is None or now - gate.changed_at < OPEN_LEAST_S:
            return gate
        return Gate(True, now, now, found.below, found.why)
    if found is not None:
        gate = replace(gate, short_at=now, below=_wider(gate.below, found.below), why=found.why)
    if now - gate.changed_at >= CLOSED_MOST_S or now - gate.short_at >= CLEAR_S:
        return Gate(changed_at=now)
    return gate


def _wider(one: Rank | None, other: Rank | None) -> Rank | None:
    """The rank below which both are closed: while closed, a gate only ever closes for more."""
    return None if one is None or other is None else max(one, other)


def look_again(gates: Mapping[str, Gate]) -> float | None:
    """When to look without being woken; None where there is nothing to see."""
    if any(gate.is_closed for gate in gates.values()):
        return CLOSED_TICK_S
    return CALM_S if gates else None
