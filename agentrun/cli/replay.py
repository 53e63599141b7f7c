"""`agentrunctl replay`: its options. What it does is in replay/command.py, imported when it is used: other
commands pay nothing for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agentrun.base.units import parse_size

DEFAULT_IMAGE = "agentrun-test/agentbox"
ENGINES = ("docker", "podman", "hand", "process")


def _size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    size = None if value is None else parse_size(value)
    if value is not None and size is None:
        raise click.BadParameter(f"{value!r}: expected a size with a unit, such as 1100M")
    return size


def _window(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        begin, end = map(float, value.split(":"))
    except ValueError:
        begin, end = 1.0, 0.0
    if not 0 <= begin < end:
        raise click.BadParameter(f"{value!r}: expected BEGIN:END in seconds of the trace")
    return begin, end


def _tiers(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, equals, source = value.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{value!r}: expected NAME=TRACE")
        pairs.append((name, source))
    return pairs


_PATH = click.Path(path_type=Path)
_SIZE: dict[str, Any] = {"callback": _size, "metavar": "SIZE"}
_SECONDS: dict[str, Any] = {"metavar": "SECONDS"}
_FACTOR = click.FloatRange(0.01, 10)


@click.command("replay")
@click.argument("traces", nargs=-1, metavar="[TRACE]...")
@click.option("--tier", "tiers", multiple=True, callback=_tiers, metavar="NAME=TRACE", help="Repeatable.")
@click.option("--engine", type=click.Choice(ENGINES), default="docker", show_default=True)
@click.option("--runtime", metavar="NAME", help="As the engine knows it: agentrun, runc, a path, ...")
@click.option("--image", default=DEFAULT_IMAGE, show_default=True, help="One with python3.")
@click.option("--rootfs", type=_PATH, help="For --engine hand: a root file system with python3.")
@click.option("--memory", **_SIZE, help="What all sessions share (a parent cgroup).")
@click.option("--session-memory", **_SIZE, help="Limit of each container.")
@click.option("--speed", type=click.FloatRange(1, 10), default=1.0, show_default=True)
@click.option("--scale", type=_FACTOR, default=1.0, show_default=True, help="Factor for memory.")
@click.option("--base", **_SIZE, help="Added to what each agent holds.")
@click.option("--least", **_SIZE, help="Commands that add less are left to the agent.")
@click.option("--window", callback=_window, metavar="BEGIN:END", help="Only calls of these seconds.")
@click.option("--stagger", type=click.FloatRange(0), default=0.0, **_SECONDS, help="Spread the starts.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of starts and think times.")
@click.option("--file-cache", type=click.IntRange(0, 100), default=0, metavar="PERCENT", help="Of memory.")
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=0,
    metavar="N",
    help="Of a call that was killed or failed.",
)
@click.option("--limit", type=click.FloatRange(1), default=900.0, show_default=True, **_SECONDS)
@click.option("--out", type=_PATH, help="The report as JSON.")
@click.option("--html", type=_PATH, help="The report as a page with the curves.")
def replay(**given: Any) -> None:
    """Replay agents' sessions as real processes in real containers, and measure.

    TRACE is a file in the form of docs/replay.md, a .jsonl of `agentrunctl calls --json`, or
    synthetic:PROFILE. Each is one session (records: one for each container) of tier `normal`;
    --tier makes one of another tier.
    """
    from agentrun.replay.command import Request, execute

    if given["engine"] == "hand" and None in (given["runtime"], given["rootfs"]):
        raise click.UsageError("--engine hand needs --runtime and --rootfs")
    if given["engine"] == "hand" and given["file_cache"]:
        raise click.UsageError("--file-cache needs a writable /tmp: choose docker or podman")
    if given["engine"] == "process" and (given["memory"] or given["session_memory"]):
        raise click.UsageError("--engine process has no memory limits")
    if not given["traces"] and not given["tiers"]:
        raise click.UsageError("name at least one trace")
    execute(Request(**given))
