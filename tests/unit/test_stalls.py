"""When a call counts as stalled."""

from __future__ import annotations

from agentrun.stalls import Window


def shares(seconds: float, samples: list[tuple[float, int]]) -> list[float | None]:
    """What a window says after each sample of (seconds, seconds waited in all)."""
    window = Window(seconds)
    return [window.add(at, int(full * 1e6)) for at, full in samples]


def test_nothing_is_said_before_a_window_has_passed():
    assert shares(30, [(0, 0), (10, 10), (29, 29)]) == [None, None, None]


def test_only_the_last_window_counts():
    found = shares(10, [(0, 0), (5, 5), (10, 10), (15, 10), (20, 10), (25, 15)])
    assert found == [None, None, 100.0, 50.0, 0.0, 50.0]


def test_late_sample_is_judged_by_the_time_that_really_passed():
    assert shares(10, [(0, 0), (100, 10)]) == [None, 10.0]


def test_share_is_never_more_than_all():
    assert shares(10, [(0, 0), (10, 11)])[-1] == 100.0


def test_window_keeps_few_samples():
    window = Window(10)
    for at in range(1000):
        window.add(at, 0)
    assert len(window.samples) <= 12
