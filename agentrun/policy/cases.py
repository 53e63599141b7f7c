"""Cases for a policy: given a command, an environment and a session, expect a plan.

tests:
  - name: a test run may ask for 2 GB
    command: bash -lc 'pytest -q'
    env: {AGENTRUN_INTENT: memory=2g}
    tier: low
    session: {memory: 4GiB, cpus: 4, pids: 1000}
    expect: {class: test, memory: 2GiB, cpu: 2, refused: []}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agentrun.base.limits import Limits
from agentrun.base.units import parse_count, parse_duration, parse_number, parse_size
from agentrun.decision import shellwords
from agentrun.decision.decide import Decision, decide
from agentrun.oci import processdoc
from agentrun.oci.engine import SessionFacts
from agentrun.policy.frame import suggestion

_CASE = (
    "name", "command", "env", "tier", "annotations", "image", "engine", "user", "cwd", "tty", "session",
    "host", "expect",
)  # fmt: skip
_LIMITS = ("memory", "cpus", "pids")
_DEFAULT_HOST = Limits(64 << 30, 16.0)
_SIZES = ("memory", "memory_high", "memory_low", "memory_min")
_TIMES = ("time_soft", "time_hard")
_EXPECTED = (
    *(
        "mode",
        "class",
        "rule",
        "tier",
        "priority",
        "refused",
        "cpu",
        "cpu_weight",
        "cpuset",
        "pids",
        "io_weight",
    ),
    *("net", *_SIZES, *_TIMES),
)


class CaseError(Exception):
    """A case that cannot be run as it is written."""


@dataclass(frozen=True, slots=True)
class Result:
    """One case: what differs from what it expects."""

    name: str
    differences: list[str] = field(default_factory=list)


def run_file(compiled: dict[str, Any], path: Path) -> list[Result]:
    """Run all cases of a file. Raises CaseError, or yaml.YAMLError."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    cases = document.get("tests") if isinstance(document, dict) else None
    if not isinstance(cases, list) or not cases:
        raise CaseError(f"{path}: expected a list of cases under 'tests'")
    return [_run(compiled, case, f"{path}: tests[{number}]") for number, case in enumerate(cases)]


def _known(table: Any, known: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise CaseError(f"{where}: expected a mapping")
    for key in table:
        if key not in known:
            raise CaseError(
                f"{where}: unknown key {key!r}{suggestion(str(key), known)}, known: {', '.join(known)}"
            )
    return table


def _limits(table: Any, where: str, default: Limits) -> Limits:
    if table is None:
        return default
    table = _known(table, _LIMITS, where)
    memory, cpus, pids = (None if table.get(key) is None else str(table[key]) for key in _LIMITS)
    parsed = (
        None if memory is None else parse_size(memory),
        None if cpus is None else parse_number(cpus),
        None if pids is None else parse_count(pids),
    )
    for key, text, value in zip(_LIMITS, (memory, cpus, pids), parsed, strict=True):
        if text is not None and value is None:
            raise CaseError(f"{where}.{key}: {text!r}: not understood")
    return Limits(*parsed)


def _process(case: dict[str, Any], where: str) -> processdoc.Process:
    command = case.get("command")
    if isinstance(command, str):
        command = shellwords.first_command(command)[0]
    if not isinstance(command, list) or not command:
        raise CaseError(f"{where}.command: expected a command or a list of its words")
    environment = case.get("env", {})
    if not isinstance(environment, dict):
        raise CaseError(f"{where}.env: expected a mapping")
    document = {
        "args": [str(word) for word in command],
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": case.get("cwd", "/"),
        "terminal": case.get("tty", False),
        "user": {"uid": case.get("user", 0)},
    }
    return processdoc.Process(document, None)


def _run(compiled: dict[str, Any], case: Any, where: str) -> Result:
    case = _known(case, _CASE, where)
    tier = case.get("tier")
    if tier is not None and tier not in compiled["tiers"]:
        raise CaseError(f"{where}.tier: {tier!r}: no such tier")
    if not isinstance(case.get("expect"), dict) or not case["expect"]:
        raise CaseError(f"{where}.expect: expected a mapping with at least one key")
    facts = SessionFacts(case.get("engine", "docker"), annotations=dict(case.get("annotations", {})))
    if "image" in case:
        facts.set_image(str(case["image"]))
    process = _process(case, where)
    session = _limits(case.get("session"), f"{where}.session", Limits())
    host = _limits(case.get("host"), f"{where}.host", _DEFAULT_HOST)
    decision = decide(compiled, "enforce", facts, process, session, host, tier=tier)
    return Result(
        str(case.get("name", " ".join(process.argv))), _differences(case["expect"], decision, where)
    )


def _differences(expected: dict[str, Any], decision: Decision, where: str) -> list[str]:
    found: dict[str, Any] = {"mode": decision.mode, "rule": decision.rule, "tier": decision.tier}
    found["refused"] = [part for part, _ in decision.intent.refused]
    if decision.plan is not None:
        found |= {
            "class": decision.plan.class_name,
            "priority": decision.plan.priority,
            **decision.plan.limits(),
        }
    differences = []
    for key, value in expected.items():
        name = str(key).replace("-", "_").replace(".", "_").removesuffix("_max")
        if name not in _EXPECTED:
            raise CaseError(f"{where}.expect: unknown key {key!r}{suggestion(name, _EXPECTED)}")
        wanted, actual = _parse(name, value, where), found.get(name)
        if wanted != actual:
            differences.append(f"{key}: expected {wanted!r}, got {actual!r}")
    return differences


def _parse(name: str, value: Any, where: str) -> Any:
    """An expected value as decisions hold it: bytes, seconds, or as it is."""
    if name == "mode" and value is False:
        return "off"  # YAML 1.1 reads `off` as false
    read = parse_size if name in _SIZES else parse_duration if name in _TIMES else None
    if read is None or not isinstance(value, str):
        return value
    parsed = read(value)
    if parsed is None:
        raise CaseError(f"{where}.expect.{name}: {value!r}: not understood")
    return parsed
