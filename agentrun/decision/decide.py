"""From a command to a decision: session, rule, intent, class, plan. Pure.

The exec path, `agentrunctl policy explain` and `policy test` call the same function.
"""

from __future__ import annotations

from agentrun.base import limits
from agentrun.decision import intent, match, plan, unwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from agentrun.oci.engine import SessionFacts
    from agentrun.oci.processdoc import Process


class Decision:
    """What happens to one call. `plan` is None where it is left alone (mode off); `why` says by whom."""

    __slots__ = ("command", "intent", "mode", "plan", "rule", "session", "tier", "why")

    def __init__(self, mode: str, session: match.SessionChoice, unwrapped: unwrap.Command) -> None:
        self.mode = mode
        self.session = session
        self.tier = session.tier
        self.command = unwrapped
        self.intent = intent.Intent()
        self.rule: str | None = None
        self.plan: plan.Plan | None = None
        self.why = session.why

    def describe_intent(self) -> dict[str, Any]:
        """The intent as the record shows it."""
        asked = self.intent
        return {"raw": asked.raw, "accepted": asked.accepted(), "refused": asked.refused}


def decide(
    compiled: Mapping[str, Any],
    node_mode: str,
    facts: SessionFacts,
    process: Process,
    session: limits.Limits,
    host: limits.Limits,
    tier: str | None = None,
) -> Decision:
    """Decide about one call of a container, as if it had `tier` where that is given."""
    choice = match.select_session(compiled, node_mode, facts)
    choice.tier = tier or choice.tier
    unwrapped = unwrap.unwrap(process.argv)
    decision = Decision(choice.mode, choice, unwrapped)
    if choice.mode == "off":
        return decision
    call = match.CallFacts(unwrapped, process.argv, process.cwd, process.uid, process.tty)
    rule = match.match_rule(compiled, call, facts, choice.tier)
    if rule is not None:
        decision.rule = rule["name"]
        decision.mode = (
            "off" if rule.get("skip") else match.weaker_mode(choice.mode, rule.get("mode", choice.mode))
        )
        if decision.mode == "off":
            decision.why = f"rule {decision.rule}"
            return decision
    _plan(decision, compiled, process.environment, rule, session, host)
    return decision


def _plan(
    decision: Decision,
    compiled: Mapping[str, Any],
    environment: Iterable[object],
    rule: Mapping[str, Any] | None,
    session: limits.Limits,
    host: limits.Limits,
) -> None:
    choice = decision.session
    asked = intent.gather(choice.annotations.get("intent"), environment, decision.command.assignments)
    decision.intent = asked
    by_rule = rule.get("class") if rule is not None else None
    tier = compiled["tiers"].get(choice.tier, {})
    class_name, why = plan.choose_class(compiled, by_rule or choice.class_name, tier, asked)
    decision.plan = plan.make_plan(compiled, class_name, choice.tier, session, host, asked)
    source = why or (f"by rule {decision.rule}" if by_rule else f"by session {choice.why}")
    decision.plan.reasons.insert(0, f"class: {class_name} {source}")
