"""Compile `/etc/agentrun/policy.d/*.yaml` into what `policy` and `plan` read.

Files are read in the order of their names. Of classes, tiers, networks and single settings the last file
wins; rules and sessions of a later file come before those of an earlier one, for the first match wins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from agentrun.base.limits import ADMISSION_WAIT_MOST, MEMORY_FLOOR, PIDS_FLOOR
from agentrun.base.units import show_number, show_size
from agentrun.decision.match import builtin
from agentrun.policy import netprofile
from agentrun.policy.frame import Problem, Reading, suggestion
from agentrun.policy.spec import POLICY

_FILE_LIMIT = 4 << 20
_BUILTIN_NETWORKS = (*netprofile.BUILTIN, *netprofile.UNRESTRICTED)


class PolicyError(Exception):
    """All problems of a policy, in order of file and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))


class _File:
    """One file: what it says, where (for later complaints), and its problems."""

    def __init__(self, name: str, text: str | None) -> None:
        self.reading = Reading(name)
        self.root: yaml.Node | None = None
        self.content: dict[str, Any] = {}
        if text is not None:
            self._parse(text)

    def _parse(self, text: str) -> None:
        try:
            self.root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            text = f"not valid YAML: {error.problem}"
            self.reading.problems.append(Problem(self.reading.file, line, column, text))
        except (yaml.YAMLError, RecursionError) as error:
            self.reading.problem(None, "", f"not valid YAML: {str(error) or type(error).__name__}")
        else:
            if self.root is None:
                self.reading.problem(None, "", "empty: expected at least 'version: 1'")
            else:
                self.content = POLICY.read(self.root, "", self.reading)

    def node(self, *keys: str | int) -> yaml.Node | None:
        """The node at a path, as near as there is one."""
        at = self.root
        for key in keys:
            inner = _child(at, key)
            if inner is None:
                break
            at = inner
        return at

    def complain(self, text: str, *keys: str | int) -> None:
        """Note a mistake at a path."""
        path = ""
        for key in keys:
            path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else key
        self.reading.problem(self.node(*keys), path, text)


def _child(node: yaml.Node | None, key: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if name.value == key), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        found: yaml.Node = node.value[key]
        return found
    return None


def compile_files(paths: Iterable[Path]) -> dict[str, Any]:
    """Compile the files, in the order given. Raises PolicyError with every problem found."""
    return compile_texts([(str(path), _read(path)) for path in paths])


