"""`agentrunctl`: what people type. A program of its own: `agentrun ps` and `list` are the backend's."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentrun import __version__, calls, fastjson, paths
from agentrun.cgroup import Cgroup
from agentrun.errors import AgentrunError
from agentrun.policyctl import policy
from agentrun.terminal import plain
from agentrun.units import parse_duration

VERDICTS = ("ok", "failed", "oom-killed", "timed-out", "killed")
_FOLLOW_S = 0.5
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentrunctl")
def cli() -> None:
    """See and steer the tool calls of containers that run under agentrun."""


cli.add_command(policy)


def format_size(size: float | None) -> str:
    """Bytes for people: `64 MiB`; a dash for None."""
    if size is None:
        return "-"
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if size >= 10 or unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def read_records(host: paths.Paths) -> list[dict[str, Any]]:
    """Records of finished calls, oldest first. A call recorded twice (after a crash) counts once."""
    found: dict[str, dict[str, Any]] = {}
    for path in (host.records + ".1", host.records):
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.readlines()
        except FileNotFoundError:
            continue
        for line in lines:
            try:
                record = fastjson.loads(line)
                found.setdefault(str(record["id"]), record)
            except (ValueError, KeyError, TypeError):
                click.echo(f"agentrunctl: a line of {path} is damaged, passed over", err=True)
    return sorted(found.values(), key=lambda record: str(record["id"]))


def live_calls(host: paths.Paths) -> list[dict[str, Any]]:
    """States of calls that have not ended, with what the kernel says of them now."""
    live = []
    for session in calls.open_all(host):
        for slot in session.slots():
            state = session.read(slot)
            if state is not None:
                cgroup = Cgroup(str(state.get("calls"))).child(slot)
                live.append(
                    {
                        **state,
                        "slot": slot,
                        "cgroup": cgroup.path,
                        "memory_peak": cgroup.number("memory.peak"),
                        "verdict": None,
                        "end": None,
                    }
                )
    return live


def harvest_all(host: paths.Paths) -> None:
    """Record every call that has ended. Raises AgentrunError."""
    for session in calls.open_all(host):
        session.harvest(limit=1 << 16, wait=True)


def host_as_root() -> paths.Paths:
    """The host's paths. Raises AgentrunError for anybody but root, who cannot read what is there."""
    if os.geteuid() != 0:
        raise AgentrunError("needs root, like the engines whose containers it looks at")
    return paths.host_paths()


def all_calls() -> list[dict[str, Any]]:
    """Every call that is known, by age: finished ones and those that run now. Raises AgentrunError."""
    host = host_as_root()
    if not calls.is_daemon_alive(host):  # it knows better when and how a call ended
        harvest_all(host)
    return sorted(read_records(host) + live_calls(host), key=lambda row: str(row["id"]))


_LEVELS = {
    "call": "its own limit",
    "session": "the container's limit",
    "host": "the host's limit",
    "above": "a limit above it",
    "operator": "by agentrunctl",
    "engine": "with its container",
}


