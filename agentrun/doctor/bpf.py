"""What `agentrunctl doctor` says of eBPF. Looks, changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import modules, pins, ringbuf
from agentrun.calls import netmark
from agentrun.decision import inforce

_LEFT_OUT = {"exec", "exit", "attach"}
_HINT = "systemctl enable --now agentrun-bpf, or agentrunctl bpf load"


def restricted_classes(policy: dict[str, Any]) -> list[str]:
    """The classes whose calls need the network programs."""
    return [
        name
        for name, klass in policy["classes"].items()
        if netmark.program_of(policy, klass.get("network")) is not None
    ]


def findings(paths: Paths) -> Iterator[tuple[str, str, str]]:
    """(level, what, text) of each thing that is looked at; see `doctor.finding.Finding`."""
    loaded = inforce.load(paths)
    needing = restricted_classes(loaded.policy)
    need = f"; classes {', '.join(needing)} have a network profile that does not hold" if needing else ""
    if not loaded.uses_bpf:
        yield "problem" if needing else "note", "eBPF", f"enforcement = {loaded.enforcement!r}{need}"
        return
    if not os.path.exists("/sys/kernel/btf/vmlinux") or not pins.is_mounted():
        yield "problem" if needing else "note", "eBPF", f"the kernel has no BTF or no {pins.BPFFS}{need}"
        return
    for module in modules.MODULES.values():
        if not module.default and modules.loaded_version(module) is None:
            continue  # only for those who ask for it
        wanted = loaded.enforcement == "bpf" and not module.bonus
        yield from _module(module, wanted, need if module.name == "net" else "")
    yield from _drops()


def _drops() -> Iterator[tuple[str, str, str]]:
    try:
        found = describe_drops(ringbuf.dropped()) if ringbuf.is_loaded() else None
    except BpfError as error:
        found = "problem", str(error)
    if found is not None:
        yield found[0], "eBPF events dropped", found[1]


def describe_drops(dropped: Mapping[str, int]) -> tuple[str, str]:
    """Level and text for the events that were dropped, by kind. Pure.

    Execs, exits and moves beyond some fifty a second of each call are left out on purpose; the others only
    where nobody reads.
    """
    counts = {name: count for name, count in dropped.items() if count and name != "all"}
    text = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
    if counts.keys() <= _LEFT_OUT:
        return "ok", text
    return "note", f"{text} (nobody read them in time: does agentrund run?)"


def _module(module: modules.Module, wanted: bool, need: str) -> Iterator[tuple[str, str, str]]:
    what = f"eBPF {module.name}"
    try:
        status = modules.status(module)
    except BpfError as error:
        yield "problem", what, str(error)
        return
    if status.loaded is None:
        text = f"not loaded ({_HINT})" if status.file else "not installed (make bpf, make install)"
        yield "problem" if need or wanted else "note", what, text + need
    elif status.dead:
        yield "problem", what, f"no longer attached: {', '.join(status.dead)} ({_HINT}){need}"
    elif not status.current:
        yield "note", what, f"in force, but not the installed version ({_HINT})"
    else:
        yield "ok", what, f"in force: {module.what}"
    for text in status.lost:
        yield "note", what, f"without: {text}"
