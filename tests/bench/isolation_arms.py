"""The arms of `make bench-isolation`: what protects HIGH from LOW in each, and how it is set up.

The control arms are what an operator can do with the bare runtime; their numbers are equal shares of the
mix's memory, for nobody knows beforehand what a session will need. The arms with agentrun get one policy,
which does not know it either.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BARE, WRAPPED = "crun", "agentrun-crun"
POLICY_FILE = Path("/etc/agentrun/policy.d/50-isolation.yaml")
FREEZER = Path(__file__).with_name("isolation_freezer.py")

# A call may take what the parent has left; LOW pays with its share of the CPU, and the agent's own memory is
# protected from reclaim. Nothing but the order of the tiers is told: not what a session or a call will need.
POLICY = """\
version: 1
default-class: work
classes:
  work: {memory: {max: 90%}, pids: {max: 512}}
tiers:
  high: {cpu: {weight: 400}, priority: 300}
  low: {cpu: {weight: 5}}
sessions:
  - {name: tier by annotation, match: {annotation: {agentrun.dev/tier: "*"}}, annotations: [tier]}
agent:
  memory: {min: 32M, low: 50%}
"""
ADAPTIVE = POLICY.replace("low: {", "low: {admission: {wait: 10s, then: start}, ").replace(
    "max: 90%}", "max: 90%, learned: true}"
)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a mix. `files(tier, total / sessions)` are cgroup files of a container."""

    name: str
    runtime: str = BARE
    policy: str | None = None
    files: Callable[[str, int], dict[str, str]] = lambda tier, share: {}
    freezer: bool = False
    bpf: bool = False


def _static_max(_tier: str, share: int) -> dict[str, str]:
    return {"memory.max": str(share)}


def _high_only(tier: str, share: int) -> dict[str, str]:
    return {"memory.high": str(share)} if tier == "low" else {}


def _high_low(tier: str, share: int) -> dict[str, str]:
    return {"memory.high": str(share)} if tier == "low" else {"memory.low": str(share)}


ARMS = {
    arm.name: arm
    for arm in (
        Arm("bare"),
        Arm("static-max", files=_static_max),
        Arm("high-only", files=_high_only),
        Arm("high-low", files=_high_low),
        Arm("user-freezer", freezer=True),
        Arm("agentrun-cgroup", WRAPPED, POLICY),
        Arm("agentrun-bpf", WRAPPED, POLICY, bpf=True),
        Arm("agentrun-adaptive", WRAPPED, ADAPTIVE, bpf=True),
        Arm("agentrun-static", WRAPPED, POLICY + "adapt: off\n"),
    )
}
# What is run unless ARMS says otherwise.
COMPARED = tuple(name for name in ARMS if name != "agentrun-static")


def _succeeds(*command: str) -> str | None:
    """None where a command succeeds, else the end of what it printed, in one line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    text = "; ".join((done.stdout + done.stderr).strip().splitlines())[-300:]
    return f"`{' '.join(command[:3])}`: {text or f'status {done.returncode}'}"


def unavailable(arm: Arm) -> str | None:
    """Why this host cannot run an arm; None where it can."""
    if arm.policy is not None and (reason := _refused(arm.policy)) is not None:
        return reason
    return _bpf_unavailable() if arm.bpf else None


def _refused(policy: str) -> str | None:
    """Why this build refuses a policy; None where it takes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(policy)
        return _succeeds("agentrunctl", "policy", "check", str(path))


def _bpf_unavailable() -> str | None:
    reason = _succeeds("agentrunctl", "bpf", "load")
    if reason is None:
        _succeeds("agentrunctl", "bpf", "unload")
    return reason


@contextlib.contextmanager
def in_force(arm: Arm) -> Iterator[None]:
    """Policy, agentrund and BPF as the arm wants them, for the length of a run."""
    if arm.policy is None:
        yield
        return
    POLICY_FILE.parent.mkdir(parents=True, exist_ok=True)
    POLICY_FILE.write_text(arm.policy)
    _must("agentrunctl", "policy", "compile")
    if arm.bpf:
        _must("agentrunctl", "bpf", "load")
    _must("systemctl", "restart", "agentrund")
    try:
        yield
    finally:
        _must("systemctl", "stop", "agentrund")
        if arm.bpf:
            _must("agentrunctl", "bpf", "unload")
        POLICY_FILE.unlink()


def _must(*command: str) -> None:
    reason = _succeeds(*command)
    if reason is not None:
        sys.exit(f"bench: {reason}")


@contextlib.contextmanager
def helper(arm: Arm, parent: Path) -> Iterator[None]:
    """The arm's own process beside the sessions, where it has one."""
    if not arm.freezer:
        yield
        return
    process = subprocess.Popen([sys.executable, "-I", "-S", str(FREEZER), str(parent)])
    time.sleep(0.3)
    try:
        yield
        if process.poll() is not None:
            sys.exit(f"bench: {arm.name}: its freezer ended with status {process.returncode}")
    finally:
        process.terminate()
        process.wait()
