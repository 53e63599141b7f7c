"""Recorded runs of the real thing, and variants of them: decided as they were, and stable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from memory_world import LIMIT
from snapshots import RECORDINGS, is_frozen, play, read_snapshot, recorded, variants

from agentrun.daemon.controller import rules
from agentrun.daemon.controller.decisions import STARVE_S, effective
from agentrun.daemon.controller.model import Snapshot


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_run_is_decided_as_it_was(path):
    """A run of the real thing: LOW waits before the limit is near, never HIGH, and all go on at the end."""
    waited, least = set(), LIMIT
    for snapshot, _, decision in play([read_snapshot(line) for line in path.read_text().splitlines()]):
        frozen = {key.split("/")[-3] for key in decision.memory.held if is_frozen(decision.memory, key)}
        assert "high" not in frozen and not [a for a in decision.actions if a.what == "kill"]
        alive = {call.key.split("/")[-3] for call in snapshot.calls}
        least = min([least, *(domain.headroom for domain in snapshot.domains if domain.key != "host")])
        if "high" not in alive and len(alive) == 1:
            assert frozen == set()
        waited |= frozen
    assert waited == {"low1", "low2"} and least > 0


CHANGES_S = 0.6  # as docs/memory.md says: a call is frozen at most once in so long


def assert_stable(story: list[Snapshot]) -> None:
    """The promises of `decisions` about changes, starving and limits, for a whole story."""
    changes: dict[str, list[float]] = {}
    for snapshot, before, decision in play(story):
        now, frozen = (
            snapshot.now,
            {k: h.frozen_at for k, h in before.held.items() if h.frozen_at is not None},
        )
        has_starved = any(now - at >= STARVE_S for at in frozen.values())
        for action in decision.actions:
            if action.what in ("freeze", "thaw") and not has_starved:
                changes.setdefault(action.key, []).append(now)
        for call in snapshot.calls:
            held = decision.memory.held[call.key]
            assert held.frozen_at is None or now - held.frozen_at < STARVE_S
            value = effective(call, held)
            assert call.soft is None or call.adaptive or (value is not None and value <= call.soft)
    for times in changes.values():
        for first, third in zip(times, times[2:], strict=False):  # there and back again
            assert third - first >= CHANGES_S - 1e-9


def test_recorded_runs_are_stable():
    assert recorded()
    assert_stable(recorded())


@settings(max_examples=20, deadline=None)
@given(variants())
def test_variants_of_recorded_runs_are_stable(story):
    assert_stable(story)


@settings(max_examples=20, deadline=None)
@given(variants())
def test_first_of_a_recorded_run_goes_on_in_any_variant(story):
    for snapshot, _, decision in play(story):
        if not snapshot.calls:
            continue
        first = min(snapshot.calls, key=lambda call: call.precedence)
        stopped = {action.key for action in decision.actions if action.what in ("freeze", "kill")}
        assert first.key not in stopped
        # One that was frozen when another came before him goes on at once.
        frozen_at = decision.memory.held[first.key].frozen_at
        assert frozen_at is None or snapshot.now - frozen_at < rules.MIN_FROZEN_S
