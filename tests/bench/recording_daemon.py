"""agentrund, with every snapshot of its controller written to a file: `recording_daemon.py FILE`.

One JSON object a line; `tests/unit/daemon/controller/test_decisions_recorded.py` plays such recordings again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from agentrun.daemon import main as daemonmain
from agentrun.daemon.controller import controller
from agentrun.daemon.controller.model import Decision, Memory, Snapshot


def record(path: str) -> None:
    """Write down what decisions are made of, from now on."""
    file = open(path, "w", buffering=1, encoding="ascii")  # noqa: SIM115 - as long as the process
    names = vars(controller)
    decide: Callable[[Snapshot, Memory], Decision] = names["decide"]

    def decide_and_record(snapshot: Snapshot, memory: Memory) -> Decision:
        file.write(json.dumps(asdict(snapshot), separators=(",", ":")) + "\n")
        return decide(snapshot, memory)

    names["decide"] = decide_and_record


if __name__ == "__main__":
    record(sys.argv[1])
    daemonmain.main()
