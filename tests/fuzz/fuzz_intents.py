"""Generate hostile intents and check that nothing of them gets where it should not: see `check`.

    python3 tests/fuzz/fuzz_intents.py [COUNT] [SEED]

Prints what it did; a failing input is printed with its seed, and belongs into corpus.json with its fix.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
sys.path.insert(0, str(TREE))

from agentrun.base import fastjson  # noqa: E402
from agentrun.base.limits import CPU_FLOOR, MEMORY_FLOOR, PIDS_FLOOR, Limits, amount  # noqa: E402
from agentrun.calls import record  # noqa: E402
from agentrun.decision import match  # noqa: E402
from agentrun.decision.decide import Decision, decide  # noqa: E402
from agentrun.decision.intent import is_name  # noqa: E402
from agentrun.oci.engine import SessionFacts  # noqa: E402
from agentrun.oci.processdoc import Process  # noqa: E402
from agentrun.policy.compiler import compile_files  # noqa: E402

BUDGET_S = 0.005
CORPUS: list[str] = json.loads((Path(__file__).parent / "corpus.json").read_text())
HOST = Limits(16 << 30, 8.0)
PIECES = [
    *(
        "memory",
        "cpu",
        "pids",
        "time",
        "net",
        "priority",
        "class",
        "mem",
        "mode",
        "tier",
        "=",
        ":",
        ",",
        ";",
        " ",
        "\n",
    ),
    *(
        "2g",
        "512m",
        "1.5",
        "99",
        "-1",
        "1e99",
        "low",
        "high",
        "none",
        "test",
        "big",
        "standard",
        "10m",
        "{",
        "}",
        '"',
    ),
    *(
        "$(",
        ")",
        "`",
        "'",
        "\\",
        "\0",
        "\ud800",
        "\udcff",
        "%s",
        "{0}",
        "../",
        "/",
        "max",
        "\x1b[2J",
        "é",
        "𝟚",
        "∞",
    ),
]
FILE_CHARACTERS = frozenset("0123456789 ,-max")


def mutate(random_: random.Random, text: str) -> str:
    """Change a text somewhere, or a few times."""
    for _ in range(random_.randint(1, 4)):
        at = random_.randint(0, len(text))
        choice = random_.random()
        if choice < 0.5:
            text = text[:at] + random_.choice(PIECES) + text[at:]
        elif choice < 0.7:
            text = text[:at] + text[at + random_.randint(1, 4) :]
        elif choice < 0.9:
            text = (
                text[:at]
                + chr(random_.choice((random_.randint(0, 127), random_.randint(0, 0x10FFFF))))
                + text[at:]
            )
        else:
            text = (text + random_.choice((",", ";", ""))) * random_.randint(1, 3)
    return text


def generate(random_: random.Random) -> str:
    """One hostile declaration."""
    choice = random_.random()
    if choice < 0.6:
        return mutate(random_, random_.choice(CORPUS))
    if choice < 0.95:
        return "".join(random_.choice(PIECES) for _ in range(random_.randint(1, 24)))
    return random_.choice(PIECES) * random_.randint(1, 3000)


def calls(text: str) -> list[Process]:
    """The declaration in every channel an agent can reach."""
    quoted = text.replace("'", "'\\''")
    return [
        Process({"args": ["pytest"], "env": [f"AGENTRUN_INTENT={text}"]}, None),
        Process({"args": ["env", f"AGENT_RESOURCE_HINT={text}", "make"], "env": []}, None),
        Process({"args": ["bash", "-lc", f"AGENTRUN_INTENT='{quoted}' npm install"], "env": []}, None),
        Process({"args": ["sh", "-c", text], "env": [text]}, None),
    ]


def check(compiled: dict[str, Any], decision: Decision, session: Limits) -> None:
    """What must hold for every decision. Raises AssertionError."""
    plan = decision.plan
    assert plan is not None
    tier = compiled["tiers"].get(decision.tier, {})
    klass = compiled["classes"][plan.class_name]
    for name, value, floor, own, host in (
        ("memory", plan.memory, MEMORY_FLOOR, session.memory, HOST.memory),
        ("cpu", plan.cpus, CPU_FLOOR, session.cpus, HOST.cpus),
        ("pids", plan.pids, PIDS_FLOOR, session.pids, HOST.pids),
    ):
        ceilings = [amount(part.get(name, {}).get("max"), own, host) for part in (klass, tier)]
        for ceiling in ceilings:
            assert ceiling is None or (value is not None and value <= max(ceiling, floor)), (
                name,
                value,
                ceiling,
            )
        for around in (own, host):
            assert value is None or around is None or value <= around, (name, value, around)
    for _, file, text in plan.files():
        assert file.replace(".", "").isalpha() and FILE_CHARACTERS.issuperset(text), (file, text)
    for name in (plan.class_name, plan.net or "x", plan.priority, decision.rule or "x"):
        assert is_name(name.replace(" ", "-")), name
    state = {
        "intent": decision.describe_intent(),
        "command": record.describe_command(["x"], decision.command.program, "name"),
    }
    line = fastjson.dumps(state)
    assert line.isascii() and "\n" not in line and "\x1b" not in line and json.loads(line)
    assert len(line) < 16_000, len(line)


def policies() -> list[dict[str, Any]]:
    """The ready policies and the built-in one."""
    files = sorted((TREE / "configs/policy").glob("*.yaml"))
    return [match.builtin(50.0), *(compile_files([file]) for file in files)]


def timed(
    compiled: dict[str, Any], facts: SessionFacts, process: Process, session: Limits
) -> tuple[Decision, float]:
    """Decide, and say how many seconds of CPU time that took."""
    began = time.thread_time()
    decision = decide(compiled, "enforce", facts, process, session, HOST)
    return decision, time.thread_time() - began


def fuzz(texts: list[str] | None, count: int, seed: int) -> float:
    """Check the texts, or `count` generated ones; returns the longest time of one decision in seconds."""
    random_ = random.Random(seed)  # noqa: S311 - not for secrets
    compiled = policies()
    slowest = 0.0
    for number in range(len(texts) if texts is not None else count):
        text = texts[number] if texts is not None else generate(random_)
        chosen = compiled[number % len(compiled)]
        session = Limits(
            random_.choice((None, 64 << 20, 1 << 30)),
            random_.choice((None, 0.5, 4.0)),
            random_.choice((None, 20, 4096)),
        )
        tier = random_.choice(("low", "normal", "high"))
        for process in calls(text) if texts is not None else [random_.choice(calls(text))]:
            facts = SessionFacts("docker", "/x", {"agentrun.dev/tier": tier, "agentrun.dev/intent": text})
            try:
                decision, took = timed(chosen, facts, process, session)
                if took >= BUDGET_S:  # a neighbour on this core may have had the cache, so look again
                    took = min(timed(chosen, facts, process, session)[1] for _ in range(5))
                slowest = max(slowest, took)
                assert took < BUDGET_S, f"{took * 1000:.1f} ms"
                if decision.mode != "off":
                    check(chosen, decision, session)
            except Exception:
                print(
                    f"seed {seed}, input {number}: {text!r}, tier {tier}, {process.argv!r}", file=sys.stderr
                )
                raise
    return slowest


def main() -> None:
    """Fuzz as the command line says."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.monotonic()
    slowest = fuzz(None, count, seed)
    took = time.monotonic() - began
    print(f"{count} intents, seed {seed}: {took:.0f} s, slowest decision {slowest * 1000:.2f} ms")


if __name__ == "__main__":
    main()
