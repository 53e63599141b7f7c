"""A slice of 600 MB without swap, as a pod has one, with a policy for what runs in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine import configure
from runtimes import LOG, run

SLICE = Path("/run/systemd/system/agentruntest.slice")
LIMIT = "600M"


@contextlib.contextmanager
def pod_slice(policy: Path, text: str) -> Iterator[None]:
    """The slice and the policy; at the end agentrund stops, and has nothing in its log."""
    configure(Path(__file__).parents[2])
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text(text)
    SLICE.write_text(f"[Slice]\nMemoryMax={LIMIT}\nMemorySwapMax=0\n")
    run("systemctl", "daemon-reload")
    yield
    policy.unlink()
    run("systemctl", "stop", "agentrund", SLICE.name, check=False)
    SLICE.unlink()
    run("systemctl", "daemon-reload")
    assert not LOG.exists(), LOG.read_text()
