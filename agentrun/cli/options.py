"""Options that several commands have."""

from __future__ import annotations

import click

from agentrun.base.units import parse_duration


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """The seconds of a duration such as `10m`."""
    parsed = None if value is None else parse_duration(value)
    if value is not None and parsed is None:
        raise click.BadParameter(f"{value!r}: expected a duration with a unit, such as 10m")
    return parsed
