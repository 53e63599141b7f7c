"""Read what an agent declares about a call. Hostile input: it is only ever parsed, never run or followed.

    AGENTRUN_INTENT="memory=2g,cpu=2,pids=200"
    AGENT_RESOURCE_HINT="memory:high"            (AgentCgroup's form: low, medium, high, or a size)

What is malformed or unknown is refused by itself, with its reason, and the rest still counts.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

INTENT_VARIABLE = "AGENTRUN_INTENT"
HINT_VARIABLE = "AGENT_RESOURCE_HINT"

_TEXT_LIMIT = 4096  # characters that are looked at
_SHOWN_LIMIT = 64  # characters of a refused part that a record repeats
_REFUSED_LIMIT = 16  # refused parts that a record names
_DIGITS_LIMIT = 18

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# AgentCgroup's words (agentcg/README): low = 256 MiB, medium = 1 GiB, high = as much as is allowed.
_WORDS = {"low": 256 << 20, "medium": 1 << 30, "high": 1 << 62}
_LATER = frozenset(("class", "io", "net", "priority", "time"))


class Intent:
    """What a call asks for: `memory` in bytes, `cpu` in CPUs, `pids`; None where nothing was asked.

    `raw` is the declaration as it came (cut), `refused` holds (part, reason).
    """

    __slots__ = ("cpu", "memory", "pids", "raw", "refused")

    def __init__(self) -> None:
        self.memory: int | None = None
        self.cpu: float | None = None
        self.pids: int | None = None
        self.raw: str | None = None
        self.refused: list[tuple[str, str]] = []

    def refuse(self, part: str, reason: str) -> None:
        """Note a part that does not count."""
        if len(self.refused) < _REFUSED_LIMIT:
            self.refused.append((part[:_SHOWN_LIMIT], reason))

    def accepted(self) -> dict[str, float | int]:
        """The parts that count, by name."""
        asked = {"memory": self.memory, "cpu": self.cpu, "pids": self.pids}
        return {name: value for name, value in asked.items() if value is not None}


def parse_number(text: str) -> float | None:
    """A plain non-negative decimal such as `2` or `1.5`; None for signs, exponents, blanks and the rest."""
    whole, dot, fraction = text.partition(".")
    if not whole or len(text) > _DIGITS_LIMIT or (dot and not fraction):
        return None
    digits = whole + fraction
    return float(text) if digits.isascii() and digits.isdigit() else None


def parse_size(text: str) -> int | None:
    """Bytes of `512m`, `2g`, `1.5GiB`, `64KB` (powers of 1024), `4096b`; None without a unit."""
    lowered = text.lower()
    if lowered.endswith("ib"):
        lowered = lowered[:-2]
    elif lowered.endswith("b"):
        lowered = lowered[:-1]
        if lowered[-1:].isdigit():
            number = parse_number(lowered)
            return int(number) if number else None
    factor = _UNITS.get(lowered[-1:])
    number = parse_number(lowered[:-1])
    return int(number * factor) if factor and number else None


def _take_memory(intent: Intent, value: str) -> str | None:
    size = _WORDS.get(value.lower()) or parse_size(value)
    if size is None:
        return "expected a size with a unit, such as 512m or 2g"
    intent.memory = size
    return None


def _take_cpu(intent: Intent, value: str) -> str | None:
    number = parse_number(value)
    if not number:
        return "expected a number of CPUs, such as 2 or 0.5"
    intent.cpu = number
    return None


def _take_pids(intent: Intent, value: str) -> str | None:
    number = parse_number(value)
    if not number or number != int(number):
        return "expected a whole number of processes"
    intent.pids = int(number)
    return None


_TAKERS = {"memory": _take_memory, "mem": _take_memory, "cpu": _take_cpu, "pids": _take_pids}


def _take_part(intent: Intent, part: str, separator: str) -> None:
    key, found, value = part.partition(separator)
    key, value = key.strip().lower(), value.strip()
    if not found:
        intent.refuse(part, f"expected name{separator}value")
    elif key in _LATER:
        intent.refuse(part, "not enforced by this version")
    elif key not in _TAKERS:
        intent.refuse(part, "unknown name")
    elif reason := _TAKERS[key](intent, value):
        intent.refuse(part, reason)


def _take_text(intent: Intent, text: str, separator: str) -> None:
    intent.raw = text[:256]
    if len(text) > _TEXT_LIMIT:
        intent.refuse(text, f"longer than {_TEXT_LIMIT} characters")
        return
    for part in text.split(","):
        if part.strip():
            _take_part(intent, part.strip(), separator)


def parse_environment(environment: Iterable[object]) -> Intent:
    """The intent in a process's environment (`NAME=value` strings; the last one of a name wins).

    `AGENTRUN_INTENT` wins over `AGENT_RESOURCE_HINT`. Anything else in the list is passed over.
    """
    found: dict[str, str] = {}
    for entry in environment:
        if isinstance(entry, str):
            name, equals, value = entry.partition("=")
            if equals and name in (INTENT_VARIABLE, HINT_VARIABLE):
                found[name] = value
    intent = Intent()
    if INTENT_VARIABLE in found:
        _take_text(intent, found[INTENT_VARIABLE], "=")
    elif HINT_VARIABLE in found:
        _take_text(intent, found[HINT_VARIABLE], ":")
    return intent
