"""The record as it is published: code, schema and documentation say the same."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from agentrun.base import digest
from agentrun.calls import record as records
from agentrun.calls import verdict
from agentrun.cgroups.cgroup import Cgroup
from agentrun.decision.plan import Plan
from agentrun.store import spec

TREE = Path(__file__).parents[3]
SCHEMA = json.loads((TREE / "configs/record.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
STATE = {"id": "0" * 19, "start": 1.0, "calls": "/sys/fs/cgroup/not-there"}


def made(**state: object) -> dict[str, object]:
    return json.loads(json.dumps(records.make("call-0", {**STATE, **state}, Cgroup("/sys/fs/cgroup/no"))))


def test_schema_is_one_and_describes_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert all(field["description"].endswith(".") for field in SCHEMA["properties"].values())


def test_schema_has_exactly_what_is_recorded():
    assert list(SCHEMA["properties"]) == list(made()) == SCHEMA["required"]
    VALIDATOR.validate(made())


def test_record_has_the_fields_of_the_table_in_its_order():
    by_source = [name for names, _ in spec.SOURCES.values() for name in names]
    assert list(made()) == by_source == list(spec.FIELDS)


def test_schema_knows_every_limit():
    plan = Plan()
    for name in Plan.__slots__:
        setattr(plan, name, getattr(plan, name, None) or 1)
    assert sorted(SCHEMA["properties"]["limits"]["properties"]) == sorted(plan.limits())


def test_half_a_surrogate_pair_in_a_command_can_be_told_apart():
    """A model cut an emoji in two, and JSON has that as an escape."""
    half, ordinary = digest.digest("echo \ud83d"), digest.digest("echo \udcff")
    assert half != ordinary and len(half) == len(ordinary) == 16
    found = records.describe_command(["sh", "-c", "echo \ud83d"], "echo", "full")
    assert found is not None and json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("argv", [["git", "status"], ["x" * 9999]], ids=["short", "long"])
def test_full_record_is_valid(argv):
    intent = {"raw": "memory=1g", "accepted": {"memory": 1 << 30}, "refused": [("x", "unknown")]}
    state = {
        "container": "c1",
        "backend": "runc",
        "command": records.describe_command(argv, argv[0], "full"),
        "mode": "enforce",
        "tier": "low",
        "intent": intent,
        "limits": {"memory": 1 << 30, "cpu": 1.5, "pids": None, "io_max": [("8:0", "rbps=1")]},
        "reasons": ["memory: 1 GiB asked"],
        "not_enforced": ["io"],
        "slow": 1.0,
        "end": 2.0,
        "killed_by": "operator",
        **verdict.describe_status(9),
    }
    record = made(**state)
    VALIDATOR.validate(record)
    assert (record["verdict"], record["level"]) == ("killed", "operator")


WRONG = {"exit_code": "7", "end": None, "verdict": "died", "limits": {"memoy": 1}, "unknown_field": 1}


@pytest.mark.parametrize("name", WRONG)
def test_schema_refuses_what_is_wrong(name):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({**made(), name: WRONG[name]})
