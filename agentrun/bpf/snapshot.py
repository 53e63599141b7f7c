"""What many calls use, read in one system call (bpf/snapshot.bpf.c) instead of three files each."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from agentrun.base.errors import BpfError
from agentrun.bpf import modules, pins, syscall, types

MODULE = modules.MODULES["snapshot"]
ENTRY = struct.Struct("=QQQII")  # types.Seen


class Seen(NamedTuple):
    """A call at this moment: bytes, times over memory.high, and whether anything lives in it."""

    usage: int
    high: int
    is_populated: bool


class Snapshots:
    """The loaded program, and the map that its answers come in; `close` lets go of both. Raises BpfError."""

    def __init__(self) -> None:
        directory = modules.loaded_directory(MODULE, "read calls at once")
        self._asked: tuple[int, ...] = ()
        with contextlib.ExitStack() as opened:
            self._program = pins.open_program(f"{directory}/prog_read_calls", "read_calls")
            opened.callback(os.close, self._program)
            answers = pins.open_map(f"{directory}/map_ar_seen", "ar_seen")
            opened.callback(answers.close)
            try:
                self._seen = mmap.mmap(answers.fd, types.SNAPSHOT_CALLS * ENTRY.size)
            except OSError as error:
                raise BpfError(f"map ar_seen: {error}") from error
            opened.callback(self._seen.close)
            self._opened = opened.pop_all()

    def read(self, ids: Sequence[int]) -> list[Seen] | None:
        """The calls with these cgroup ids, in this order; None for more than there is room for."""
        asked = tuple(ids)
        if len(asked) > types.SNAPSHOT_CALLS:
            return None
        if asked != self._asked:
            for place, number in enumerate(asked):
                ENTRY.pack_into(self._seen, place * ENTRY.size, number, 0, 0, 0, 0)
            self._asked = asked
        syscall.run_program(self._program, bytes(types.Snapshot(count=len(asked))))
        answers = memoryview(self._seen)[: len(asked) * ENTRY.size]
        with answers:
            return [
                Seen(usage, high, bool(populated))
                for _, usage, high, populated, _ in ENTRY.iter_unpack(answers)
            ]

    def close(self) -> None:
        """Let go."""
        self._opened.close()
