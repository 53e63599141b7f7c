"""What the controller does to the weights of short calls, and that it undoes it; `test_boosts.py` judges."""

from __future__ import annotations

import json
import time
from pathlib import Path

from controllerhost import LOW, Host

from agentrun.calls import release


def boost(host: Host) -> tuple[Path, Path]:
    """A call that is new beside a build, while CPUs are short."""
    build = host.call("box", LOW)
    host.write(build.parent, {"cpu.pressure": "some avg10=40.00 avg60=9.00 avg300=1.00 total=12345"})
    host.loop.run(1)
    quick = host.call("box", LOW, call_id="quick", start=time.time())
    host.loop.run(0.05)
    return build, quick


def weight_of(call: Path) -> int:
    return int((call / "cpu.weight").read_text())


def burn(call: Path, seconds: float) -> None:
    (call / "cpu.stat").write_text(f"usage_usec {int(seconds * 1e6)}\nuser_usec 1\n")


def notes_of(host: Host, slot: str) -> list[tuple[str, int]]:
    path = next(Path(host.paths.run).glob(f"sessions/*/box/{slot}"))
    return [(e["what"], e["weight"]) for e in json.loads(path.read_text()).get("adapted", [])]


def test_new_call_beside_a_build_is_boosted_until_its_budget_is_burned(host):
    build, quick = boost(host)
    assert (weight_of(build), weight_of(quick)) == (100, 400)
    assert release.is_marked(host.paths)
    burn(quick, 0.9)
    host.loop.run(1)
    assert weight_of(quick) == 400
    burn(quick, 1.1)
    host.loop.run(0.3)
    assert weight_of(quick) == 100
    assert notes_of(host, "call-1") == [("boost", 400), ("unboost", 100)]
    assert notes_of(host, "call-0") == []


def test_boost_ends_with_its_time_and_nobody_looks_any_more(host, monkeypatch):
    _, quick = boost(host)
    later = time.time() + 11
    monkeypatch.setattr(host.controller._booster, "_wall", lambda: later)
    host.loop.run(0.3)
    assert weight_of(quick) == 100
    host.loop.run(1)
    assert len(host.loop.planned) == 1  # the peek at memory


def test_boost_of_a_call_that_has_ended_needs_no_end(host):
    """Its record may wait for its exit status."""
    _, quick = boost(host)
    burn(quick, 5)
    host.set(quick, 0, populated=0)
    host.loop.run(1)
    assert notes_of(host, "call-1") == [("boost", 400)]


def test_what_somebody_else_made_of_the_weight_stays(host):
    _, quick = boost(host)
    (quick / "cpu.weight").write_text("1\n")  # its first process ended, and the rest was demoted
    burn(quick, 5)
    host.loop.run(0.5)
    assert weight_of(quick) == 1 and notes_of(host, "call-1") == [("boost", 400)]


def test_boost_needs_that_calls_wait_for_cpus_now(host):
    build = host.call("box", LOW)
    quiet = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}"
    host.write(build.parent, {"cpu.pressure": quiet.format(0)})
    host.loop.run(1)
    quick = host.call("box", LOW, start=time.time())
    host.loop.run(0.5)
    assert weight_of(quick) == 100
    # The kernel's average is seconds behind; what is counted is not.
    host.write(build.parent, {"cpu.pressure": quiet.format(200_000)})
    host.loop.run(0.3)
    assert weight_of(quick) == 400


def test_boost_is_not_for_classes_that_do_not_want_it_nor_without_a_cpu_controller(host):
    build, _ = boost(host)
    unwilling = host.call("box", LOW, start=time.time(), care={"boost": False})
    without = host.call("box", LOW, start=time.time())
    (without / "cpu.weight").unlink()
    host.loop.run(0.5)
    assert weight_of(unwilling) == weight_of(build) == 100
    assert not (without / "cpu.weight").exists() and not Path(host.paths.log).exists()


def test_boosts_end_when_agentrund_stops_and_are_undone_after_a_crash(host):
    build, quick = boost(host)
    demoted = host.call("box", LOW, background={"action": "demote"})
    (demoted / "cpu.weight").write_text("1\n")
    planned = host.call("box", LOW, limits={"cpu_weight": 150})
    (planned / "cpu.weight").write_text("600\n")
    release.release_all(host.paths)  # what ExecStopPost and the next exec do
    assert [weight_of(call) for call in (build, quick, demoted, planned)] == [100, 100, 1, 150]
    (quick / "cpu.weight").write_text("400\n")
    host.controller.close()
    assert weight_of(quick) == 100
    host.loop.run(1)
    assert weight_of(quick) == 100


def test_next_call_in_a_boosted_slot_begins_anew(host):
    _, quick = boost(host)
    burn(quick, 2)
    host.loop.run(0.3)
    host.over(quick)
    host.loop.run(3)  # what the last look said of the wait for CPUs is old
    again = host.call("box", LOW, call_id="again", start=time.time())
    host.loop.run(0.05)
    assert again == quick and weight_of(again) == 400
