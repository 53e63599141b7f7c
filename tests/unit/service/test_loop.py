"""agentrund's event loop: who is called, and who not any more."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from agentrun.service.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = signal.set_wakeup_fd(-1)
    yield Loop()
    signal.set_wakeup_fd(before)


def test_event_of_a_descriptor_that_was_closed_does_not_reach_the_next_of_its_number(loop):
    pipes = [os.pipe() for _ in range(2)]
    called: list[str] = []
    fresh: list[int] = []

    def first_ends_the_other(own: int, other: int) -> None:
        called.append("first")
        loop.unwatch(own)
        loop.drop(other)
        read, write = os.pipe()
        assert other in (read, write)  # the lowest free number
        fresh.append(write)
        loop.watch(other, select.EPOLLIN, lambda _: called.append("another"))

    (one, write_one), (two, write_two) = pipes
    loop.watch(one, select.EPOLLIN, lambda _: first_ends_the_other(one, two))
    loop.watch(two, select.EPOLLIN, lambda _: first_ends_the_other(two, one))
    for fd in (write_one, write_two):
        os.write(fd, b"x")
    loop.turn()
    assert called == ["first"]
    os.write(fresh[0], b"x")
    loop.turn()
    assert called == ["first", "another"]
    for fd in (one, two, write_one, write_two, fresh[0]):
        os.close(fd)
