"""Read what an agent declares about a call. Hostile input: it is only ever parsed, never run or followed.

    AGENTRUN_INTENT="memory=2g,cpu=2,pids=200,time=10m,net=none,priority=low,class=test"
    AGENTRUN_INTENT='{"memory": "2g", "cpu": 2, "class": "test"}'    (the same from a tool)
    AGENT_RESOURCE_HINT="memory:high"          (AgentCgroup's form: low, medium, high, or a size)

A declaration can come in the exec's environment, as a leading assignment of the command
(`env AGENTRUN_INTENT=... pytest`, `bash -lc 'AGENTRUN_INTENT=... pytest'`), or in the container's annotations
(`agentrun.dev/intent`). What is malformed or unknown is refused by itself, with its reason, and the rest
counts.
"""

from __future__ import annotations

from agentrun.base import fastjson
from agentrun.base.limits import LARGEST
from agentrun.base.units import parse_count, parse_duration, parse_number, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

INTENT_VARIABLE = "AGENTRUN_INTENT"
HINT_VARIABLE = "AGENT_RESOURCE_HINT"
PRIORITIES = ("low", "normal", "high")

_TEXT_LIMIT = 4096  # characters that are looked at
_SHOWN_LIMIT = 64  # characters of a refused part that a record repeats
_RAW_LIMIT = 256
_REFUSED_LIMIT = 16  # refused parts that a record names
_NAME_LIMIT = 64
_PID_MOST = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel
_CUTS_LIMIT = 16  # declarations that are cut out of one word
_BOUNDARY = frozenset(" \t\n;&|(")
_VALUE_ENDS = frozenset(" \t\n;&|()")

# AgentCgroup's words (README: low = 256 MiB, medium = 1 GiB, high = as much as is allowed).
_WORDS = {"low": 256 << 20, "medium": 1 << 30, "high": LARGEST, "max": LARGEST}
_ALIASES = {"mem": "memory", "cpus": "cpu", "timeout": "time", "network": "net"}


class Intent:
    """What a call asks for; None where nothing was asked.

    `memory` in bytes, `cpu` in CPUs, `pids` as a count, `time` in seconds, `net`, `priority` and
    `class_name` as names, `client` as a pid of the host. `raw` is the declaration as it came (cut),
    `refused` holds (part, reason).
    """

    __slots__ = ("class_name", "client", "cpu", "memory", "net", "pids", "priority", "raw", "refused", "time")

    def __init__(self) -> None:
        self.memory: int | None = None
        self.cpu: float | None = None
        self.pids: int | None = None
        self.time: float | None = None
        self.net: str | None = None
        self.priority: str | None = None
        self.class_name: str | None = None
        self.client: int | None = None
        self.raw: str | None = None
        self.refused: list[tuple[str, str]] = []

    def refuse(self, part: str, reason: str) -> None:
        """Note a part that does not count."""
        if len(self.refused) < _REFUSED_LIMIT:
            self.refused.append((part[:_SHOWN_LIMIT], reason))

    def accepted(self) -> dict[str, float | int | str]:
        """The parts that count, by name."""
        asked = {
            "memory": self.memory,
            "cpu": self.cpu,
            "pids": self.pids,
            "time": self.time,
            "net": self.net,
            "priority": self.priority,
            "class": self.class_name,
            "client": self.client,
        }
        return {name: value for name, value in asked.items() if value is not None}


def is_name(text: str) -> bool:
    """Whether a text can be the name of a class, a tier or a network profile."""
    return (
        0 < len(text) <= _NAME_LIMIT
        and text.isascii()
        and text[0].isalnum()
        and text.replace("-", "").replace("_", "").replace(".", "").isalnum()
    )


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
    count = parse_count(value)
    if count is None:
        return "expected a whole number of processes"
    intent.pids = count
    return None


def _take_time(intent: Intent, value: str) -> str | None:
    seconds = parse_duration(value)
    if seconds is None:
        return "expected a duration with a unit, such as 90s or 10m"
    intent.time = seconds
    return None


def _take_net(intent: Intent, value: str) -> str | None:
    if not is_name(value):
        return "expected the name of a network profile"
    intent.net = value
    return None


def _take_priority(intent: Intent, value: str) -> str | None:
    if value.lower() not in PRIORITIES:
        return f"expected one of {', '.join(PRIORITIES)}"
    intent.priority = value.lower()
    return None


def _take_class(intent: Intent, value: str) -> str | None:
    if not is_name(value):
        return "expected the name of a class"
    intent.class_name = value
    return None


def _take_client(intent: Intent, value: str) -> str | None:
    pid = parse_count(value)
    if not pid or pid > _PID_MOST:
        return "expected the pid of a process on the host"
    intent.client = pid
    return None


_TAKERS = {
    "memory": _take_memory,
    "cpu": _take_cpu,
    "pids": _take_pids,
    "time": _take_time,
    "net": _take_net,
    "priority": _take_priority,
    "class": _take_class,
    "client": _take_client,
}


