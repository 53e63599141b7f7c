"""Apply a compiled policy: which session is this, and which class does a call belong to. Pure.

`policy.compiler` compiles `/etc/agentrun/policy.d/*.yaml` into the plain dictionaries read here. An amount in
them is a number (bytes, CPUs, a count) or `[percent, "session" | "host" | "max"]`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from agentrun.decision.unwrap import Command
    from agentrun.oci.engine import SessionFacts

MODES = ("off", "observe", "enforce")
ANNOTATION = "agentrun.dev/"
# What a container's annotations may choose, unless its session says otherwise.
ANNOTATION_KEYS = ("mode", "tier", "class", "intent", "feedback")
FEEDBACK = ("off", "quiet", "on")  # what a call is told, from nothing to everything
FEEDBACK_EVENTS = (
    "oom-killed", "timed-out", "slow", "throttled", "stalled", "killed", "denied", "waited", "refused",
)  # fmt: skip


def builtin(memory_percent: float | None = None, pids_max: int = 4096) -> dict[str, Any]:
    """The policy of a host without one: every container, one class, `[calls]` of the configuration."""
    memory = {} if memory_percent is None else {"max": [memory_percent, "session"]}
    return {
        "hash": "builtin",
        "default_class": "standard",
        "classes": {"standard": {"memory": memory, "pids": {"max": pids_max}}},
        "tiers": {},
        "sessions": None,
        "rules": [],
    }


def glob(pattern: str, text: str) -> bool:
    """Whether `text` matches a pattern of `*` (anything) and `?` (one character), as a whole.

    Two pointers and one way back: never worse than length times length, whatever the pattern.
    """
    if "*" not in pattern and "?" not in pattern:
        return pattern == text
    at = in_pattern = 0
    star, resume = -1, 0
    while at < len(text):
        if in_pattern < len(pattern) and pattern[in_pattern] == "*":
            star, resume = in_pattern, at
            in_pattern += 1
        elif in_pattern < len(pattern) and pattern[in_pattern] in ("?", text[at]):
            at += 1
            in_pattern += 1
        elif star >= 0:
            resume += 1
            at, in_pattern = resume, star + 1
        else:
            return False
    return not pattern[in_pattern:].strip("*")


def _any_glob(patterns: list[str], text: str | None) -> bool:
    return text is not None and any(glob(pattern, text) for pattern in patterns)


def _annotations_match(wanted: Mapping[str, str], found: Mapping[str, str]) -> bool:
    return all(
        any(glob(key, name) and glob(pattern, value) for name, value in found.items())
        for key, pattern in wanted.items()
    )


class SessionChoice:
    """How a container is treated. `class_name`, `feedback`: None for what the policy has otherwise."""

    __slots__ = ("annotations", "class_name", "feedback", "mode", "tier", "why")

    def __init__(self, mode: str, why: str) -> None:
        self.feedback: str | None = None
        self.mode = mode
        self.why = why
        self.tier: str | None = None
        self.class_name: str | None = None
        self.annotations: dict[str, str] = {}


def weaker_mode(one: str, other: str) -> str:
    """The one that does less."""
    return MODES[min(MODES.index(one), MODES.index(other))]


def feedback_of(mode: str, session: str | None, by_class: str) -> str:
    """What a call is told: the less of what its session and its class say; in observe, only on request."""
    if mode == "observe" and session is None:
        return "off"
    return FEEDBACK[min(FEEDBACK.index(session or "on"), FEEDBACK.index(by_class))]


def select_session(policy: Mapping[str, Any], node_mode: str, facts: SessionFacts) -> SessionChoice:
    """Choose the session's treatment. A container that no selector chooses is left alone (mode off)."""
    sessions = policy["sessions"]
    if sessions is None:
        return _choose(policy, node_mode, {}, "every container", facts)
    for session in sessions:
        if _session_matches(session["match"], facts):
            return _choose(policy, node_mode, session, session["name"], facts)
    return SessionChoice("off", "no session of the policy chooses this container")


def _session_matches(match: Mapping[str, Any], facts: SessionFacts) -> bool:
    """Cheap tests first: name and image may cost a look into the engine's own files."""
    if "engine" in match and facts.engine not in match["engine"]:
        return False
    if "cgroup" in match and not any(facts.cgroup.startswith(prefix) for prefix in match["cgroup"]):
        return False
    if "annotation" in match and not _annotations_match(match["annotation"], facts.annotations):
        return False
    if "name" in match and not _any_glob(match["name"], facts.name):
        return False
    return "image" not in match or _any_glob(match["image"], facts.image)


def _choose(
    policy: Mapping[str, Any], node_mode: str, session: Mapping[str, Any], name: str, facts: SessionFacts
) -> SessionChoice:
    allowed = session.get("annotations", ANNOTATION_KEYS)
    given = {
        key: facts.annotations[ANNOTATION + key] for key in allowed if ANNOTATION + key in facts.annotations
    }
    mode = given.get("mode", "")
    choice = SessionChoice(
        weaker_mode(node_mode, mode if mode in MODES else session.get("mode", "enforce")), name
    )
    choice.annotations = given
    feedback = given.get("feedback")
    choice.feedback = feedback if feedback in FEEDBACK else session.get("feedback")
    tier, class_name = given.get("tier"), given.get("class")
    choice.tier = tier if tier in policy["tiers"] else session.get("tier")
    choice.class_name = class_name if class_name in policy["classes"] else session.get("class")
    return choice


class CallFacts:
    """What rules look at: the command as it came and unwrapped, and how and where it was to run."""

    __slots__ = ("argv", "command", "cwd", "tty", "uid")

    def __init__(
        self,
        command: Command,
        argv: list[Any],
        cwd: str | None = None,
        uid: int | None = None,
        tty: bool = False,
    ) -> None:
        self.command = command
        self.argv = argv
        self.cwd = cwd
        self.uid = uid
        self.tty = tty


def command_matches(pattern: list[str], words: list[str], program: str) -> bool:
    """Whether the command begins with the pattern's words; options in between are stepped over.

    `npm install` matches `npm --silent install left-pad`, not `npm run install-hooks`.
    """
    if not words or not (glob(pattern[0], program) or ("/" in pattern[0] and glob(pattern[0], words[0]))):
        return False
    at = 1
    for wanted in pattern[1:]:
        while at < len(words) and words[at].startswith("-") and not wanted.startswith(("-", "*")):
            at += 1
        if at >= len(words) or not glob(wanted, words[at]):
            return False
        at += 1
    return True


def match_rule(
    policy: Mapping[str, Any], call: CallFacts, session: SessionFacts, tier: str | None
) -> Mapping[str, Any] | None:
    """The first rule that matches the call, if any."""
    for rule in policy["rules"]:
        if _rule_matches(rule["match"], call, session, tier):
            matched: Mapping[str, Any] = rule
            return matched
    return None


def _rule_matches(match: Mapping[str, Any], call: CallFacts, session: SessionFacts, tier: str | None) -> bool:
    words, program = call.command.words, call.command.program
    if "command" in match and not any(command_matches(p, words, program) for p in match["command"]):
        return False
    if "tty" in match and match["tty"] != call.tty:
        return False
    if "user" in match and call.uid not in match["user"]:
        return False
    if "cwd" in match and not _any_glob(match["cwd"], call.cwd):
        return False
    if "tier" in match and tier not in match["tier"]:
        return False
    if "annotation" in match and not _annotations_match(match["annotation"], session.annotations):
        return False
    if "image" in match and not _any_glob(match["image"], session.image):
        return False
    return "healthcheck" not in match or match["healthcheck"] == session.is_healthcheck(call.argv)
