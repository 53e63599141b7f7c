"""`agentrunctl`: what people type. A program of its own: `agentrun ps` and `list` are the backend's."""

from __future__ import annotations

import sys

import click

from agentrun import __version__
from agentrun.base.errors import AgentrunError
from agentrun.cli import calls
from agentrun.cli.bpf import bpf
from agentrun.cli.doctor import doctor
from agentrun.cli.net import net
from agentrun.cli.policy import policy
from agentrun.cli.record import record
from agentrun.cli.replay import replay
from agentrun.cli.trace import trace


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentrunctl")
def cli() -> None:
    """See and steer the tool calls of containers that run under agentrun."""


for command in (calls.list_calls, calls.inspect, calls.kill, calls.thaw, calls.wait):
    cli.add_command(command)
for command in (doctor, policy, record, bpf, net, replay, trace):
    cli.add_command(command)


def main() -> None:
    """Entry of `agentrunctl`; an error of ours is one line on stderr and exit status 1."""
    try:
        cli()
    except AgentrunError as error:
        click.echo(f"agentrunctl: {error}", err=True)
        sys.exit(1)
