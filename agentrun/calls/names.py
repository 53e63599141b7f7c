"""Names below /run/agentrun/sessions: of a root directory, of a slot, of a call that waits. Pure."""

from __future__ import annotations

from agentrun.base.digest import digest

PREFIX = "call-"
WAITING = "wait-"  # a call that waits before it takes a slot; see `waiting_name`
SESSIONS = "sessions"
_SHORTENED = "%-"  # in the name of a root directory whose own is too long for one


def escape_root(root: str) -> str:
    """A backend's root directory as one file name, readable and unambiguous."""
    name = root.strip("/").replace("%", "%25").replace("@", "%40").replace("/", "@")
    return name if len(name) <= 200 else name[:80] + _SHORTENED + digest(name)


def unescape_root(name: str) -> str | None:
    """The root directory that `escape_root` made a name of; None where it had to shorten it."""
    if _SHORTENED in name:
        return None
    return "/" + name.replace("@", "/").replace("%40", "@").replace("%25", "%")


def is_slot(name: str) -> bool:
    """Whether a file in a session's directory is the state of a call."""
    return name.startswith(PREFIX) and name[len(PREFIX) :].isdigit()


def waiting_name(rank: list[int], call_id: str) -> str:
    """The file of a call that waits: by name, who yields last comes first (higher rank, then older)."""
    return f"{WAITING}{10000 - rank[0]:05}{10000 - rank[1]:05}-{call_id}"
