"""The loop of `agentrunctl trace`: look, print, end. The probes are detached in any case."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live

from agentrun.base.errors import AgentrunError
from agentrun.base.paths import Paths
from agentrun.client import Client, Query
from agentrun.kernel import inotify
from agentrun.trace import needs, rows, source, table, target
from agentrun.trace.collector import Collector

_PLAIN_WIDTH = 180  # of a line where no terminal says how wide it is
_OVER_CHECK_S = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; `seconds` None: until the container ends. `top`: calls that are shown."""

    what: Sequence[str]
    seconds: float | None = None
    interval: float = 1.0
    top: int = 20
    as_json: bool = False


class Output(Protocol):
    """Where rows go."""

    def interval(self, shown: list[rows.Row], took_s: float) -> None:
        """What was done since the last time."""

    def summary(self, shown: list[rows.Row], took_s: float, lost: int) -> None:
        """What was done in all, at the end."""


class Tables:
    """For people: a table that stays in its place on a terminal, else one after the other."""

    def __init__(self, name: str, options: Options, unknown: set[str], live: Live | None) -> None:
        self._name = name
        self._options = options
        self._unknown = unknown
        self._live = live

    def _table(self, shown: list[rows.Row], title: str) -> Any:
        chosen = rows.top(shown, self._options.what, self._options.top)
        return table.as_table(chosen, self._options.what, self._unknown, title)

    def _print(self, made: Any) -> None:
        Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(made)
        sys.stdout.flush()

    def interval(self, shown: list[rows.Row], took_s: float) -> None:
        """See Output."""
        made = self._table(shown, f"{self._name}: {time.strftime('%H:%M:%S')}, the last {took_s:.1f} s")
        if self._live is not None:
            self._live.update(made, refresh=True)
        else:
            self._print(made)

    def summary(self, shown: list[rows.Row], took_s: float, lost: int) -> None:
        """See Output."""
        if self._live is not None:
            self._live.stop()
        self._print(self._table(shown, f"{self._name}: all {took_s:.1f} s"))
        if lost:
            click.echo(f"agentrunctl: {lost} events not counted: a table of the probes was full", err=True)


class Lines:
    """For programs: one object a line."""

    def __init__(self, name: str, options: Options, unknown: set[str]) -> None:
        self._name = name
        self._options = options
        self._unknown = unknown

    def _write(self, kind: str, shown: list[rows.Row], took_s: float, **more: object) -> None:
        told = [table.as_json(row, self._options.what, self._unknown) for row in shown]
        head = {"type": kind, "container": self._name, "time": time.time(), "seconds": round(took_s, 3)}
        click.echo(json.dumps({**head, **more, "calls": told}))

    def interval(self, shown: list[rows.Row], took_s: float) -> None:
        """See Output."""
        self._write("interval", shown, took_s)

    def summary(self, shown: list[rows.Row], took_s: float, lost: int) -> None:
        """See Output."""
        self._write("summary", shown, took_s, lost=lost)


def trace(paths: Paths, wanted: str, options: Options) -> None:
    """Trace a container until it ends, `seconds` are over or ^C. Raises AgentrunError."""
    needs.check(os.geteuid(), os.uname().release, paths.cgroup_root)
    bcc = needs.import_bcc()
    found = target.find(paths, wanted)
    with _interruptible(), source.Probes(bcc, found, options.what) as probes:
        for note in probes.notes:
            click.echo(f"agentrunctl: {note}", err=True)
        with _output(found.container_id, options, probes.unknown) as output:
            _follow(paths, found, probes, options, output)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a trace as ^C does, with its summary."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _output(container_id: str, options: Options, unknown: set[str]) -> Iterator[Output]:
    name = container_id[:12]
    if options.as_json:
        yield Lines(container_id, options, unknown)
    elif not sys.stdout.isatty():
        yield Tables(name, options, unknown, None)
    else:
        with Live(auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            yield Tables(name, options, unknown, live)


def _follow(
    paths: Paths, found: target.Target, probes: source.Probes, options: Options, output: Output
) -> None:
    began, began_wall = time.monotonic(), time.time()
    collector = Collector(paths, found, probes)
    try:
        _intervals(collector, options, output, began)
    except KeyboardInterrupt:
        pass  # that is how it is ended
    took_s = time.monotonic() - began
    collector.sample()
    collector.complete(_records(paths, found.container_id, began_wall))
    output.summary(collector.rows(), took_s, collector.lost)


def _intervals(collector: Collector, options: Options, output: Output, began: float) -> None:
    """Print what was done at each interval until it is time to end."""
    end = began + options.seconds if options.seconds is not None else float("inf")
    before, last = collector.rows(), began
    with _new_calls(collector.target) as watched:
        while not collector.is_over():
            due = min(last + options.interval, end)
            while (left := due - time.monotonic()) > 0 and not collector.is_over():
                for watch in select.select(watched, [], [], min(left, _OVER_CHECK_S))[0]:
                    watch.read()
                    collector.look()
            shown, now = collector.sample(), time.monotonic()
            output.interval(rows.interval(shown, before), now - last)
            before, last = shown, now
            if now >= end:
                return


@contextlib.contextmanager
def _new_calls(found: target.Target) -> Iterator[list[inotify.Inotify]]:
    """What tells when a call's cgroup is made; nothing where the host has no watch left."""
    watch = inotify.Inotify()
    try:
        with contextlib.suppress(OSError):  # that, or the container ends
            watch.add(found.calls.path, inotify.IN_CREATE)
        yield [watch] if watch.fileno() >= 0 else []
    finally:
        watch.close()


def _records(paths: Paths, container_id: str, since: float) -> dict[str, dict[str, Any]]:
    """Records of the calls that ended since, by id; none where they cannot be read."""
    try:
        found = Client(paths).calls(Query(container=container_id, since=since))
    except AgentrunError as error:
        click.echo(f"agentrunctl: the last numbers of ended calls are missing: {error}", err=True)
        return {}
    return {str(record["id"]): record for record in found if record["end"] is not None}
