"""What is published of a record's fields is made from their table: `make reference` writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agentrun.cli import main as ctl
from agentrun.store import kinds, reference
from agentrun.store.kinds import COUNT, INTEGER, NUMBER, TEXT, Field

TREE = Path(__file__).parents[3]


def test_published_schema_is_that_of_the_code():
    printed = CliRunner().invoke(ctl.cli, ["record", "schema"]).stdout
    assert printed == (TREE / "configs/record.schema.json").read_text()


def test_documentation_of_fields_is_that_of_the_code():
    section = (TREE / "docs/records.md").read_text().partition("\n<!-- fields")[2].partition("\n")[2]
    printed = CliRunner().invoke(ctl.cli, ["record", "reference"]).stdout
    assert printed == section.partition("<!-- end of fields -->\n")[0]


KINDS = [
    (kinds.optional(TEXT), "string or null", {"type": ["string", "null"]}),
    (
        kinds.optional(kinds.choice("a", "b")),
        "`a`, `b` or null",
        {"type": ["string", "null"], "enum": ["a", "b", None]},
    ),
    (
        kinds.many(COUNT, maxItems=2),
        "list of integers",
        {"type": "array", "maxItems": 2, "items": {"type": "integer", "minimum": 0}},
    ),
    (
        kinds.many(kinds.choice("a")),
        "list of `a`",
        {"type": "array", "items": {"type": "string", "enum": ["a"]}},
    ),
    (
        kinds.optional(kinds.mapping(kinds.optional(INTEGER))),
        "object of integers or null, or null",
        {"type": ["object", "null"], "additionalProperties": {"type": ["integer", "null"]}},
    ),
    (
        kinds.table({"at": Field(NUMBER, "When.", "seconds")}, required=("at",)),
        "object",
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["at"],
            "properties": {"at": {"type": "number", "description": "When. In seconds."}},
        },
    ),
]


@pytest.mark.parametrize(("kind", "label", "schema"), KINDS, ids=range(len(KINDS)))
def test_kind_is_called_and_checked_by_what_it_is(kind, label, schema):
    assert (kind.label, kinds.schema_of(kind)) == (label, schema)


def test_fields_of_an_object_in_a_list_have_a_table_of_their_own(monkeypatch):
    inside = kinds.table({"at": Field(NUMBER, "When.", "seconds"), "a|b": Field(TEXT, "A word.")})
    monkeypatch.setattr(reference, "SOURCES", {"noted": (("told",), "seen")})
    monkeypatch.setattr(
        reference, "FIELDS", {"told": Field(kinds.many(inside), "What it was told.", page="feedback.md#a")}
    )
    assert reference.reference().splitlines() == [
        "- noted: seen.",
        "",
        "| field | source | type | unit | meaning |",
        "|---|---|---|---|---|",
        "| `told` | noted | list of objects | - | What it was told. ([feedback.md](feedback.md#a)) |",
        "",
        "### `told[]`",
        "",
        "| field | type | unit | meaning |",
        "|---|---|---|---|",
        "| `at` | number | seconds | When. |",
        "| `a\\|b` | string | - | A word. |",
    ]
