"""Network rates, and agentrun-net."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from agentrun.base.paths import Paths
from agentrun.decision import inforce
from agentrun.doctor.finding import Finding
from agentrun.net import netlink, rate
from agentrun.net import status as netstatus


def network_rates(paths: Paths) -> Iterator[Finding]:
    """Rates of containers, where the policy has any."""
    configuration = inforce.load(paths)
    if configuration.mode == "enforce" and rate.are_wanted(configuration.policy):
        yield from rate_findings(netstatus.read(paths), time.monotonic(), netlink.is_installed())


def rate_findings(said: dict[str, Any], now_s: float, is_installed: bool) -> Iterator[Finding]:
    """What agentrun-net says, where the policy has rates. Pure; `now_s` by CLOCK_MONOTONIC."""
    what = "network rates"
    if not is_installed:
        yield Finding("problem", what, f"not enforced: {netlink.MISSING}")
    elif not said or now_s - said["at"] > netstatus.STALE_S:
        text = "agentrun-net does not run: new containers get none (systemctl enable --now agentrun-net)"
        yield Finding("problem", what, text)
    elif said.get("problem"):
        yield Finding("problem", what, f"not enforced: {said['problem']}")
    else:
        sessions = said["sessions"]
        missed = {where: entry for where, entry in sessions.items() if not entry.get("enforced")}
        yield Finding("ok", what, f"in force for {len(sessions) - len(missed)} containers")
        for where, entry in sorted(missed.items()):
            container = where.rpartition("/")[2][:12]
            yield Finding("note", what, f"not in force for {container}: {'; '.join(entry['why'])}")
