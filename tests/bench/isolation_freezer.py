"""The control arm `user-freezer`: watermarks and a poller, nothing else.

Freezes the containers of the LOW tier (`low-*`) above 90 % of the parent's memory while a HIGH one lives,
thaws them below 80 %, or when HIGH is gone. `python3 isolation_freezer.py CGROUP`, until it is terminated.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

FREEZE, THAW = 0.9, 0.8
POLL_S = 0.005


def set_frozen(parent: Path, value: str) -> None:
    """Freeze or thaw every LOW container that is there."""
    for path in parent.glob("low-*"):
        try:
            (path / "cgroup.freeze").write_text(value)
        except OSError:
            continue  # removed since glob() saw it


def main() -> None:
    """Poll."""
    parent = Path(sys.argv[1])
    limit = int((parent / "memory.max").read_text())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    frozen = False
    try:
        while True:
            used = int((parent / "memory.current").read_text()) / limit
            high_lives = any(parent.glob("high-*"))
            wanted = high_lives and (used > FREEZE or (frozen and used > THAW))
            if wanted or wanted != frozen:  # again and again, for a LOW one may have come
                set_frozen(parent, "1" if wanted else "0")
            frozen = wanted
            time.sleep(POLL_S)
    finally:
        set_frozen(parent, "0")


if __name__ == "__main__":
    main()
