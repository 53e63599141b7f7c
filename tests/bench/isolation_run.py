"""Runs of `make bench-isolation` in the guest: every mix in every arm, seed by seed, until the time is up.

    python3 tests/bench/isolation_run.py OUT [--traces DIR] [--seeds N] [--minutes M] [--mixes A,B] [--arms
    A,B]

One JSON object a run, appended to OUT as soon as it is there. Arms of one seed and mix run one after the
other in an order of chance, beside a run of HIGH alone: what drifts over the hours of an emulator meets all
alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isolation_arms import ARMS, COMPARED, Arm, helper, in_force, unavailable
from isolation_density import TOTAL, most_that_fit, sessions_of
from isolation_mixes import MIXES, USUAL, Mix, memory, origin, plans, with_chance

from agentrun.replay.engines import ByHand, Container
from agentrun.replay.metrics import figures, percentile
from agentrun.replay.parent import parent_cgroup
from agentrun.replay.run import RunResult, Session, run_sessions
from agentrun.replay.schedule import SessionPlan
from agentrun.replay.traces import Trace, read_folder

ROOTFS = Path("/var/lib/agentrun-vm/rootfs/agentbox")
ALONE = Arm("alone")
SHOWN = (
    "mix",
    "arm",
    "seed",
    "sessions",
    "oom_kills",
    "agents_killed",
    "run_again",
    "high_p95_ms",
    "high_done_s",
)
# A session that is not done by then counts as never done: after 40 s, or six times what HIGH alone took.
LIMIT_S, LIMIT_FACTOR = 40.0, 6.0
RETRIES = 3  # an agent whose call was killed runs it again


def config_hash(mix: Mix, arm: Arm, sessions: Sequence[SessionPlan], total: int) -> str:
    """Changes with anything that a run is made of, chance excepted."""
    files = [sorted(arm.files(plan.tier, total // len(sessions)).items()) for plan in sessions]
    limits = (LIMIT_S, LIMIT_FACTOR, RETRIES)
    parts = (asdict(mix), arm.name, arm.runtime, arm.policy, files, sessions, total, limits)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def run_mix(arm: Arm, sessions: Sequence[SessionPlan], total: int, limit_s: float) -> RunResult:
    """One run: new containers below a parent with `total` bytes."""
    share = total // len(sessions)
    made = [
        Session(
            plan,
            Container(
                f"{plan.name}-{os.getpid()}",
                {"agentrun.dev/tier": plan.tier},
                files=arm.files(plan.tier, share),
            ),
        )
        for plan in sessions
    ]
    with in_force(arm), parent_cgroup(False, total) as parent, helper(arm, parent[1]):
        return run_sessions(ByHand(arm.runtime, ROOTFS), made, parent, limit_s, retries=RETRIES)


def high_latencies(run: RunResult) -> list[float]:
    """Milliseconds for each chunk of the HIGH tier."""
    return [ms for session in run.sessions if session.tier == "high" for ms in session.latencies_ms()]


def row(
    mix: str, arm: str, seed: int, run: RunResult, alone_p95: float | None, digest: str
) -> dict[str, Any]:
    """The JSON object of a run."""
    found = figures(run)
    high, low = found["tiers"]["high"], found["tiers"].get("low", {"done_s": []})
    times = [done for done in high["done_s"] if done is not None]
    return {
        "mix": mix,
        "arm": arm,
        "seed": seed,
        "oom_kills": found["oom_kills"],
        "agent_killed": found["agents_killed"] > 0,
        **{f"high_{name}": high[name] for name in ("p50_ms", "p95_ms", "p99_ms")},
        "high_alone_p95_ms": alone_p95,
        "high_done_s": max(times) if len(times) == len(high["done_s"]) else None,
        "low_done_s": low["done_s"],
        "sessions": found["sessions"],
        "config_hash": digest,
        "high_chunks": high["chunks"],
        "agents_killed": found["agents_killed"],
        "calls": found["calls"],
        "run_again": found["run_again"],
        "exec_ms": found["exec_ms"],
        "work_per_gb_s": found["work_per_gb_s"],
        "fairness": found["fairness"],
        "seconds": found["seconds"],
    }


class Evaluation:
    """All runs, one after the other, into one file."""

    def __init__(self, out: Path, traces: Sequence[Trace], minutes: float) -> None:
        self.out = out
        self.traces = traces
        self.deadline = time.monotonic() + minutes * 60
        self.longest = 0.0
        self.alone_s = 0.0

    def has_time(self) -> bool:
        """Whether another run fits."""
        return time.monotonic() + self.longest < self.deadline

    def say(self, found: dict[str, Any]) -> None:
        """Append a row, and show what it says."""
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(
            "bench:", *(f"{key}={found[key]}" for key in (*SHOWN, "low_done_s") if key in found), flush=True
        )

    def timed(self, arm: Arm, sessions: Sequence[SessionPlan], total: int) -> RunResult:
        """A run, remembering how long one may take."""
        began = time.monotonic()
        run = run_mix(arm, sessions, total, max(LIMIT_S, LIMIT_FACTOR * self.alone_s))
        self.longest = max(self.longest, time.monotonic() - began)
        if arm is ALONE:
            self.alone_s = run.seconds
        return run

    def density(self, arms: Sequence[Arm], seed: int) -> None:
        """How many sessions fit in each arm, while there is time."""
        if not self.has_time():
            return
        alone = self.timed(ALONE, sessions_of(1, self.traces, seed), TOTAL)
        alone_p95 = percentile(high_latencies(alone), 95)
        for arm in arms:
            if not self.has_time():
                return

            def run(sessions: Sequence[SessionPlan], total: int, arm: Arm = arm) -> RunResult:
                return self.timed(arm, sessions, total)

            count = most_that_fit(run, self.traces, seed, alone_p95)
            found = {"mix": "density", "arm": arm.name, "seed": seed, "sessions": count}
            self.say({**found, "high_alone_p95_ms": alone_p95})

    def seed(self, mix: Mix, arms: Sequence[Arm], seed: int) -> bool:
        """One seed of one mix, in every arm; False when the time is up."""
        planned = plans(mix, self.traces)
        total = memory(mix, planned)
        sessions = with_chance(planned, seed)
        if not self.has_time():
            return False
        alone = self.timed(ALONE, [plan for plan in sessions if plan.tier == "high"], total)
        alone_p95 = percentile(high_latencies(alone), 95)
        order = list(arms)
        random.Random(f"{mix.name} {seed}").shuffle(order)
        for arm in order:
            if not self.has_time():
                return False
            run = self.timed(arm, sessions, total)
            self.say(row(mix.name, arm.name, seed, run, alone_p95, config_hash(mix, arm, planned, total)))
        return True


def usable(names: Sequence[str]) -> list[Arm]:
    """The arms that this host can run; the others are named with their reason."""
    found = []
    for name in names:
        reason = unavailable(ARMS[name])
        if reason is None:
            found.append(ARMS[name])
        else:
            print(f"bench: UNAVAILABLE arm {name}: {reason}", flush=True)
    return found


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="to go on with earlier runs")
    parser.add_argument("--minutes", type=float, default=38.0)
    parser.add_argument("--mixes", default=",".join(USUAL))
    parser.add_argument("--density", type=int, default=1, metavar="SEEDS")
    parser.add_argument("--arms", default=",".join(COMPARED))
    return parser.parse_args()


def main() -> None:
    """Run what was asked for."""
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # remove containers and cgroups on the way out
    traces = read_folder(given.traces) if given.traces else []
    for line in origin(traces):
        print("bench: trace", line)
    evaluation = Evaluation(given.out, traces, given.minutes)
    arms = usable(given.arms.split(","))
    for seed in range(given.first, given.first + given.seeds):
        for name in given.mixes.split(","):
            if not evaluation.seed(MIXES[name], arms, seed):
                print(f"bench: time is up in seed {seed}, mix {name}", flush=True)
                sys.exit(0)
        if seed < given.density:
            evaluation.density(arms, seed)


if __name__ == "__main__":
    main()
