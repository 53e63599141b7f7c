"""Measure what a TCP connection gets. Run on both sides, also in containers: `python3 netload.py ROLE ...`.

sink PORT SECONDS     waits for one connection, prints its bit/s after a first half second as a number
source ADDRESS PORT   connects (for up to a minute it tries) and sends until the other side has enough
"""

from __future__ import annotations

import socket
import sys
import time

_WARM_S = 0.5
_CHUNK = 1 << 16


def sink(port: int, seconds: float) -> float:
    """Bits per second of payload that arrived."""
    with socket.create_server(("", port)) as server:
        server.settimeout(120)
        connection, _ = server.accept()
    with connection:
        connection.settimeout(60)
        warm_until = time.monotonic() + _WARM_S
        while time.monotonic() < warm_until:
            connection.recv(_CHUNK)
        start, count = time.monotonic(), 0
        while time.monotonic() < start + seconds:
            count += len(connection.recv(_CHUNK))
        return count * 8 / (time.monotonic() - start)


def source(address: str, port: int) -> None:
    """Send until nobody reads any more."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = socket.create_connection((address, port), 5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with connection:
        try:
            while True:
                connection.sendall(bytes(_CHUNK))
        except OSError:  # it has enough
            return


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        print(sink(int(sys.argv[2]), float(sys.argv[3])), flush=True)
    else:
        source(sys.argv[2], int(sys.argv[3]))
