"""In agentrund: say in a call's record where its container's network rate was not in force.

agentrund itself has no network. It reads what the keeper says, and where nobody says anything the rate is not
in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.net import status
from agentrun.net.rate import NONE, Rates, of_tier
from agentrun.service.policywatch import InForce

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

NOT_ENFORCED = "network.rate"


def rates_of(policy: Mapping[str, Any]) -> dict[str, Rates]:
    """What each tier of a compiled policy has. Pure."""
    return {name: of_tier(policy, name) for name in policy["tiers"]}


class RateNotes(Part):
    """Notes `network.rate` in `not_enforced` of the calls that it applies to."""

    def __init__(self, daemon: Daemon) -> None:
        self._paths = daemon.paths
        self._rates = InForce[dict[str, Rates]](daemon.paths, rates_of, {})

    def is_done(self, call: Call) -> bool:
        """Look at the end of a call: at its beginning the keeper may not have seen its container yet."""
        state = call.state
        wants = state.get("mode") == "enforce" and self._rates.says().get(str(state.get("tier")), NONE)
        if wants and not status.holds(status.read(self._paths), call.where):
            noted = state.get("not_enforced")
            call.unsaved["not_enforced"] = sorted({*(noted if isinstance(noted, list) else ()), NOT_ENFORCED})
        return True