def _describe_end(record: dict[str, Any]) -> str:
    if record["end"] is None:
        return "running"
    verdict, code = record.get("verdict"), record.get("exit_code")
    if not verdict:
        return "ended"
    level = _LEVELS.get(str(record.get("level")))
    text = f"{verdict} ({level})" if level else str(verdict)
    return f"{text}, exit code {code}" if verdict == "failed" else text


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("CALL", "CONTAINER", "COMMAND", "CLASS", "STARTED", "LIMIT", "PEAK", "CPU", "STATE"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        limits, cpu = row.get("limits") or {}, row.get("cpu_usage_us")
        cells = (
            row["id"],
            str(row["container"])[:12],
            (row.get("command") or {}).get("name", "-"),
            row.get("class") or "-",
            time.strftime("%H:%M:%S", time.localtime(row["start"])),
            format_size(limits.get("memory")),
            format_size(row.get("memory_peak")),
            "-" if cpu is None else f"{cpu / 1e6:.2f} s",
            _describe_end(row),
        )
        table.add_row(*map(plain, cells))
    return table


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    seconds = None if value is None else parse_duration(value)
    if value is not None and seconds is None:
        raise click.BadParameter(f"{value!r}: expected a duration with a unit, such as 10m")
    return seconds


def select_calls(
    rows: list[dict[str, Any]],
    container: str | None = None,
    tier: str | None = None,
    verdict: str | None = None,
    since: float | None = None,
) -> list[dict[str, Any]]:
    """The rows that fit all that is given; `since` is in seconds since the epoch."""
    wanted = {"tier": tier, "verdict": verdict}
    return [
        row
        for row in rows
        if (container is None or str(row["container"]).startswith(container))
        and all(value is None or row.get(key) == value for key, value in wanted.items())
        and (since is None or (row.get("end") or time.time()) >= since)
    ]


@cli.command("calls")
@click.option("--container", metavar="ID", help="Only calls of this container (a prefix will do).")
@click.option("--tier", help="Only calls of this tier.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only calls that ended so.")
@click.option(
    "--since", callback=_seconds, metavar="TIME", help="Only calls that ended in the last 10m, 2h, ..."
)
@click.option("--json", "as_json", is_flag=True, help="One record a line, oldest first.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@click.option("--follow", is_flag=True, help="Go on with calls that end from now on, as JSON (until ^C).")
def list_calls(
    container: str | None,
    tier: str | None,
    verdict: str | None,
    since: float | None,
    as_json: bool,
    last: int | None,
    follow: bool,
) -> None:
    """List tool calls: finished ones with what they used, and those that run now."""
    begin = None if since is None else time.time() - since

    def selected() -> list[dict[str, Any]]:
        return select_calls(all_calls(), container, tier, verdict, begin)

    rows = selected()
    rows = rows[-last:] if last else rows
    if follow:
        _follow(selected, rows)
    elif as_json:
        for row in rows:
            click.echo(fastjson.dumps(row))
    elif rows:
        Console(width=None if sys.stdout.isatty() else 160).print(_table(rows))
    else:
        click.echo("no calls recorded yet")


def _follow(selected: Callable[[], list[dict[str, Any]]], rows: list[dict[str, Any]]) -> None:
    """Print finished calls as they come, each once."""
    seen: set[str] = set()
    while True:
        for row in rows:
            if row["end"] is not None and row["id"] not in seen:
                seen.add(row["id"])
                click.echo(fastjson.dumps(row))
        sys.stdout.flush()
        time.sleep(_FOLLOW_S)
        rows = selected()


def find_call(prefix: str) -> dict[str, Any]:
    """The call whose id begins so. Raises AgentrunError where it is none or several."""
    found = [row for row in all_calls() if str(row["id"]).startswith(prefix)]
    if len(found) != 1:
        raise AgentrunError(f"find call {prefix!r}: {'no such call' if not found else 'several begin so'}")
    return found[0]


@cli.command()
@click.argument("call")
def inspect(call: str) -> None:
    """Print everything about CALL (its id, or how that begins)."""
    click.echo(json.dumps(find_call(call), indent=2))


@cli.command()
@click.argument("call", required=False)
@click.option("--container", metavar="ID", help="All calls of this container (a prefix will do).")
@click.option("--all-calls", is_flag=True, help="All calls of all containers.")
def kill(call: str | None, container: str | None, all_calls: bool) -> None:
    """Kill CALL with all that it started; the agent lives. Prints the ids of the calls it killed."""
    if sum(map(bool, (call, container, all_calls))) != 1:
        raise click.UsageError("name one: a call, --container or --all-calls")
    killed = 0
    for session in calls.open_all(host_as_root()):
        for slot in session.slots():
            state = session.read(slot) or {}
            wanted = (
                all_calls
                or (call and str(state.get("id")).startswith(call))
                or (container and str(state.get("container")).startswith(container))
            )
            cgroup = Cgroup(str(state.get("calls"))).child(slot)
            if (
                wanted
                and cgroup.is_populated()
                and session.note(slot, str(state["id"]), killed_by="operator")
            ):
                cgroup.write("cgroup.kill", "1")
                click.echo(state["id"])
                killed += 1
    if not killed:
        raise AgentrunError("no such call is running")


@cli.command()
@click.argument("call")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long (exit status 2).")
def wait(call: str, timeout: float | None) -> None:
    """Wait until CALL has ended, and print its record."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (row := find_call(call))["end"] is None:
        if deadline is not None and time.monotonic() > deadline:
            click.echo(f"agentrunctl: call {row['id']} still runs", err=True)
            sys.exit(2)
        time.sleep(0.1)
    click.echo(fastjson.dumps(row))


def main() -> None:
    """Entry of `agentrunctl`; an error of ours is one line on stderr and exit status 1."""
    try:
        cli()
    except AgentrunError as error:
        click.echo(f"agentrunctl: {error}", err=True)
        sys.exit(1)
