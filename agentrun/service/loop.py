"""The event loop of agentrund: descriptors with their handlers, and timers. One thread, one epoll."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable

_CANCELLED_LIMIT = 1000  # timers that were cancelled and still lie in the heap


class Timer:
    """Something to do later, unless cancelled."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action


class Loop:
    """Calls handlers when descriptors are ready and actions when it is time; `stop` ends `turn`ing."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._count = itertools.count()
        self._running = True
        self._wake_on_signals()

    def _wake_on_signals(self) -> None:
        """A signal ends epoll_wait by way of a pipe: PEP 475 would wait on."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.watch(reading, select.EPOLLIN, lambda _: None)

    def turn(self) -> bool:
        """Wait for events, handle them and what is due; False once stopped."""
        ready = self._epoll.poll(self._next_timeout())
        for fd, events, handler in [(fd, events, self._handlers.get(fd)) for fd, events in ready]:
            # An earlier event of this round may have ended it, and its number may be another's by now.
            if handler is not None and self._handlers.get(fd) is handler:
                handler(events)
        self._run_timers()
        return self._running

    def stop(self) -> None:
        """Leave the loop after this round."""
        self._running = False

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events (of epoll) on a descriptor, until `unwatch`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def rewatch(self, fd: int, events: int) -> None:
        """Watch a descriptor for other events from now on."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching a descriptor, which stays open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def drop(self, fd: int) -> None:
        """Stop watching a descriptor and close it."""
        self.unwatch(fd)
        os.close(fd)

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Do something once, after so many seconds."""
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        return timer

    def cancel(self, timer: Timer) -> None:
        """A cancelled timer keeps nothing alive; when most are, the heap is made anew."""
        if timer.action is None:
            return
        timer.action = None
        self._cancelled += 1
        if self._cancelled > _CANCELLED_LIMIT and self._cancelled > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if entry[2].action is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _next_timeout(self) -> float:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled -= 1
            else:
                action()
