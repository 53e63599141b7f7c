"""What a service says to systemd, and what systemd keeps for it while it is restarted."""

from __future__ import annotations

import array
import contextlib
import os
import socket

_FIRST_FD = 3  # SD_LISTEN_FDS_START (sd_listen_fds.3)


def notify(message: str, *descriptors: int) -> bool:
    """Tell systemd (sd_notify(3)), and hand descriptors over; False where it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendmsg([message.encode()], rights)
        return True
    return False


def keep(name: str, descriptor: int) -> bool:
    """Have systemd hold a descriptor for the next start (FDSTORE in sd_notify(3)), if the unit says so."""
    # Else systemd drops a socket that has an error, such as that messages were lost (systemd 246).
    return notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)


def kept() -> dict[str, int]:
    """The descriptors that systemd held for this start, by name; whoever asks owns them. Once only."""
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    if not count.isdigit() or pid != str(os.getpid()):
        return {}
    descriptors = range(_FIRST_FD, _FIRST_FD + int(count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return dict(zip(names, descriptors, strict=False))