def _read(path: Path) -> str | Problem:
    try:
        if path.stat().st_size > _FILE_LIMIT:
            return Problem(str(path), 1, 1, f"larger than {show_size(_FILE_LIMIT)}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return Problem(str(path), 1, 1, f"not valid UTF-8: {error.reason} at byte {error.start}")
    except OSError as error:
        return Problem(str(path), 1, 1, f"cannot be read: {error.strerror}")


def compile_texts(texts: Iterable[tuple[str, str | Problem]]) -> dict[str, Any]:
    """Compile (name, text) pairs; see `compile_files`."""
    files: list[_File] = []
    for name, text in texts:
        file = _File(name, text if isinstance(text, str) else None)
        if isinstance(text, Problem):
            file.reading.problems.append(text)
        files.append(file)
    merged = _merge([file.content for file in files])
    for file in files:
        _check_references(file, merged)
        _check_meaning(file)
    problems = [problem for file in files for problem in file.reading.problems]
    if problems:
        raise PolicyError(problems)
    return _compiled(merged)


def _merge(contents: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {"classes": {}, "tiers": {}, "networks": {}, "feedback": {}, "rules": []}
    for content in contents:
        for key, value in content.items():
            if key in ("classes", "tiers", "networks", "feedback"):
                merged[key] |= value
            elif key in ("rules", "sessions"):
                merged[key] = value + merged.get(key, [])
            else:
                merged[key] = value
    merged["classes"].setdefault("standard", builtin()["classes"]["standard"])
    return merged


def _check_references(file: _File, merged: dict[str, Any]) -> None:
    known = {
        "class": list(merged["classes"]),
        "tier": list(merged["tiers"]),
        "network": [*merged["networks"], *_BUILTIN_NETWORKS],
    }
    for reference in file.reading.references:
        names = known[reference.kind]
        if reference.name not in names:
            near = suggestion(reference.name, names) or f", known: {', '.join(names) or 'none'}"
            text = f"{reference.name!r}: no such {reference.kind}{near}"
            file.reading.problem(reference.node, reference.path, text)


def _check_meaning(file: _File) -> None:
    """What types cannot tell: values that contradict each other, rules that nothing reaches."""
    for name, klass in file.content.get("classes", {}).items():
        _check_class(file, name, klass)
    for name, tier in file.content.get("tiers", {}).items():
        _check_floor(file, tier, "tiers", name)
        wait = tier.get("admission", {}).get("wait")
        if wait is not None and wait > ADMISSION_WAIT_MOST:
            most = f"{show_number(ADMISSION_WAIT_MOST)}s"
            text = f"is more than {most}: engines give up on an exec that takes longer to start"
            file.complain(text, "tiers", name, "admission", "wait")
    for name, network in file.content.get("networks", {}).items():
        if name in _BUILTIN_NETWORKS:
            file.complain("is a name of a built-in profile", "networks", name)
        if not file.reading.problems and len(netprofile.rules_of(network)) > netprofile.RULES_LIMIT:
            file.complain(f"has more than {netprofile.RULES_LIMIT} rules", "networks", name)
    _check_list(file, "sessions")
    _check_list(file, "rules")
    for number, rule in enumerate(file.content.get("rules", [])):
        if not {"class", "mode", "skip"} & set(rule):
            file.complain("does nothing: give it a class, a mode or skip", "rules", number)
        if rule.get("skip") and {"class", "mode"} & set(rule):
            file.complain("skip leaves the call alone, so class and mode have no effect", "rules", number)


def _check_class(file: _File, name: str, klass: dict[str, Any]) -> None:
    _check_floor(file, klass, "classes", name)
    memory = klass.get("memory", {})
    for lower, upper in (("default", "max"), ("high", "max"), ("low", "max"), ("min", "max"), ("min", "low")):
        if _exceeds(memory.get(lower), memory.get(upper)):
            file.complain(f"is more than {upper}", "classes", name, "memory", lower)
    if memory.get("learned") and "high" in memory:
        file.complain("has no effect beside high", "classes", name, "memory", "learned")
    for part in ("cpu", "pids"):
        if _exceeds(klass.get(part, {}).get("default"), klass.get(part, {}).get("max")):
            file.complain("is more than max", "classes", name, part, "default")
    if _exceeds(klass.get("time", {}).get("soft"), klass.get("time", {}).get("hard")):
        file.complain("is more than hard", "classes", name, "time", "soft")


def _exceeds(lower: Any, upper: Any) -> bool:
    """Whether two amounts can be compared (both absolute, or shares of one whole) and are upside down."""
    if isinstance(lower, list) and isinstance(upper, list):
        return bool(lower[1] == upper[1] and lower[0] > upper[0])
    numbers = isinstance(lower, (int, float)) and isinstance(upper, (int, float))
    return numbers and lower > upper


def _check_floor(file: _File, limits: dict[str, Any], *where: str) -> None:
    """A limit below what runc's own init needs breaks every call, with an error that blames the command."""
    for part, floor, text in (
        ("memory", MEMORY_FLOOR, show_size(MEMORY_FLOOR)),
        ("pids", PIDS_FLOOR, str(PIDS_FLOOR)),
    ):
        for key in ("default", "max", "high"):
            value = limits.get(part, {}).get(key)
            if isinstance(value, (int, float)) and value < floor:
                file.complain(f"is below {text}, which starting a call itself needs", *where, part, key)


def _check_list(file: _File, key: str) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []
    for number, entry in enumerate(file.content.get(key, [])):
        match = entry.get("match", {})
        hidden = next((n for n, earlier in seen if not earlier or earlier == match), None)
        if hidden is not None:
            file.complain(f"is never reached: {key}[{hidden}] matches all of it", key, number)
        seen.append((number, match))


def _io_max(devices: dict[str, dict[str, int]]) -> list[list[str]]:
    return [
        [device, " ".join(f"{name}={value}" for name, value in limits.items())]
        for device, limits in devices.items()
    ]


def _compiled(merged: dict[str, Any]) -> dict[str, Any]:
    for klass in merged["classes"].values():
        klass.pop("description", None)
        if "max" in klass.get("io", {}) and isinstance(klass["io"]["max"], dict):
            klass["io"]["max"] = _io_max(klass["io"]["max"])
    for tier in merged["tiers"].values():
        tier.pop("description", None)
    sessions = merged.get("sessions")
    for key, entries in (("session", sessions or []), ("rule", merged["rules"])):
        for number, entry in enumerate(entries):
            entry.setdefault("name", f"{key} {number + 1}")
            entry.setdefault("match", {})
    policy = {
        "default_class": merged.get("default-class", "standard"),
        "classes": merged["classes"],
        "tiers": merged["tiers"],
        "sessions": sessions,
        "rules": merged["rules"],
        "networks": merged["networks"],
        "network_programs": netprofile.compile_all(merged["networks"]),
        "agent": merged.get("agent", {}),
        "feedback": merged["feedback"],
        "adapt": merged.get("adapt", "on"),
        "record_command": merged.get("record-command", "name"),
        "machine_truth": merged.get("machine-truth", True),
        "strip_intent": merged.get("strip-intent", False),
    }
    content = json.dumps(policy, sort_keys=True, separators=(",", ":")).encode()
    return {"hash": hashlib.sha256(content).hexdigest()[:16], **policy}
