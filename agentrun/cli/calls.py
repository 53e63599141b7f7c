"""`agentrunctl calls`, `inspect`, `kill`, `thaw` and `wait`: see and steer tool calls."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentrun.base import fastjson
from agentrun.base.errors import CallNotFoundError
from agentrun.base.paths import host_paths
from agentrun.calls.release import release_all
from agentrun.calls.verdict import LEVELS
from agentrun.cli.options import seconds
from agentrun.client import VERDICTS, Client, Query
from agentrun.terminal import format_size, plain

_FOLLOW_S = 0.5
_TABLE_ROWS = 100  # a table of more is for programs, which want --json


def _describe_end(record: dict[str, Any]) -> str:
    if record["end"] is None:
        if record.get("waiting"):
            left = max(0.0, float(record["waiting"]["until"]) - time.time())
            return f"waiting to start ({left:.0f} s more at most)"
        return "running (left in the background)" if record.get("background") else "running"
    verdict, code = record.get("verdict"), record.get("exit_code")
    if not verdict:
        return "ended"
    level = LEVELS.get(str(record.get("level")))
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


@click.command("calls")
@click.option("--container", metavar="ID", help="Only calls of this container (a prefix will do).")
@click.option("--tier", help="Only calls of this tier.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only calls that ended so.")
@click.option(
    "--since", callback=seconds, metavar="TIME", help="Only calls that ended in the last 10m, 2h, ..."
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


@click.command()
@click.argument("call")
def inspect(call: str) -> None:
    """Print everything about CALL (its id, or how that begins), and which calls retried it."""
    client = Client()
    record = client.call(call)
    click.echo(json.dumps({**record, "retried_by": client.retried_by(record["id"])}, indent=2))


@click.command()
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


@click.command()
def thaw() -> None:
    """Let every call go on that agentrund holds back; a running agentrund may hold it back again."""
    for call_id in release_all(host_paths()):
        click.echo(call_id)


@click.command()
@click.argument("call")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long (exit status 2).")
def wait(call: str, timeout: float | None) -> None:
    """Wait until CALL has ended, and print its record."""
    try:
        click.echo(fastjson.dumps(Client().wait(call, timeout_s=timeout)))
    except TimeoutError as error:
        click.echo(f"agentrunctl: {error}", err=True)
        sys.exit(2)
