"""Pins, modules and the ring buffer as far as they need no kernel, and their refusals."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from agentrun.base.errors import BpfError
from agentrun.bpf import modules, pins, ringbuf, syscall, types


def test_a_pin_that_others_can_write_or_that_is_a_link_is_refused(tmp_path):
    pin = tmp_path / "map"
    pin.touch(mode=0o600)
    if os.geteuid() != 0:
        pytest.skip("needs root: pins belong to root")
    pins.check_owner(str(pin))
    pin.chmod(0o622)
    with pytest.raises(BpfError, match="not root's alone"):
        pins.check_owner(str(pin))
    link = tmp_path / "link"
    link.symlink_to(pin)
    with pytest.raises(BpfError, match="not root's alone"):
        pins.check_owner(str(link))
    pin.chmod(0o600)
    os.chown(pin, 1, 1)
    with pytest.raises(BpfError, match="owner 1"):
        pins.check_owner(str(pin))


def test_a_pin_that_is_missing_is_told_from_one_that_is_refused(tmp_path):
    with pytest.raises(BpfError, match="No such file") as missing:
        pins.open_map(str(tmp_path / "map"), "map")
    assert syscall.is_missing(missing.value)


def test_versions_are_in_order_of_age_and_a_half_loaded_one_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "ROOT", str(tmp_path))
    module = modules.MODULES["net"]
    assert modules._versions(module) == []
    for age, name in enumerate(("bb", "aa", "new")):
        (tmp_path / "net" / name).mkdir(parents=True)
        os.utime(tmp_path / "net" / name, ns=(age, age))
    assert modules._versions(module) == ["bb", "aa"]
    pins.remove(f"{tmp_path}/net/bb")
    pins.remove(f"{tmp_path}/net/bb")
    assert modules._versions(module) == ["aa"]


def test_what_is_lost_is_named_only_where_a_version_is_loaded():
    module = modules.MODULES["net"]
    assert modules.Status(module, "f", "aa", None, [], []).lost == []
    partly = modules.Status(module, "f", "aa", "aa", [], [])
    assert partly.in_force and partly.current and "raw, packet" in partly.lost[0]


def head(kind: types.Kind, **fields: object) -> types.Event:
    return types.Event(kind=kind, call=7, pid=1, **fields)


def test_events_are_read_from_their_bytes():
    event = ringbuf.parse(bytes(head(types.Kind.EXIT, value=3 << 8, comm=b"sh")))
    assert event is not None and (event.kind, event.call, event.value, event.comm) == (3, 7, 768, "sh")


@pytest.mark.parametrize(
    ("family", "raw", "shown"), [(2, b"\xc0\0\x02\x01", "192.0.2.1"), (10, bytes(15) + b"\x01", "::1")]
)
def test_a_denial_says_where_to(family, raw, shown):
    denied = types.Denied(event=head(types.Kind.DENIED), family=family, by=1, port=443, count=5)
    ctypes.memmove(denied.address, raw, len(raw))
    event = ringbuf.parse(bytes(denied))
    assert event is not None and (event.address, event.port, event.count) == (shown, 443, 5)


@pytest.mark.parametrize("size", [0, 47, 60])
def test_a_record_that_is_too_short_is_passed_over(size):
    data = bytes(head(types.Kind.DENIED)).ljust(100, b"\0")
    assert ringbuf.parse(data[:size]) is None


def test_a_victim_says_whose_limit_it_was():
    oom = types.Oom(event=head(types.Kind.OOM_VICTIM, value=1, comm=b"hog"), limit=9, pages=3)
    event = ringbuf.parse(bytes(oom))
    assert event is not None and (event.comm, event.value, event.limit, event.pages) == ("hog", 1, 9, 3)
    older = ringbuf.parse(bytes(oom.event))  # of an older version that is still loaded
    assert older is not None and (older.limit, older.pages) == (types.LIMIT_UNKNOWN, 0)


# The buffer's memory, written by the test as the kernel writes it (kernel/bpf/ringbuf.c).

SIZE = 4096


class Memory:
    """A file that looks like a mapped ring buffer. `write` adds a record, whose length word it returns."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.end = 0

    def write(self, data: bytes, flags: int = 0) -> int:
        at = 2 * mmap.PAGESIZE + self.end % SIZE
        os.pwrite(self.fd, (len(data) | flags).to_bytes(8, "little") + data, at)
        self.end += 8 + len(data)
        os.pwrite(self.fd, self.end.to_bytes(8, "little"), mmap.PAGESIZE)
        return at

    def open(self) -> ringbuf.Ring:
        opened = syscall.Map.__new__(syscall.Map)
        opened.fd = os.dup(self.fd)
        opened.info = syscall.MapInfo(27, 1, 0, 0, SIZE, "ar_ring")
        return ringbuf.Ring(opened)


@pytest.fixture
def memory() -> Iterator[tuple[Memory, ringbuf.Ring]]:
    made = Memory()
    with contextlib.closing(made.open()) as ring:
        yield made, ring
    os.close(made.fd)


def exits(first: int, count: int) -> list[bytes]:
    return [bytes(head(types.Kind.EXIT, value=value)) for value in range(first, first + count)]


def test_a_read_is_bounded_and_the_next_goes_on_where_it_ended(memory):
    written, ring = memory
    assert ring.is_empty() and ring.read() == []
    for data in exits(0, 5):
        written.write(data)
    assert [event.value for event in ring.read(limit=3)] == [0, 1, 2]
    assert not ring.is_empty()
    assert [event.value for event in ring.read(limit=3)] == [3, 4]
    assert ring.is_empty()


def test_kinds_that_nobody_asked_for_are_passed_over_and_count_as_looked_at(memory):
    written, ring = memory
    for data in (*exits(0, 2), bytes(head(types.Kind.OOM_VICTIM)), *exits(2, 1)):
        written.write(data)
    assert ring.read({types.Kind.OOM_VICTIM}, limit=2) == []
    assert [event.kind for event in ring.read({types.Kind.OOM_VICTIM}, limit=2)] == [types.Kind.OOM_VICTIM]
    assert ring.is_empty()


def test_a_record_that_is_being_written_ends_a_read_and_what_was_given_up_is_skipped(memory):
    written, ring = memory
    written.write(exits(1, 1)[0], flags=1 << 30)
    at = written.write(exits(2, 1)[0], flags=1 << 31)
    written.write(exits(3, 1)[0])
    assert ring.read() == [] and ring.is_busy and not ring.is_empty()
    os.pwrite(written.fd, (48).to_bytes(4, "little"), at)
    assert [event.value for event in ring.read()] == [2, 3]
    assert not ring.is_busy and ring.is_empty()
