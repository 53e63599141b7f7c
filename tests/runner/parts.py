"""The parts of the VM tests: which files, in which kind of guest; and the order in which they are run."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace


class _Word(str, enum.Enum):
    """A word of a closed list, as `enum.StrEnum` of Python 3.11."""

    __str__ = str.__str__


class Guest(_Word):
    """A kind of guest: QEMU with all of a kernel, or User-Mode Linux, where programs run natively."""

    FULL = "full"
    FAST = "fast"


class State(_Word):
    """Whether a kind of guest can be used."""

    BUILDING = "building"
    READY = "ready"
    ABSENT = "absent"


class Turn(_Word):
    """What is to be done with a part that is run nowhere, or not yet."""

    WAIT = "wait"
    SKIP = "skip"
    FAIL = "fail"


@dataclass(frozen=True)
class Part:
    """Test files that are run in one guest of their own. Which tests of them are, their marks say."""

    name: str
    guest: Guest
    minutes: float  # about, alone on two CPUs: the longest part is run first
    files: tuple[str, ...]
    vm: tuple[str, ...] = ()  # more options of `vm run`
    module: str = ""  # a kernel module that is built before, for the full guest
    pytest: tuple[str, ...] = ()
    is_own_target: bool = False  # not in `make test`: it measures, or its timing wants a quiet machine

    def arguments(self, matrix: str) -> list[str]:
        """Of pytest. What has a target of its own is run whole."""
        chosen = [] if self.is_own_target else [f"--guest={self.guest}", f"--matrix={matrix}"]
        return [*chosen, *self.pytest, *(f"tests/integration/test_{name}.py" for name in self.files)]


def _full(name: str, minutes: float, *files: str, vm: Sequence[str] = (), module: str = "") -> Part:
    return Part(name, Guest.FULL, minutes, files, tuple(vm), module)


def _fast(name: str, minutes: float, *files: str) -> Part:
    return Part(name, Guest.FAST, minutes, files)


def _own(
    name: str, *files: str, guest: Guest = Guest.FULL, vm: Sequence[str] = (), pytest: Sequence[str] = ()
) -> Part:
    return Part(name, guest, 10, files, tuple(vm), pytest=tuple(pytest), is_own_target=True)


# Loading schedulers often may crash a guest that is emulated by several threads.
_ONE_THREAD = ("--tcg-thread", "single")

PARTS = (
    # A smoke run of each engine on each runtime, and what needs a second CPU, cpusets or huge pages.
    _full("smoke", 9, "engines", "policy", "verdicts"),
    _full("kernel", 9, "kernel"),
    _full("bpf", 8, "bpf", "network", "snapshot"),
    _full("isolation", 8, "isolation"),
    _full("mempressure", 6, "mempressure", vm=_ONE_THREAD),
    _full("memory", 4, "memcg_ops", "mrelease", module="tests/memcg_ops"),
    _fast("verdicts", 7, "verdicts"),
    _fast("engines", 5, "engines"),
    _fast("feedback", 4, "feedback"),
    _fast("edges", 4, "edges", "daemon"),
    _fast("controller", 4, "controller", "store", "kernel"),
    _fast("policy", 3.5, "policy", "learned"),
    _fast("by-hand", 3, "by_hand"),
    _fast("short-calls", 4, "short_calls"),
    _own("scx", "scx", vm=(*_ONE_THREAD, "--env", "AGENTRUN_SCX_CYCLES=5"), pytest=("-m", "not figures")),
    _own("admission", "admission"),
    _own("boost", "boost", "lending"),
    _own("rates", "rates"),
    _own("replay", "replay"),
    _own("trace", "trace"),
    _own("many-calls", "short_calls", guest=Guest.FAST, vm=("--env", "AGENTRUN_EXECS=2000"), pytest=("-s",)),
)


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of those names (`fast/engines`, or `engines` for all of that name); without, of `make test`.

    Raises KeyError for a name that no part has.
    """
    if not names:
        return [part for part in PARTS if not part.is_own_target]
    found = []
    for name in names:
        matching = [part for part in PARTS if name in (part.name, title(part))]
        if not matching:
            raise KeyError(name)
        found += matching
    return list(dict.fromkeys(found))


def title(part: Part) -> str:
    """What tells a part from all others."""
    return f"{part.guest}/{part.name}"


def longest_first(parts: Iterable[Part]) -> list[Part]:
    """So that a long one does not run alone at the end."""
    return sorted(parts, key=lambda part: -part.minutes)


def turn_of(part: Part, states: Mapping[Guest, State], *, is_ci: bool) -> Guest | Turn:
    """In which guest a part is run now, or why it is not.

    Where there is no fast guest the full one does its work, slower; in CI that is a failure.
    """
    state = states[part.guest]
    if state is State.READY:
        return part.guest
    if state is State.BUILDING:
        return Turn.WAIT
    if is_ci:
        return Turn.FAIL
    if part.guest is Guest.FAST:
        return turn_of(replace(part, guest=Guest.FULL), states, is_ci=is_ci)
    return Turn.SKIP


def next_turn(
    waiting: Sequence[Part], states: Mapping[Guest, State], *, is_ci: bool
) -> tuple[Part, Guest | Turn] | None:
    """The first part that need not wait, and what is done with it."""
    for part in waiting:
        turn = turn_of(part, states, is_ci=is_ci)
        if turn is not Turn.WAIT:
            return part, turn
    return None


def room(jobs: int, states: Mapping[Guest, State]) -> int:
    """How many guests may run: a kind that is still being built takes the place of one."""
    building = sum(state is State.BUILDING for state in states.values())
    return max(1, jobs - building)
