"""`agentrunctl record`: what a record has."""

from __future__ import annotations

import json

import click

from agentrun.store.reference import json_schema, reference


@click.group()
def record() -> None:
    """Print what a record has."""


@record.command()
def schema() -> None:
    """Print the JSON Schema of records."""
    click.echo(json.dumps(json_schema(), indent=2))


@record.command("reference")
def print_reference() -> None:
    """Print the reference of all fields, in Markdown."""
    click.echo(reference(), nl=False)
