"""`agentrunctl doctor`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from agentrun.base.errors import AgentrunError
from agentrun.base.paths import host_paths
from agentrun.doctor import probe as probes
from agentrun.doctor.examine import examine
from agentrun.doctor.finding import Finding
from agentrun.terminal import plain


@click.command()
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
