"""In agentrund: say in a call's record where its container's network rate was not in force.

agentrund itself has no network. It reads what the keeper says, and where nobody says anything the rate is not
in force.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentrun import fastjson, files
from agentrun.live import Call, Part
from agentrun.net import status
from agentrun.net.rate import NONE, Rates, of_tier
from agentrun.paths import Paths

if TYPE_CHECKING:
    from agentrun.daemon import Daemon

NOT_ENFORCED = "network.rate"
_POLICY_LIMIT = 16 << 20


class RateNotes(Part):
    """Notes `network.rate` in `not_enforced` of the calls that it applies to."""

    def __init__(self, daemon: Daemon) -> None:
        self._paths: Paths = daemon.paths
        self._stamp: tuple[int, int] | None = None
        self._tiers: dict[str, Rates] = {}

    def is_done(self, call: Call) -> bool:
        """Look at the end of a call: at its beginning the keeper may not have seen its container yet."""
        state = call.state
        wants = state.get("mode") == "enforce" and self._rates(str(state.get("tier")))
        if wants and not status.holds(status.read(self._paths), call.where):
            noted = state.get("not_enforced")
            call.unsaved["not_enforced"] = sorted({*(noted if isinstance(noted, list) else ()), NOT_ENFORCED})
        return True

    def _rates(self, tier: str) -> Rates:
        """A tier's rates by the policy in force, read anew when it was compiled anew."""
        try:
            info = os.stat(self._paths.compiled)
            if (info.st_mtime_ns, info.st_ino) != self._stamp:
                self._stamp, self._tiers = (info.st_mtime_ns, info.st_ino), {}
                # Not `config.load`: that may compile, which the loop has no time for.
                compiled = fastjson.loads(files.read_regular(self._paths.compiled, _POLICY_LIMIT) or b"")
                policy = compiled["policy"]
                self._tiers = {name: of_tier(policy, name) for name in policy["tiers"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._tiers = {}  # an exec compiles it, or says what is wrong with it
        return self._tiers.get(tier, NONE)
