"""Kinds of values in a record: the JSON Schema of each, and what documentation calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value. `fields` has those of an object, `items` the kind of a list's."""

    label: str
    schema: Mapping[str, Any]
    fields: Mapping[str, Field] | None = None
    items: Kind | None = None
    can_be_null: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One field: what it holds and means. `page` is a link in docs/records.md to what says more."""

    kind: Kind
    meaning: str
    unit: str = ""
    page: str = ""


ANY = Kind("any", {})
TEXT = Kind("string", {"type": "string"})
NUMBER = Kind("number", {"type": "number"})
INTEGER = Kind("integer", {"type": "integer"})
COUNT = Kind("integer", {"type": "integer", "minimum": 0})
OBJECT = Kind("object", {"type": "object"})
FLAG = Kind("boolean", {"type": "boolean"})


def bounded(kind: Kind, **bounds: object) -> Kind:
    """The same with more keywords of JSON Schema."""
    return replace(kind, schema={**kind.schema, **bounds})


def constant(value: object) -> Kind:
    """One value."""
    return Kind(str(value), {"const": value})


def choice(*names: str) -> Kind:
    """One of some words."""
    return Kind(", ".join(f"`{name}`" for name in names), {"type": "string", "enum": list(names)})


def mapping(of: Kind) -> Kind:
    """An object whose fields the kernel names."""
    return Kind(f"object of {_plural(of.label)}", {"type": "object", "additionalProperties": schema_of(of)})


def table(fields: Mapping[str, Field], required: tuple[str, ...] = ()) -> Kind:
    """An object that has these fields, or some of them."""
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    return Kind("object", schema, fields)


def many(of: Kind, **bounds: object) -> Kind:
    """A list."""
    return Kind(f"list of {_plural(of.label)}", {"type": "array", **bounds}, items=of)


def optional(kind: Kind) -> Kind:
    """The same, or null."""
    comma = "," if " or null" in kind.label else ""
    return replace(kind, label=f"{kind.label}{comma} or null", can_be_null=True)


def inner(kind: Kind) -> Mapping[str, Field] | None:
    """The fields of an object, or of a list's objects."""
    return inner(kind.items) if kind.items else kind.fields


def _plural(label: str) -> str:
    """Of its first word, unless that is a value: `lists of strings`."""
    first, space, rest = label.partition(" ")
    return f"{first}s{space}{rest}" if first.isalpha() else label


def schema_of(kind: Kind) -> dict[str, Any]:
    """The JSON Schema of a kind."""
    schema = dict(kind.schema)
    if kind.can_be_null:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    if kind.items is not None:
        schema["items"] = schema_of(kind.items)
    if kind.fields is not None:
        schema["properties"] = {name: schema_of_field(field) for name, field in kind.fields.items()}
    return schema


def schema_of_field(field: Field) -> dict[str, Any]:
    """The JSON Schema of a field, with its meaning."""
    unit = f" In {field.unit}." if field.unit else ""
    return {**schema_of(field.kind), "description": f"{field.meaning}{unit}"}
