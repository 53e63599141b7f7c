"""Give a call its network profile: an extended attribute of its cgroup, which the BPF programs read.

It is set before the call's first process, so there is no moment without it, and one system call is all that
it costs (bpf(2) would need ctypes, 1.6 ms). Only root can write it: the directories are root's, and inside a
container they are read-only or belong to another user.
"""

from __future__ import annotations

import errno
import posix
import sys

from agentrun.base.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from agentrun.cgroups.cgroup import Cgroup
    from agentrun.decision.config import Config

ATTRIBUTE = "user.agentrun.net"  # AR_NET_XATTR; bpf_cgroup_read_xattr() reads nothing outside of "user."
PINS = "/sys/fs/bpf/agentrun/net"
_UNRESTRICTED = ("default", "open")
# "No network" without a policy file: format 1, no flags, no rules (struct ar_net_profile).
_NONE = (1).to_bytes(2, sys.byteorder) + bytes(6)


def program_of(policy: Mapping[str, Any], name: str | None) -> bytes | None:
    """The compiled profile of that name; None where it restricts nothing.

    A name that the policy does not know (it cannot: names are checked) denies everything.
    """
    if name is None or name in _UNRESTRICTED:
        return None
    programs = policy.get("network_programs", {})
    if name not in programs:
        return _NONE
    text = programs[name]
    return None if text is None else bytes.fromhex(text)


def is_in_force(pins: str = PINS) -> bool:
    """Whether the network programs are loaded: they are pinned under the name of their version."""
    try:
        return any(name != "new" for name in posix.listdir(pins))
    except OSError:
        return False


def mark(config: Config, call: Cgroup, name: str | None, pins: str = PINS) -> bool:
    """Set the profile of a call that has no process yet; False where it cannot be enforced on this host.

    Raises CgroupError instead where the operator's choice is to refuse (`fail = "closed"`).
    """
    program = program_of(config.policy, name)
    if program is None:
        return True
    try:
        if not config.uses_bpf or not is_in_force(pins):
            raise OSError(errno.EOPNOTSUPP, "the network programs are not loaded (agentrunctl bpf load)")
        posix.setxattr(call.path, ATTRIBUTE, program, follow_symlinks=False)
    except OSError as error:
        if config.fail_closed:
            raise CgroupError(f"enforce network profile {name!r} on", call.path, error) from error
        return False
    return True