def _take(intent: Intent, part: str, key: str, value: str) -> None:
    taker = _TAKERS.get(_ALIASES.get(key, key))
    reason = taker(intent, value) if taker else "unknown name"
    if reason:
        intent.refuse(part, reason)


def _take_part(intent: Intent, part: str) -> None:
    """`name=value` or `name:value`, whichever separator comes first: agents mix the two forms."""
    separator = min("=:", key=lambda char: part.find(char) if char in part else len(part))
    key, found, value = part.partition(separator)
    if found:
        _take(intent, part, key.strip().lower(), value.strip())
    elif part.lower() in _WORDS or parse_size(part):
        _take_memory(intent, part)  # AgentCgroup takes a bare `high` or `2g` for memory
    else:
        intent.refuse(part, "expected name=value")


def _take_json(intent: Intent, text: str) -> None:
    try:
        document = fastjson.loads(text)
    except (ValueError, RecursionError):
        intent.refuse(text, "not valid JSON")
        return
    if not isinstance(document, dict):
        intent.refuse(text, "expected a JSON object")
        return
    for key, value in document.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            intent.refuse(f"{key}={value!r:.32}", "expected a string or a number")
        else:
            written = value if isinstance(value, str) else fastjson.dumps(value)
            _take(intent, f"{key}={written}", str(key).strip().lower(), written.strip())


def parse(text: str) -> Intent:
    """One declaration, in either form. Never raises."""
    intent = Intent()
    take_into(intent, text)
    return intent


def take_into(intent: Intent, text: str) -> None:
    """Let a declaration count over what `intent` holds already, part by part. Never raises."""
    intent.raw = text[:_RAW_LIMIT]
    if len(text) > _TEXT_LIMIT:
        intent.refuse(text, f"longer than {_TEXT_LIMIT} characters")
        return
    text = text.strip()
    if text.startswith("{"):
        _take_json(intent, text)
        return
    for part in text.replace(";", ",").split(","):
        if part.strip():
            _take_part(intent, part.strip())


def declared(entries: Iterable[object]) -> list[str]:
    """The declarations among `NAME=value` strings, the weaker first: the hint, then the intent.

    The last one of a name wins, as in a process's environment. Anything else is passed over.
    """
    found: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, str) and entry.startswith("AGENT"):
            name, equals, value = entry.partition("=")
            if equals and name in (INTENT_VARIABLE, HINT_VARIABLE):
                found[name] = value
    return [found[name] for name in (HINT_VARIABLE, INTENT_VARIABLE) if name in found]


def gather(annotated: str | None, environment: Iterable[object], assignments: Iterable[object]) -> Intent:
    """What the call asks for, from all channels; the nearer to the command, the stronger.

    `annotated` is the container's annotation, `assignments` are those in front of the command. A `client` is
    what the exec's caller says in its environment: what the agent writes before a command cannot change it.
    """
    intent = Intent()
    for text in [*([] if annotated is None else [annotated]), *declared(environment)]:
        take_into(intent, text)
    client = intent.client
    for text in declared(assignments):
        take_into(intent, text)
    if intent.client != client:
        intent.refuse(f"client={intent.client}", "only from the environment of the exec")
        intent.client = client
    return intent


def without(words: list[str]) -> list[str]:
    """The words of a command with every declaration cut out: the same for each size that is tried.

    Looked at as text, in words of their own (`env AGENTRUN_INTENT=... pytest`) and in shell strings.
    """
    if not any(INTENT_VARIABLE in word or HINT_VARIABLE in word for word in words):
        return words
    kept: list[str] = []
    for word in words:
        is_string = bool(kept) and kept[-1].startswith("-") and "c" in kept[-1]
        if word.startswith((INTENT_VARIABLE + "=", HINT_VARIABLE + "=")) and not is_string:
            continue
        kept.append(_cut_out(word))
    # `env` with nothing left to set is the bare command.
    is_bare = (
        len(words) > len(kept) > 1 and kept[0] == "env" and not kept[1].startswith("-") and "=" not in kept[1]
    )
    return kept[1:] if is_bare else kept


def _cut_out(text: str) -> str:
    for name in (INTENT_VARIABLE, HINT_VARIABLE):
        at = 0
        for _ in range(_CUTS_LIMIT):
            at = text.find(name + "=", at)
            if at < 0:
                break
            if at and text[at - 1] not in _BOUNDARY:
                at += 1
                continue
            head, tail = text[:at], text[_value_end(text, at + len(name) + 1) :].lstrip(" \t")
            lead = head.rstrip(" \t").rpartition(" ")[2].rpartition(";")[2]
            if lead in ("env", "export"):
                head = head.rstrip(" \t")[: -len(lead)]
            if lead == "export":
                tail = tail.lstrip(" \t\n;&")
            text, at = head + tail, len(head)
    return text


def _value_end(text: str, at: int) -> int:
    """Where the value of an assignment in a shell string ends."""
    quote = ""
    while at < len(text):
        char = text[at]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _VALUE_ENDS:
            break
        at += 1
    return at
