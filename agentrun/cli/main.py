"""`agentrunctl`: what people type. A program of its own: `agentrun ps` and `list` are the backend's."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentrun import __version__
from agentrun.base import fastjson
from agentrun.base.errors import AgentrunError, CallNotFoundError
from agentrun.base.paths import host_paths
from agentrun.base.units import parse_duration
from agentrun.calls.release import release_all
from agentrun.cli.bpf import bpf
from agentrun.cli.net import net
from agentrun.cli.policy import policy
from agentrun.cli.replay import replay
from agentrun.cli.trace import trace
from agentrun.client import VERDICTS, Client, Query
from agentrun.doctor import probe as probes
from agentrun.doctor.examine import Finding, examine
from agentrun.terminal import format_size, plain

_FOLLOW_S = 0.5
_TABLE_ROWS = 100  # a table of more is for programs, which want --json


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentrunctl")
def cli() -> None:
    """See and steer the tool calls of containers that run under agentrun."""


cli.add_command(policy)
cli.add_command(bpf)
cli.add_command(net)
cli.add_command(replay)
cli.add_command(trace)


_LEVELS = {
    "call": "its own limit",
    "session": "the container's limit",
    "host": "the host's limit",
    "above": "a limit above it",
    "operator": "by agentrunctl",
    "engine": "with its container",
    "controller": "for a call of higher priority",
}


def _describe_end(record: dict[str, Any]) -> str:
    if record["end"] is None:
        if record.get("waiting"):
            left = max(0.0, float(record["waiting"]["until"]) - time.time())
            return f"waiting to start ({left:.0f} s more at most)"
        return "running (left in the background)" if record.get("background") else "running"
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


@cli.command("calls")
@click.option("--container", metavar="ID", help="Only calls of this container (a prefix will do).")
@click.option("--tier", help="Only calls of this tier.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only calls that ended so.")
@click.option(
    "--since", callback=_seconds, metavar="TIME", help="Only calls that ended in the last 10m, 2h, ..."
)
@click.option("--command", metavar="NAME", help="Only calls of this program.")
@click.option("--exec-id", metavar="ID", help="Only the call that the engine knows by this id.")
@click.option("--json", "as_json", is_flag=True, help="One record a line, oldest first.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@click.option("--follow", is_flag=True, help="Go on with calls that end from now on, as JSON (until ^C).")
def list_calls(as_json: bool, follow: bool, since: float | None, **wanted: Any) -> None:
    """List tool calls: finished ones with what they used, and those that run now."""
    query = Query(since=None if since is None else time.time() - since, **wanted)
    client = Client()
    if follow:
        _follow(client, query)
    elif as_json:
        for _, _, text in client.rows(query):
            click.echo(text)
    else:
        _print_table(client, query)
    _tell_problems(client)


def _tell_problems(client: Client) -> None:
    """Say on stderr what is wrong with the store: the answer is then from the journal."""
    for problem in client.problems:
        click.echo(f"agentrunctl: {problem}", err=True)


def _print_table(client: Client, query: Query) -> None:
    most = query.last or _TABLE_ROWS
    rows = client.calls(replace(query, last=most + 1))
    if not rows:
        click.echo("no calls recorded yet")
        return
    Console(width=None if sys.stdout.isatty() else 160).print(_table(rows[-most:]))
    if query.last is None and len(rows) > most:
        click.echo(f"agentrunctl: the last {most}; --last N shows more, --json all", err=True)


def _follow(client: Client, query: Query) -> None:
    """Print finished calls as they come, each once."""
    seen: set[str] = set()
    while True:
        known = client.newest()  # before we look, so that nothing is missed
        for _, call_id, text in client.rows(query):
            if call_id not in seen and fastjson.loads(text)["end"] is not None:
                seen.add(call_id)
                click.echo(text)
        sys.stdout.flush()
        time.sleep(_FOLLOW_S)
        query = replace(query, last=None, after=known)


@cli.command()
@click.argument("call")
def inspect(call: str) -> None:
    """Print everything about CALL (its id, or how that begins), and which calls retried it."""
    client = Client()
    record = client.call(call)
    click.echo(json.dumps({**record, "retried_by": client.retried_by(record["id"])}, indent=2))


@cli.command()
@click.argument("call", required=False)
@click.option("--container", metavar="ID", help="All calls of this container (a prefix will do).")
@click.option("--all-calls", is_flag=True, help="All calls of all containers.")
def kill(call: str | None, container: str | None, all_calls: bool) -> None:
    """Kill CALL with all that it started; the agent lives. Prints the ids of the calls it killed."""
    if sum(map(bool, (call, container, all_calls))) != 1:
        raise click.UsageError("name one: a call, --container or --all-calls")
    killed = Client().kill(call, container)
    for call_id in killed:
        click.echo(call_id)
    if not killed:
        raise CallNotFoundError("no such call is running")


@cli.command()
def thaw() -> None:
    """Let every call go on that agentrund holds back; a running agentrund may hold it back again."""
    for call_id in release_all(host_paths()):
        click.echo(call_id)


@cli.command()
@click.argument("call")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long (exit status 2).")
def wait(call: str, timeout: float | None) -> None:
    """Wait until CALL has ended, and print its record."""
    try:
        click.echo(fastjson.dumps(Client().wait(call, timeout_s=timeout)))
    except TimeoutError as error:
        click.echo(f"agentrunctl: {error}", err=True)
        sys.exit(2)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.option(
    "--probe", is_flag=True, help="Prove it: a real OOM kill, throttle, kill and denied connection."
)
def doctor(as_json: bool, probe: bool) -> None:
    """Say what holds on this host and what does not; exit status 1 where there is a problem."""
    if os.geteuid() != 0:
        raise AgentrunError("needs root, like the engines whose containers it looks at")
    findings = examine(host_paths())
    if probe:
        findings += [Finding(*result) for result in probes.run(host_paths())]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            for number, line in enumerate(finding.text.splitlines()):
                head = (finding.level, finding.what) if number == 0 else ("", "")
                table.add_row(*map(plain, head), plain(line))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)


def main() -> None:
    """Entry of `agentrunctl`; an error of ours is one line on stderr and exit status 1."""
    try:
        cli()
    except AgentrunError as error:
        click.echo(f"agentrunctl: {error}", err=True)
        sys.exit(1)
