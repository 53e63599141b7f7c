"""Run as a process of a call: try destinations, print what each gave as JSON. Standard library only.

    python3 netprobe.py CGROUP SETSID? PROBE...      PROBE: tcp|udp|send|raw|packet|mptcp|unix:HOST:PORT

`ok` where the kernel let it out (refused or unreachable is not our doing), `EPERM` where it was denied. With
CGROUP other than `-` the process moves there first.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys

_IPPROTO_MPTCP = 262


def probe(text: str) -> str:
    """Try one destination."""
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if kind == "raw":
            socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
        elif kind == "packet":
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
        elif kind == "mptcp":
            socket.socket(family, socket.SOCK_STREAM, _IPPROTO_MPTCP).close()
        elif kind == "unix":
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()
        else:
            _talk(kind, family, host, int(port))
    except OSError as error:
        if error.errno == errno.EPERM:
            return "EPERM"
        return "ok" if kind in ("tcp", "udp", "send") else errno.errorcode.get(error.errno or 0, "?")
    return "ok"


def _talk(kind: str, family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        if kind == "send":
            out.sendto(b"x" * 100, (host, port))
            return
        out.connect((host, port))
        if kind == "udp":
            out.send(b"x" * 100)


def main() -> None:
    """Move, then probe."""
    cgroup, setsid, *probes = sys.argv[1:]
    if cgroup != "-":
        with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    if setsid == "setsid" and os.fork():
        os.wait()
        return
    if setsid == "setsid":
        os.setsid()
    print(json.dumps({text: probe(text) for text in probes}), flush=True)


main()
