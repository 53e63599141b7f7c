"""Rates: what a tier has, what several containers of one network namespace have together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentrun.base.units import show_rate


@dataclass(frozen=True, slots=True)
class Rates:
    """Bits per second as the container sees it: `egress` is what it sends; None is not limited."""

    egress: int | None = None
    ingress: int | None = None

    def __bool__(self) -> bool:
        return self.egress is not None or self.ingress is not None

    def __str__(self) -> str:
        parts = [f"{name} {show_rate(value)}" for name, value in self.items() if value is not None]
        return ", ".join(parts) or "not limited"

    def items(self) -> tuple[tuple[str, int | None], ...]:
        """Both by name."""
        return ("egress", self.egress), ("ingress", self.ingress)


NONE = Rates()


def of_tier(policy: Mapping[str, Any], tier: str | None) -> Rates:
    """The rates of containers of a tier; without a tier there are none."""
    network = policy.get("tiers", {}).get(tier, {}).get("network", {})
    return Rates(network.get("egress"), network.get("ingress"))


def are_wanted(policy: Mapping[str, Any]) -> bool:
    """Whether any tier has a rate."""
    return any(of_tier(policy, name) for name in policy.get("tiers", {}))


def strictest(rates: Iterable[Rates]) -> Rates:
    """What holds for containers that share a network namespace: the least of each."""
    found = list(rates)
    egress = [each.egress for each in found if each.egress is not None]
    ingress = [each.ingress for each in found if each.ingress is not None]
    return Rates(min(egress, default=None), min(ingress, default=None))
