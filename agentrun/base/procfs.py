"""What /proc says of a process."""

from __future__ import annotations

import posix


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat), None when gone."""
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        stat = posix.read(fd, 4096)
    except OSError:
        return None
    finally:
        posix.close(fd)
    fields = stat[stat.rfind(b")") + 2 :].split()
    # A zombie has ended: its cgroup is empty and nobody will place a process any more.
    return int(fields[19]) if fields[0] != b"Z" else None
