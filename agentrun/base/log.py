"""Our own log, and the records that an engine reads from a runtime's `--log`.

Own log: JSON lines in `/var/log/agentrun.log`, 0600, at most two files of 4 MiB. It is written only when
something is wrong, because info lines on every exec once filled hosts' tmpfs (nvidia-container-toolkit#511).
"""

from __future__ import annotations

import time

from agentrun.base import fastjson, journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.base.paths import Paths

_SIZE_LIMIT = 4 << 20
_VALUE_LIMIT = 1024


def timestamp() -> str:
    """Now, in UTC, as RFC 3339 (containerd's shim fails to decode a log whose `time` is anything else)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def warn(paths: Paths, message: str, **fields: object) -> None:
    """Append one record to our own log; a log that cannot be written never stops a container."""
    record: dict[str, object] = {"time": timestamp(), "level": "warning", "msg": message}
    for name, value in fields.items():
        record[name] = value[:_VALUE_LIMIT] if isinstance(value, str) else value
    try:
        journal.append(paths.log, fastjson.dumps(record), _SIZE_LIMIT)
    except OSError:
        return  # the disk is full or read-only: there is no better place left to say so
