"""The JSON Schema of policy files and the reference of their keys, both made from `spec`."""

from __future__ import annotations

from typing import Any

from agentrun.policy.frame import Many, MapOf, Table, Type
from agentrun.policy.spec import POLICY

HEAD = """\
<!-- `agentrunctl policy reference` prints this file; a test compares the two. -->
# Policy reference

This page lists every key of the files in `/etc/agentrun/policy.d`. [policy.md](policy.md) explains how the
keys work together, and [how values are written](policy.md#values).
"""


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one policy file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "policy.schema.json",
        "title": "agentrun policy",
        **POLICY.schema(),
    }


def reference() -> str:
    """The whole of `docs/policy-reference.md`: every key of a policy file, as Markdown tables."""
    lines = [HEAD]
    _section(lines, "Top level", "", POLICY)
    return "\n".join(lines)


def _section(lines: list[str], title: str, prefix: str, table: Table) -> None:
    lines += [
        f"## {title}",
        "",
        "| key | type | unit | default | meaning | example |",
        "|---|---|---|---|---|---|",
    ]
    inner: list[tuple[str, Table]] = []
    for name, key in table.keys.items():
        nested = _nested(key.type)
        kind = key.type.label if nested is None else _kind(key.type)
        unit = key.unit or "-"
        default = "**required**" if key.required else key.default or "-"
        example = f"`{key.example}`" if key.example else "-"
        cells = (f"`{prefix}{name}`", kind, unit, default, key.doc, example)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if nested is not None:
            inner.append((f"{prefix}{name}{_step(key.type)}", nested))
    lines.append("")
    for name, nested in inner:
        _section(lines, f"`{name}`", f"{name}.", nested)


def _nested(kind: Type) -> Table | None:
    if isinstance(kind, Table):
        return kind
    return _nested(kind.of) if isinstance(kind, (MapOf, Many)) else None


def _kind(kind: Type) -> str:
    if isinstance(kind, MapOf):
        return f"mapping: {kind.keys.label} → settings"
    return "list of settings" if isinstance(kind, Many) else "settings"


def _step(kind: Type) -> str:
    if isinstance(kind, MapOf):
        return ".NAME"
    return "[]" if isinstance(kind, Many) else ""
