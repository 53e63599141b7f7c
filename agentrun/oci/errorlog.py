"""A fatal error of ours, told as runc tells one: what engines read and grep."""

from __future__ import annotations

import posix

from agentrun.base import fastjson, files
from agentrun.base.log import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentrun.oci.argv import Invocation


def oci_error(invocation: Invocation | None, message: str) -> None:
    """Report a fatal error of ours as runc does: to `--log` in the requested format, and to stderr."""
    text = f"agentrun: {message}"
    log_path = invocation.last_global("log") if invocation else None
    is_json = invocation is not None and invocation.last_global("log-format") == "json"
    record = {"level": "error", "msg": text, "time": timestamp()}
    if is_json:
        line = fastjson.dumps(record)
    else:
        line = " ".join(f"{key}={fastjson.quote(value)}" for key, value in record.items())
    if log_path:
        try:
            files.append_line(log_path, line)
        except OSError:
            is_json = False  # stderr below is all that is left
    _to_stderr(text if log_path or not is_json else line)


def _to_stderr(text: str) -> None:
    try:
        posix.fstat(2)
        posix.write(2, text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        return  # the engine closed stderr; the log above has the record
