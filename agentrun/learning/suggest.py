"""From what calls used to a policy that fits them: classes and rules, each with its evidence. Pure.

Nothing here makes a limit lower: a suggestion is a `memory.high` that grows with the call (`adaptive`), and,
for kinds whose calls were killed at a limit that they had not asked for, a larger default. A suggested class
is the class that such calls have now, with other memory, and its rule is the rule that they match now,
narrowed to their command and image: no time limit, network profile or mode is lost on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from agentrun.base.units import show_number, show_size
from agentrun.learning.usage import Usage, round_up

PREFIX = "learned-"
_SHOWN = 120  # characters of a name in a comment
_NAME_LENGTH = 48
_KILLED_SHARE = 0.05  # of such calls: below, it is the command that is at fault
_MORE = 2  # times the limit at which they were killed
_ABOVE_PEAK = 1.5
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+- ")


@dataclass(frozen=True, slots=True)
class Source:
    """A policy as it was written: every value is text. `rules` are by name; `sizes` are the compiled classes'
    memory in bytes, as far as that is absolute. `needs_standard`: there is no policy file, so one that is
    added has to repeat what the configuration says of all calls.
    """

    classes: Mapping[str, Any]
    rules: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, int]]
    needs_standard: bool = False


@dataclass(slots=True)
class Proposal:
    """What is suggested for one kind of calls: nothing where `name`, the class's, is empty."""

    usage: Usage
    base: str = ""
    rule: str | None = None
    name: str = ""
    high: int | None = None  # bytes
    default: int | None = None
    notes: list[str] = field(default_factory=list)


def read_source(texts: Iterable[str], compiled: Mapping[str, Any]) -> Source:
    """The policy of some files, merged as the compiler does it; of none, what the configuration says.

    The texts must have compiled: `compiled` is what they gave.
    """
    classes: dict[str, Any] = {}
    rules: list[Any] = []
    contents = [yaml.load(text, Loader=yaml.BaseLoader) for text in texts]  # noqa: S506 - text alone, no objects
    for content in contents:
        classes |= content.get("classes") or {}
        rules = list(content.get("rules") or []) + rules
    for name in compiled["classes"].keys() - classes.keys():
        classes[name] = _written(compiled["classes"][name])
    named = {rule.get("name", f"rule {number + 1}"): rule for number, rule in enumerate(rules)}
    sizes = {
        name: {key: size for key, size in klass.get("memory", {}).items() if type(size) is int}
        for name, klass in compiled["classes"].items()
    }
    return Source(classes, named, sizes, needs_standard=not contents)


def _written(klass: Mapping[str, Any]) -> dict[str, Any]:
    """A class that no file has, as it would be written: the built-in one has two limits at most."""
    written: dict[str, Any] = {}
    maximum = klass.get("memory", {}).get("max")
    if maximum is not None:
        percent, of = maximum
        written["memory"] = {"max": f"{show_number(percent)}% of {of}"}
    if "max" in klass.get("pids", {}):
        written["pids"] = {"max": str(klass["pids"]["max"])}
    return written


def propose(usages: Sequence[Usage], source: Source) -> list[Proposal]:
    """What to suggest for each kind, in the same order."""
    taken, given = set(source.classes), set[str]()
    proposals = []
    for usage in usages:
        proposal = Proposal(usage)
        problem = _place(proposal, source)
        if problem:
            proposal.notes.append(problem)
        else:
            _size(proposal, source.sizes.get(proposal.base, {}))
        if proposal.high is not None or proposal.default is not None:
            proposal.name = _name(proposal, taken, given)
            given.add(proposal.name)
        proposals.append(proposal)
    return proposals


def _place(proposal: Proposal, source: Source) -> str:
    """Find the class and the rule that such calls have now; returns why there is not one of each."""
    usage = proposal.usage
    family = usage.kind.family
    if not (family.strip() and _PLAIN.issuperset(family)) or set("*?").intersection(usage.kind.image):
        return "its name cannot be written as a rule"
    if len(usage.chosen) != 1:
        names = ", ".join(sorted({klass for klass, _ in usage.chosen}))
        several = f"the policy gives such calls several classes or rules ({names}): write rules by hand"
        return several if usage.chosen else "an intent chose the class of every such call"
    klass, rule = usage.chosen[0]
    if klass not in source.classes or (rule is not None and rule not in source.rules):
        return "its class or rule is not in this policy"
    proposal.base, proposal.rule = klass, rule
    return ""


def _size(proposal: Proposal, sizes: Mapping[str, int]) -> None:
    """Decide on the numbers. `sizes` is the class's memory in bytes, as far as it is absolute."""
    usage = proposal.usage
    limit = sizes.get("default", sizes.get("max"))
    proposal.default = _raised(proposal, limit, sizes.get("max"))
    has = proposal.default or limit
    if has is None or usage.high < has:
        proposal.high = usage.high
    else:
        proposal.notes.append(
            f"they use nearly all of their limit of {show_size(has)}: no high below it helps"
        )


def _raised(proposal: Proposal, limit: int | None, maximum: int | None) -> int | None:
    """A larger default where many calls were killed at one that they had not asked for."""
    usage = proposal.usage
    killed = sum(usage.default_kills.values())
    if not killed or killed < (usage.calls + killed) * _KILLED_SHARE:
        return None
    if limit is None:
        proposal.notes.append("they were killed at a share of their container: give that more")
        return None
    wanted = max(round_up(_MORE * max(usage.default_kills)), round_up(_ABOVE_PEAK * usage.memory.most))
    if maximum is not None and wanted > maximum:
        wanted = maximum
        proposal.notes.append(f"the class's max of {show_size(maximum)} may be too little")
    return wanted if wanted > limit else None


