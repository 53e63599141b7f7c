"""`agentrunctl doctor`: what holds on this host, what does not, and what to do. Looks, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from agentrun.base.paths import Paths
from agentrun.bpf import scheduler
from agentrun.doctor import bpf as bpf_check
from agentrun.doctor.daemon import daemon
from agentrun.doctor.engines import engines
from agentrun.doctor.finding import Finding
from agentrun.doctor.host import backends, cgroups, configuration, directories, kernel, log
from agentrun.doctor.network import network_rates
from agentrun.doctor.records import records


def examine(paths: Paths) -> list[Finding]:
    """Everything that can be seen from here. A check that itself fails is a problem, not a crash."""
    found: list[Finding] = []
    for check in (
        cgroups,
        backends,
        configuration,
        daemon,
        directories,
        records,
        kernel,
        _bpf,
        _scheduler,
        network_rates,
        engines,
        log,
    ):
        try:
            found += check(paths)
        except OSError as error:
            found.append(Finding("problem", check.__name__.strip("_"), f"cannot be looked at: {error}"))
    return found


def _bpf(paths: Paths) -> Iterator[Finding]:
    for found in bpf_check.findings(paths):
        yield Finding(*found)


def _scheduler(paths: Paths) -> Iterator[Finding]:
    for level, text in scheduler.findings(paths):
        yield Finding(level, "CPU scheduler", text)
