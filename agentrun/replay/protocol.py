"""How the worker is started, and what it may say. Pure. It runs in a container: its words are not trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentrun.replay.schedule import Step

_WORKER = Path(__file__).with_name("worker.py")
LINE_LIMIT = 1 << 20
# glibc raises its threshold for mapping when a mapped chunk is freed, unless the threshold was set.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_MOST_CHUNKS = 1 << 16


def worker_command(mode: str, steps: Sequence[Step], cache_percent: int = 0) -> list[str]:
    """The command that follows the steps; `mode` is `call` or `agent`."""
    plan = ";".join(
        f"{step.duration * 1000:.0f},{step.memory >> 10},{step.cpu * 1000:.0f}"
        for step in steps or (Step(0.0, 0, 0.0),)
    )
    text = _WORKER.read_text(encoding="utf-8")
    return ["python3", "-I", "-S", "-c", text, mode, plan, str(cache_percent)]


class Report:
    """What one worker has said so far."""

    def __init__(self) -> None:
        self.started = False
        self.done = False
        self.held_kib = 0
        self.latencies_ms: list[float] = []

    def feed(self, line: bytes) -> None:
        """Take one line; what is not of the protocol is dropped."""
        words = line.decode("ascii", "replace").split()
        if words == ["start"]:
            self.started = True
        elif words == ["done"]:
            self.done = self.started
        elif words[:1] == ["step"] and len(words) > 1 and all(word.isdecimal() for word in words[1:]):
            self.held_kib = min(int(words[1][:12]), 1 << 40)
            room = _MOST_CHUNKS - len(self.latencies_ms)
            self.latencies_ms += [int(word[:12]) / 1000 for word in words[2 : 2 + room]]
