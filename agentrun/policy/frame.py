"""The frame of a policy file: problems with their places, and types that hold others (tables, maps, lists).

One description serves the compiler, the JSON Schema in `configs/` and `docs/policy-reference.md`. A
type reads a node into its compiled form, or notes a problem at the node and returns None; so all problems
of a file are found in one pass. Single values are in `values`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

SHOWN = 60  # characters of a wrong value that a message repeats
_NODES_LIMIT = 50_000
_DEPTH_LIMIT = 16


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake, where it is: `file:line:column: text` (1-based)."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


@dataclass(slots=True)
class Reference:
    """A name that must be defined somewhere in the policy, maybe in another file."""

    kind: str
    name: str
    reading: Reading
    node: yaml.Node
    path: str


@dataclass(slots=True)
class Reading:
    """One file being read: its name, its problems, the names it refers to."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    nodes: int = 0

    def problem(self, node: yaml.Node | None, path: str, text: str) -> None:
        """Note a mistake at a node."""
        mark = node.start_mark if node is not None else None
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self.problems.append(Problem(self.file, line, column, f"{path}: {text}" if path else text))

    def expected(self, node: yaml.Node, path: str, what: str) -> None:
        """Note that a value is not what it should be."""
        self.problem(node, path, f"{shown(node)}: expected {what}")

    def enter(self, node: yaml.Node, path: str) -> bool:
        """Count a node; False where a file (through aliases) is too large or too deep to be meant."""
        self.nodes += 1
        if self.nodes == _NODES_LIMIT:
            self.problem(node, path, f"more than {_NODES_LIMIT} values")
        if path.count(".") > _DEPTH_LIMIT:
            self.problem(node, path, "nested too deep")
            return False
        return self.nodes < _NODES_LIMIT


class Type(Protocol):
    """What every kind of value offers."""

    @property
    def label(self) -> str:
        """The kind in a few words, for the reference."""

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        """The compiled value, or None after noting a problem."""

    def schema(self) -> dict[str, Any]:
        """The kind as JSON Schema (draft 2020-12)."""


def shown(node: yaml.Node) -> str:
    """A node's value for a message, quoted and short."""
    if isinstance(node, yaml.ScalarNode):
        text = node.value if len(node.value) <= SHOWN else node.value[:SHOWN] + "…"
        return repr(text)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def suggestion(name: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)`, where there is something near."""
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def scalar(node: yaml.Node) -> str | None:
    """The text of a scalar as it was written; None for lists, mappings and null."""
    if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null"):
        return None
    return str(node.value)


@dataclass(frozen=True, slots=True)
class Many:
    """A list of values; `or_one` takes a single value for a list of one."""

    of: Type
    or_one: bool = False

    @property
    def label(self) -> str:
        return f"{self.of.label}, or a list" if self.or_one else f"list of: {self.of.label}"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        if self.or_one and isinstance(node, yaml.ScalarNode):
            value = self.of.read(node, path, reading)
            return None if value is None else [value]
        if not isinstance(node, yaml.SequenceNode):
            reading.expected(node, path, f"a list ({self.of.label})")
            return None
        found = [
            self.of.read(item, f"{path}[{number}]", reading)
            for number, item in enumerate(node.value)
            if reading.enter(item, path)
        ]
        return [value for value in found if value is not None]

    def schema(self) -> dict[str, Any]:
        many = {"type": "array", "items": self.of.schema()}
        return {"anyOf": [self.of.schema(), many]} if self.or_one else many


def pairs(node: yaml.Node, path: str, reading: Reading) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """The entries of a mapping: (key, key node, value node). Notes keys that stand there twice."""
    if not isinstance(node, yaml.MappingNode):
        reading.expected(node, path, "a mapping (key: value)")
        return []
    found: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        key = scalar(key_node)
        inner = f"{path}.{key}" if path else str(key)
        if key is None:
            reading.expected(key_node, path, "a plain key")
        elif key in found:
            reading.problem(key_node, path, f"key {key!r} stands here twice")
        elif reading.enter(value_node, inner):
            found[key] = (key, key_node, value_node)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping with free keys of one type."""

    of: Type
    keys: Type

    @property
    def label(self) -> str:
        return f"mapping of {self.keys.label} to {self.of.label}"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        found = {}
        for key, key_node, value_node in pairs(node, path, reading):
            inner = f"{path}.{key}"
            name, value = self.keys.read(key_node, inner, reading), self.of.read(value_node, inner, reading)
            if name is not None and value is not None:
                found[str(name)] = value
        return found

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.of.schema()}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table: its type and what the reference says about it."""

    type: Type
    doc: str
    default: str = ""
    example: str = ""
    unit: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping with known keys."""

    keys: dict[str, Key]
    label: str = "mapping"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        found = {}
        for key, key_node, value_node in pairs(node, path, reading):
            known = self.keys.get(key)
            if known is None:
                near = suggestion(key, list(self.keys)) or f", known: {', '.join(self.keys)}"
                reading.problem(key_node, path, f"unknown key {key!r}{near}")
                continue
            value = known.type.read(value_node, f"{path}.{key}" if path else key, reading)
            if value is not None:
                found[key] = value
        if isinstance(node, yaml.MappingNode):
            present = {scalar(key) for key, _ in node.value}
            for key, known in self.keys.items():
                if known.required and key not in present:
                    reading.problem(node, path, f"key {key!r} is missing")
        return found

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {**key.type.schema(), "description": key.doc} for name, key in self.keys.items()
            },
        }
        required = [name for name, key in self.keys.items() if key.required]
        return schema | ({"required": required} if required else {})
