"""`agentrunctl trace`: its options. What it does is in trace/run.py, imported when it is used."""

from __future__ import annotations

import click

from agentrun.base.paths import host_paths

WHAT = ("memory", "cpu", "syscalls", "all")
_SECONDS = click.FloatRange(min=0.1, max=365 * 86400.0)


@click.command("trace")
@click.argument("container")
@click.option("--what", type=click.Choice(WHAT), default="all", show_default=True, help="What to look at.")
@click.option("--seconds", type=_SECONDS, metavar="N", help="End after so long (else ^C, or the container).")
@click.option("--interval", type=_SECONDS, metavar="S", default=1.0, show_default=True)
@click.option(
    "--top", type=click.IntRange(1, 1000), metavar="N", default=20, show_default=True, help="Calls."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One object a line: all calls at each interval, a summary."
)
def trace(container: str, what: str, seconds: float | None, interval: float, top: int, as_json: bool) -> None:
    """Show live what the calls of CONTAINER do: who allocates, faults, waits, and which syscalls.

    CONTAINER is its id, how that begins, or its name. The probes are compiled on this host by bcc
    (python3-bpfcc and the headers of the running kernel), and slow down what they count. See docs/trace.md.
    """
    from agentrun.trace import run

    run.trace(
        host_paths(),
        container,
        run.Options(tuple(WHAT[:-1]) if what == "all" else (what,), seconds, interval, top, as_json),
    )
