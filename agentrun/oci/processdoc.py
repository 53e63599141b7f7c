"""The exec's process document (OCI runtime-spec, `process`): read it, and replace it.

Only ever a regular file, and as a whole.
"""

from __future__ import annotations

import posix
import stat

from agentrun.base import fastjson, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.oci.argv import Invocation

_LIMIT = 16 << 20


class Process:
    """What an exec will run. `path` is the document, None where there is none that can be rewritten."""

    __slots__ = ("argv", "cwd", "document", "environment", "path", "tty", "uid")

    def __init__(self, document: dict[str, Any], path: str | None) -> None:
        self.document = document
        self.path = path
        user = document.get("user")
        uid = user.get("uid") if isinstance(user, dict) else None
        cwd = document.get("cwd")
        self.environment = _list(document.get("env"))
        self.argv = _list(document.get("args"))
        self.cwd = cwd if isinstance(cwd, str) else None
        self.uid = uid if isinstance(uid, int) else 0
        self.tty = document.get("terminal") is True


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def read(invocation: Invocation) -> Process:
    """The process of an exec, from its document or its options.

    Only a regular file is looked at: a document that comes through a pipe is the backend's to read, and so
    are complaints about one that is broken.
    """
    path = invocation.last("process")
    if path is None:
        return Process(_from_options(invocation), None)
    try:
        data = files.read_regular(path, _LIMIT, follow=True)
        document = fastjson.loads(data) if data else None
    except (OSError, ValueError):
        document = None
    return Process(document, path) if isinstance(document, dict) else Process({}, None)


def _from_options(invocation: Invocation) -> dict[str, Any]:
    user = (invocation.last("user") or "").partition(":")[0]
    return {
        "args": list(invocation.command),
        "env": list(invocation.options.get("env", [])),
        "cwd": invocation.last("cwd"),
        "terminal": "tty" in invocation.options,
        "user": {"uid": int(user) if user.isdigit() else 0},
    }


def replace(path: str, document: dict[str, Any]) -> bool:
    """Replace a document as a whole, its mode and owner kept. False for one that is not a plain file.

    A symlink is left alone (`/dev/fd/N` is one), and so is a file with other names: replacing it would
    leave those with the old content. Raises OSError, and ValueError on text that UTF-8 cannot hold.
    """
    info = posix.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        return False
    files.write_atomic(path, fastjson.dump_bytes(document), like=info)
    return True
