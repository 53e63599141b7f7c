"""What a service says to systemd, with a socket that plays systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrun.service import systemd

TREE = Path(__file__).parents[3]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that a service tells."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_message_arrives(manager: socket.socket) -> None:
    assert systemd.notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_descriptor_arrives_with_its_name(manager: socket.socket) -> None:
    reading, writing = os.pipe()
    assert systemd.keep("end", writing)
    message, descriptors, _, _ = socket.recv_fds(manager, 100, 4)
    assert message == b"FDSTORE=1\nFDNAME=end\nFDPOLL=0"
    os.write(descriptors[0], b"it")
    assert os.read(reading, 9) == b"it"
    for descriptor in (reading, writing, *descriptors):
        os.close(descriptor)


@pytest.mark.parametrize("address", ["", "/no/such/socket"])
def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


KEPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[2] == "ours" else "1"
from agentrun.service import systemd
found = systemd.kept()
left = [name for name in os.environ if name.startswith("LISTEN")]
print(found, [os.get_inheritable(fd) for fd in found.values()], left)
"""


@pytest.mark.parametrize(
    ("whose", "expected"), [("ours", "{'end': 3} [False] []"), ("another's", "{} [] []")]
)
def test_descriptors_that_were_kept_are_ours_by_name_and_not_our_childrens(whose: str, expected: str) -> None:
    command = 'exec 3</dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=end exec "$@"'
    argv = ["sh", "-c", command, "sh", sys.executable, "-c", KEPT, str(TREE), whose]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, close_fds=False)
    assert done.stdout.strip() == expected
