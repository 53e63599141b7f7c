"""The JSON Schema of records and the reference of their fields, both made from `spec`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentrun.store import kinds
from agentrun.store.kinds import Field
from agentrun.store.spec import FIELDS, SOURCES


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one record."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "record.schema.json",
        "title": "agentrun record of a finished call",
        "description": "One line of `agentrunctl calls --json`. A call that still runs has `end` and "
        "`verdict` null, lacks what is measured at its end, and is not described here.",
        **kinds.schema_of(kinds.table(FIELDS, required=tuple(FIELDS))),
    }


def reference() -> str:
    """The fields as `docs/records.md` has them: a table of all, then one of each object."""
    lines = [f"- {source}: {meaning}." for source, (_, meaning) in SOURCES.items()]
    lines += ["", *_table(("field", "source", "type", "unit", "meaning"), _rows(FIELDS))]
    lines += _objects("", FIELDS)
    return "\n".join(lines) + "\n"


def _rows(fields: Mapping[str, Field]) -> Iterable[tuple[str, ...]]:
    sources = {name: source for source, (names, _) in SOURCES.items() for name in names}
    for name, field in fields.items():
        yield f"`{name}`", sources[name], *_cells(field)


def _cells(field: Field) -> tuple[str, str, str]:
    page, _, anchor = field.page.partition("#")
    more = f" ([{page or anchor}]({field.page}))" if field.page else ""
    return field.kind.label, field.unit or "-", field.meaning + more


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    first, *rest = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *rows)
    ]
    return [first, "|---" * len(head) + "|", *rest]


def _objects(prefix: str, fields: Mapping[str, Field]) -> list[str]:
    lines: list[str] = []
    for name, field in fields.items():
        inner = kinds.inner(field.kind)
        if inner is None:
            continue
        path = f"{prefix}{name}" + ("[]" if field.kind.items else "")
        rows = [(f"`{one}`", *_cells(inside)) for one, inside in inner.items()]
        lines += ["", f"### `{path}`", "", *_table(("field", "type", "unit", "meaning"), rows)]
        lines += _objects(f"{path}.", inner)
    return lines