def _name(proposal: Proposal, taken: set[str], given: set[str]) -> str:
    """The class's name; what was suggested before keeps it, but for one kind of calls only."""
    if proposal.base.startswith(PREFIX) and proposal.base not in given:
        return proposal.base
    letters = (c if c.isalnum() else "-" for c in proposal.usage.kind.family.lower())
    name = PREFIX + ("".join(letters).strip("-") or "command")[:_NAME_LENGTH]
    number, found = 2, name
    while found in taken | given:
        number, found = number + 1, f"{name}-{number}"
    return found


def evidence(usage: Usage) -> list[str]:
    """What is known of a kind of calls, in lines of text without control characters."""
    memory, cpu = usage.memory, usage.cpu_us
    image = usage.kind.image or "an unknown image"
    lines = [
        f"{usage.kind.family} in {image}"[:_SHOWN],
        f"{usage.calls} calls; peak P50 {show_size(memory.p50)}, P95 {show_size(memory.p95)}, "
        f"max {show_size(memory.most)}"
        + ("" if cpu is None else f"; CPU P50 {_seconds(cpu.p50)}, P95 {_seconds(cpu.p95)}"),
    ]
    if usage.kills:
        killed = ", ".join(f"{count} at {show_size(limit)}" for limit, count in sorted(usage.kills.items()))
        lines.append(f"killed at their own limit: {killed}")
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


def _seconds(microseconds: int) -> str:
    return f"{show_number(round(microseconds / 1e6, 2))}s"


def describe(proposal: Proposal) -> dict[str, Any]:
    """A proposal as JSON: bytes and microseconds."""
    usage = proposal.usage

    def spread(of: Any) -> dict[str, int] | None:
        return None if of is None else {"p50": of.p50, "p95": of.p95, "max": of.most}

    memory = {"high": proposal.high, "default": proposal.default}
    return {
        "image": usage.kind.image or None,
        "family": usage.kind.family,
        "calls": usage.calls,
        "memory_peak": spread(usage.memory),
        "cpu_usage_us": spread(usage.cpu_us),
        "killed": {str(limit): count for limit, count in sorted(usage.kills.items())},
        "class": proposal.base or None,
        "rule": proposal.rule,
        "suggested": {"class": proposal.name, "memory": memory} if proposal.name else None,
        "notes": proposal.notes,
    }


def render(proposals: Sequence[Proposal], source: Source, head: Iterable[str]) -> str:
    """The suggestion as a policy file, its evidence in comments."""
    lines = [*(f"# {line}" for line in head), "version: 1"]
    made = [proposal for proposal in proposals if proposal.name]
    if made:
        lines.append("classes:")
        if source.needs_standard and all(proposal.name != "standard" for proposal in made):
            lines += ["  # as the configuration has it: with a policy, that does not count any more"]
            lines += _block({"standard": _plain(source.classes["standard"])})
        for proposal in made:
            lines += [f"  # {line}" for line in [*evidence(proposal.usage), *proposal.notes]]
            lines += _block({proposal.name: _class(proposal, source)})
        lines.append("rules:")
        for proposal in sorted(made, key=_narrowness):
            lines += _block([_rule(proposal, source)])
    left = [proposal for proposal in proposals if not proposal.name]
    for proposal in left:
        lines += [f"# {line}" for line in ["", *evidence(proposal.usage), *proposal.notes]]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _narrowness(proposal: Proposal) -> tuple[bool, int, str, str]:
    """The first rule that matches counts: those for one image, and for more words, come first."""
    kind = proposal.usage.kind
    return not kind.image, -kind.family.count(" "), kind.family, kind.image


def _class(proposal: Proposal, source: Source) -> dict[str, Any]:
    base = source.classes[proposal.base]
    memory = dict(base.get("memory") or {})
    if proposal.default is not None:
        memory["default"] = f"{proposal.default >> 20}M"
    if proposal.high is not None:
        memory.pop("learned", None)  # has no effect beside it
        memory |= {"high": f"{proposal.high >> 20}M", "adaptive": "true"}
    # Nobody should choose it by its name, which may change.
    made: dict[str, Any] = _plain({**base, "memory": memory, "selectable": "false"})
    return made


def _rule(proposal: Proposal, source: Source) -> dict[str, Any]:
    kind, now = proposal.usage.kind, source.rules.get(proposal.rule or "", {})
    match = {**(now.get("match") or {}), "command": [kind.family]}
    if kind.image:
        match["image"] = [kind.image]
    name = f"{PREFIX.rstrip('-')} {kind.family}" + (f" ({kind.image})" if kind.image else "")
    mode = {"mode": now["mode"]} if "mode" in now else {}
    made: dict[str, Any] = _plain({"name": name, "match": match, "class": proposal.name, **mode})
    return made


def _block(content: Any) -> list[str]:
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    return [f"  {line}" for line in text.splitlines()]


def _plain(value: Any) -> Any:
    """Text as the number or truth value that is written the same: `10`, `true`, but not `off` or `0x10`."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    try:
        read = yaml.safe_load(value) if isinstance(value, str) and len(value) < 20 else value
    except yaml.YAMLError:
        return value
    is_same = isinstance(read, (bool, int, float)) and yaml.safe_dump(read).split("\n")[0] == value
    return read if is_same else value
