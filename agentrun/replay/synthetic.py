"""Traces from stated distributions, for hosts that have no recorded ones.

A session of a profile: think times are exponential, call durations and memory deltas log-normal (medians and
95th percentiles below), cut to the profile's peak; `spikes` calls last `spike_s` and rise to the peak. All is
then stretched to the session's duration. The agent starts within a second and creeps from 90 % to 110 % of
its level. The defaults are those of the 144 SWE-bench tasks that the AgentCgroup artifact recorded (arXiv
2602.09345), by our own count: 8 to 12 calls a minute, memory delta of a command 3 MB in the median, 80 MB at
the 95th percentile.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from agentrun.replay.traces import Sample, ToolCall, Trace

MB = 1_000_000
_Z95 = 1.645  # standard deviations from the median to the 95th percentile


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of session: bytes, seconds, CPUs."""

    name: str
    duration: float
    base: float
    peak: float
    spikes: int
    spike_s: float
    calls_per_minute: float = 10.0
    delta: tuple[float, float] = (3 * MB, 80 * MB)
    call_s: tuple[float, float] = (0.5, 8.0)
    call_cpus: float = 0.6
    agent_cpus: float = 0.05


# Stand-ins with duration, level, peak, number and length of spikes of the recorded sessions they are named
# after; everything else about them comes from the distributions.
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("like-dask-11628", 98, 180 * MB, 321 * MB, 1, 11),
        Profile("like-github3py-673", 102, 185 * MB, 306 * MB, 4, 6),
        Profile("like-faker-1520", 123, 190 * MB, 273 * MB, 3, 4),
        Profile("like-dask-5510", 418, 217 * MB, 1367 * MB, 2, 8),
        Profile("like-pydicom-2065", 605, 181 * MB, 2041 * MB, 1, 12),
        Profile("like-starlette-1147", 54, 320 * MB, 385 * MB, 8, 0.8),
        Profile("cpu-heavy", 60, 180 * MB, 260 * MB, 4, 12, calls_per_minute=4, call_cpus=2.0),
    )
}


def describe(profile: Profile) -> str:
    """The distributions of a profile in one line."""
    return (
        f"{profile.name}: {profile.duration:g} s, agent {profile.base / MB:.0f} MB, {profile.spikes} calls "
        f"of {profile.spike_s:g} s to {profile.peak / MB:.0f} MB, {profile.calls_per_minute:g} calls/min, "
        f"the others log-normal (p50, p95) {profile.delta[0] / MB:g}, {profile.delta[1] / MB:g} MB and "
        f"{profile.call_s[0]:g}, {profile.call_s[1]:g} s, {profile.call_cpus:g} CPUs"
    )


def synthesize(profile: Profile, seed: int, interval: float = 0.5) -> Trace:
    """One trace of a profile; the same seed gives the same trace."""
    dice = random.Random(f"{profile.name} {seed}")  # noqa: S311 - repeatable, not secret
    timeline = _timeline(profile, dice)
    count = max(2, round(profile.duration / interval) + 1)
    samples = [_sample(profile, timeline, index * interval) for index in range(count)]
    calls = [ToolCall(start, end, f"call-{n}") for n, (start, end, _) in enumerate(timeline)]
    return Trace(f"{profile.name}-{seed}", tuple(samples), tuple(calls))


def _timeline(profile: Profile, dice: random.Random) -> list[tuple[float, float, float]]:
    """Calls one after the other as (start, end, delta in bytes); the spikes evenly among them."""
    room = profile.peak - profile.base * 1.1
    count = max(profile.spikes, round(profile.duration / 60 * profile.calls_per_minute))
    spiky = {round((n + 0.5) * count / profile.spikes - 0.5) for n in range(profile.spikes)}
    rows, now = [], 2.0
    think = 60 / profile.calls_per_minute / 2
    for index in range(count):
        now += dice.expovariate(1 / think)
        is_spike = index in spiky
        length = profile.spike_s if is_spike else max(0.02, log_normal(dice, *profile.call_s))
        delta = room if is_spike else min(room, log_normal(dice, *profile.delta))
        rows.append((now, now + length, delta))
        now += length
    # Squeezed or stretched to the profile's duration; lengths keep their proportion to the think times.
    factor = (profile.duration - 1) / now
    return [(start * factor, end * factor, delta) for start, end, delta in rows]


def log_normal(dice: random.Random, median: float, p95: float) -> float:
    """One value of the log-normal distribution with this median and 95th percentile."""
    return dice.lognormvariate(math.log(median), math.log(p95 / median) / _Z95)


def _sample(profile: Profile, timeline: list[tuple[float, float, float]], t: float) -> Sample:
    creep = 0.9 + 0.2 * t / profile.duration
    memory = profile.base * min(1.0, 0.1 + t) * creep
    cpus = profile.agent_cpus
    for start, end, delta in timeline:
        if start <= t <= end:
            memory += delta * min(1.0, 2 * (t - start) / (end - start))
            cpus = profile.call_cpus
    return Sample(t, memory, cpus)
