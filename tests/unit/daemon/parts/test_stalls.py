"""When a call counts as stalled."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.daemon.controller.snapshot import Files
from agentrun.daemon.parts.stalls import Signs, Window, until_look


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


@pytest.fixture
def signs(tmp_path: Path):
    made = Signs(Files(str(tmp_path)))
    wait(tmp_path)
    yield made
    made.files.close()


def wait(cgroup: Path, memory_s: float = 0, cpu_s: float = 0) -> None:
    """How long a call waited so far; the last second of it all at once."""
    some, full = int(memory_s * 1e6), int(max(0, memory_s - 1) * 1e6)
    psi = "{} avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
    (cgroup / "memory.pressure").write_text(psi.format("some", some) + psi.format("full", full))
    (cgroup / "cpu.stat").write_text(f"usage_usec 5\nnr_throttled 9\nthrottled_usec {int(cpu_s * 1e6)}\n")


def is_news(signs: Signs, denied: int = 0) -> bool:
    signs.look()
    return signs.is_news(denied)


@pytest.mark.parametrize("waited", [{"memory_s": 1.5}, {"cpu_s": 1.5}])
def test_wait_is_news_once_it_is_long_enough_and_each_time_it_grows(tmp_path, signs, waited):
    assert not is_news(signs)
    wait(tmp_path, **dict.fromkeys(waited, 0.9))
    assert not is_news(signs)
    wait(tmp_path, **waited)
    assert is_news(signs) and not is_news(signs)
    wait(tmp_path, **{name: seconds + 0.1 for name, seconds in waited.items()})
    assert is_news(signs)


def test_every_attempt_that_the_network_denied_is_news(signs):
    assert [is_news(signs, denied) for denied in (0, 1, 1, 2)] == [False, True, False, True]


def test_signs_say_how_long_all_waited(tmp_path, signs):
    wait(tmp_path, memory_s=3.5)
    signs.look()
    assert signs.waited_us == {"some": 3_500_000, "full": 2_500_000}


def test_kernel_that_tells_nothing_gives_no_signs(tmp_path, signs):
    for file in tmp_path.iterdir():
        file.unlink()
    assert not is_news(signs) and signs.waited_us == {}


@given(st.floats(0.3, 10), st.floats(0, 1e7))
def test_looks_fall_together_and_none_comes_late(every, now):
    wait_s = until_look(every, now)
    assert every - 0.25 - 1e-3 <= wait_s <= every + 1e-3 and wait_s > 0
    assert abs((now + wait_s) * 4 - round((now + wait_s) * 4)) < 1e-3
