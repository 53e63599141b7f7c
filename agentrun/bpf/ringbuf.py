"""Read the shared ring buffer from Python: mmap of the pinned map, no libbpf and no process in between.

One reader at a time: the consumer's position is in the map, so what one has read the next does not see.
Layout (include/uapi/linux/bpf.h, kernel/bpf/ringbuf.c): one page with the consumer's position, one with the
producer's, then the data twice in a row, so that no record wraps. A record begins with its length, which also
has the flags BUSY and DISCARD, and four bytes of the kernel's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import mmap
import os
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass

from agentrun.base.errors import BpfError
from agentrun.bpf import pins, syscall, types

_MAP_RINGBUF = 27
_BUSY, _DISCARD = 1 << 31, 1 << 30
_HEAD = 8
_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
_AF_INET = 2
_KIND = struct.Struct("=16xI")  # in struct ar_event


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a call. `call` is the id (inode) of its cgroup; `value` depends on the kind.

    Then for denials only: where to, by which hook, and how many there were so far; and for OOM victims only:
    the id of the cgroup whose limit it was (`types.LIMIT_HOST`, `LIMIT_UNKNOWN`), and the victim's pages.
    """

    kind: int
    call: int
    time_ns: int
    pid: int
    value: int
    comm: str
    address: str | None = None
    port: int = 0
    by: int = 0
    count: int = 0
    limit: int = types.LIMIT_UNKNOWN
    pages: int = 0


def parse(data: bytes) -> Event | None:
    """One record; None for one that is too short or of a kind that we do not know."""
    size = ctypes.sizeof(types.Event)
    if len(data) < size:
        return None
    head = types.Event.from_buffer_copy(data)
    comm = head.comm.decode("utf-8", "replace")
    if head.kind == types.Kind.OOM_VICTIM and len(data) >= ctypes.sizeof(types.Oom):
        oom = types.Oom.from_buffer_copy(data)
        return Event(
            head.kind, head.call, head.time_ns, head.pid, head.value, comm, limit=oom.limit, pages=oom.pages
        )
    if head.kind != types.Kind.DENIED:
        return Event(head.kind, head.call, head.time_ns, head.pid, head.value, comm)
    if len(data) < ctypes.sizeof(types.Denied):
        return None
    denied = types.Denied.from_buffer_copy(data)
    address = None
    if denied.by != types.DeniedBy.SOCKET:
        raw = bytes(denied.address)
        address = str(ipaddress.ip_address(raw[:4] if denied.family == _AF_INET else raw))
    return Event(
        head.kind, head.call, head.time_ns, head.pid, head.value, comm,
        address, denied.port, denied.by, denied.count,
    )  # fmt: skip


class Ring:
    """The ring buffer; register `fileno()` for reading with epoll, and `read()` when it is readable.

    `is_busy`: the last `read()` ended at a record that was being written at that moment. The descriptor is
    readable meanwhile.
    """

    is_busy = False

    def __init__(self, opened: syscall.Map) -> None:
        self._map = opened
        self._size = opened.info.max_entries
        page = mmap.PAGESIZE
        both = mmap.PROT_READ | mmap.PROT_WRITE
        try:
            self._consumer = mmap.mmap(opened.fd, page, mmap.MAP_SHARED, both, offset=0)
            length = page + 2 * self._size
            self._data = mmap.mmap(opened.fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError as error:
            opened.close()
            raise BpfError(f"map ring buffer: {error.strerror}") from error

    def fileno(self) -> int:
        """The descriptor, for epoll."""
        return self._map.fd

    def is_empty(self) -> bool:
        """Whether all that was written has been read."""
        return self._consumer[: _POSITION.size] == self._data[: _POSITION.size]

    def read(self, kinds: Collection[int] | None = None, limit: int | None = None) -> list[Event]:
        """What is there (only these kinds, if any are named), and give its room back. Never blocks.

        At most `limit` records are looked at, of whatever kind; then some may be left, which keep the
        descriptor readable.
        """
        events: list[Event] = []
        (at,) = _POSITION.unpack_from(self._consumer, 0)
        (end,) = _POSITION.unpack_from(self._data, 0)
        left = -1 if limit is None else limit
        self.is_busy = False
        while at < end and left != 0:
            left -= 1
            start = mmap.PAGESIZE + (at & (self._size - 1))
            (word,) = _LENGTH.unpack_from(self._data, start)
            if word & _BUSY:
                self.is_busy = True
                break
            length = word & ~(_BUSY | _DISCARD)
            start += _HEAD
            if not word & _DISCARD and (kinds is None or self._kind(start) in kinds):
                event = parse(self._data[start : start + length])
                if event is not None:
                    events.append(event)
            at += (_HEAD + length + 7) & ~7
            _POSITION.pack_into(self._consumer, 0, at)
        return events

    def _kind(self, start: int) -> int:
        kind: int = _KIND.unpack_from(self._data, start)[0]
        return kind

    def close(self) -> None:
        """Let go of the buffer."""
        self._data.close()
        self._consumer.close()
        self._map.close()


def open_ring() -> Ring:
    """Open the pinned buffer, checked. Raises BpfError; where nothing is loaded `is_missing` says so."""
    return Ring(pins.open_map(f"{pins.SHARED}/ar_ring", "ar_ring", _MAP_RINGBUF))


def dropped() -> dict[str, int]:
    """How many events did not fit or were left out to limit their rate, by kind, and in `all`."""
    with contextlib.closing(pins.open_map(f"{pins.SHARED}/ar_dropped", "ar_dropped")) as counts:
        names = {0: "all", **{int(kind): kind.name.lower() for kind in types.Kind}}
        return {
            name: int.from_bytes(counts.lookup(key.to_bytes(4, sys.byteorder)) or b"", sys.byteorder)
            for key, name in names.items()
        }


def pin_identity() -> tuple[int, int] | None:
    """What tells the buffer's pin from one that is made later; None where there is none."""
    try:
        info = os.lstat(f"{pins.SHARED}/ar_ring")
    except OSError:
        return None
    return info.st_dev, info.st_ino


def is_loaded() -> bool:
    """Whether there is a buffer to read."""
    return pin_identity() is not None
