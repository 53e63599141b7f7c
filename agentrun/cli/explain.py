"""What `agentrunctl policy explain` says of a decision."""

from __future__ import annotations

import shlex
from typing import Any

from agentrun.base.limits import Limits
from agentrun.decision.decide import Decision
from agentrun.decision.truth import machine_truth
from agentrun.net.rate import Rates, of_tier


def describe(decision: Decision, compiled: dict[str, Any]) -> dict[str, Any]:
    """A decision as JSON, in the record's words."""
    plan = decision.plan
    return {
        "policy": compiled["hash"],
        "mode": decision.mode,
        "session": decision.session.why,
        "tier": decision.tier,
        "rule": decision.rule,
        "class": plan.class_name if plan else None,
        "command": decision.command.words,
        "intent": decision.describe_intent(),
        "limits": plan.limits() if plan else None,
        "network_rate": dict(rates.items()) if (rates := _rates(decision, compiled)) else None,
        "files": {file: value for _, file, value in plan.files()} if plan else None,
        "reasons": plan.reasons if plan else [decision.why],
    }


def _rates(decision: Decision, compiled: dict[str, Any]) -> Rates:
    """What the whole container of the call sends and receives at most."""
    return of_tier(compiled, decision.tier) if decision.mode == "enforce" else Rates()


def explanation(decision: Decision, compiled: dict[str, Any], limits: Limits) -> list[tuple[str, list[str]]]:
    """Rows of `explain`: a label and its lines."""
    plan, tier = decision.plan, decision.tier
    rows = [
        ("command", [shlex.join(decision.command.words)]),
        ("through", [", ".join(decision.command.through)] if decision.command.through else []),
        ("session", [decision.session.why + (f", tier {tier}" if tier else "")]),
        ("rule", [decision.rule or "none matches"]),
    ]
    if plan is None:
        return [*rows, ("mode", [f"off: left alone ({decision.why})"])]
    rates = _rates(decision, compiled)
    truth = machine_truth(plan, limits.cpus, limits.memory)
    told = " ".join(f"{name}={value}" for name, value in truth.items())
    return [
        *rows,
        ("mode", [decision.mode]),
        ("because", plan.reasons),
        ("refused", [f"{part}: {why}" for part, why in decision.intent.refused]),
        ("writes", [f"{file} = {value}" for _, file, value in plan.files()]),
        ("network", [f"{rates}, the whole container (tier {tier})"] if rates else []),
        ("tells", [told] if told and compiled.get("machine_truth", True) else []),
    ]
