"""What can go wrong on our side.

    AgentrunError
    ├── ConfigError    the operator's configuration
    ├── CallNotFoundError  no call, or several, of that name
    ├── StateError     our own files under /run and /var/lib
    ├── StoreError     the SQLite store of finished calls
    ├── CgroupError    a cgroup file or directory
    ├── BpfError       a BPF object, program, map, link or pin
    ├── TraceError     `agentrunctl trace` lacks something on this host, or finds no such container
    ├── NetError       an interface, a qdisc or a filter
    ├── RefusedError   a call that the policy does not let start now
    └── HandoffError   no backend to hand off to

Texts are `verb object: reason`. Engines grep runtime errors for phrases such as "permission denied" and
"no such file or directory" and then report a missing *command* (podman libpod/oci_util.go, moby
daemon/errors.go), so `reason()` words errno values differently.
"""

from __future__ import annotations

import errno

_REASONS = {
    errno.EACCES: "not allowed (EACCES)",
    errno.EPERM: "not allowed (EPERM)",
    errno.ENOENT: "missing (ENOENT)",
    errno.ENOTDIR: "a parent is a file (ENOTDIR)",
    errno.EISDIR: "it is a folder (EISDIR)",
    errno.ESRCH: "process is gone (ESRCH)",
}


def reason(error: OSError) -> str:
    """Say why a system call failed, in words no engine mistakes for the command's own failure."""
    number = error.errno or 0
    return _REASONS.get(number) or f"{error.strerror or error} ({errno.errorcode.get(number, number)})"


class AgentrunError(Exception):
    """Base of all errors that agentrun raises on purpose."""


class ConfigError(AgentrunError):
    """The operator's configuration is wrong; the text names file, key and value."""


class CallNotFoundError(AgentrunError):
    """No call has this id, or several do."""


class StoreError(AgentrunError):
    """The store of finished calls cannot be used; calls go on, their records wait in the journal."""

    def __init__(self, text: str, *, is_damage: bool = False) -> None:
        super().__init__(text)
        self.is_damage = is_damage


class HandoffError(AgentrunError):
    """No backend can be executed."""


class RefusedError(AgentrunError):
    """The policy says that a call is not to start now; the text is for whoever made it."""


class BpfError(AgentrunError):
    """A BPF object cannot be loaded, attached or used; the text says what, where and why."""


class TraceError(AgentrunError):
    """A trace cannot be had; the text says what is missing and how to get it."""


class NetError(AgentrunError):
    """The host's network cannot be looked at or changed; the text says what, where and why."""


class NetLibraryError(NetError):
    """The library that would look at it is not installed."""


class SystemCallError(AgentrunError):
    """A system call failed; carries the operation, the path and errno."""

    def __init__(self, operation: str, path: str, cause: OSError) -> None:
        super().__init__(f"{operation} {path!r}: {reason(cause)}")
        self.operation = operation
        self.path = path
        self.errno = cause.errno


class StateError(SystemCallError):
    """One of our own files or directories cannot be used."""


class CgroupError(SystemCallError):
    """A cgroup file or directory cannot be used."""
