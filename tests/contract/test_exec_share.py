"""Containers of a low tier and their calls are started with its share of the CPUs, before Python starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

POLICY = "version: 1\ntiers: {low: {cpu: {weight: 25}}}\nsessions: [{tier: low}]\n"


@pytest.fixture
def share(box) -> Iterator[Path]:
    """A cgroup that starts of calls in `box` are to have their share in."""
    made = box.cgroup.parent / f"{box.cgroup.name}-share"
    made.mkdir()
    yield made
    made.rmdir()


def start_in(box, share: object, cpus: int = 0) -> None:
    """What `start` notes where the host's cgroups have a cpu controller; with 0 CPUs they are short."""
    box.run("--root", box.state, "exec", "box", "true")
    session = next(box.root.glob("run/agentrun/sessions/*/box"))
    (session / "start-share").write_text(f"{share} {cpus}\n")


def note_tier(box, share: object, cpus: int = 0) -> None:
    """What the `start` of a container of tier `low` notes for the next one."""
    (box.root / "run/agentrun/start-shares").mkdir(parents=True)
    (box.root / "run/agentrun/start-shares/low").write_text(f"{share} {cpus}\n")


def annotate(box, *labels: str) -> None:
    """Have runc's state of the container name these annotations."""
    path = box.state / "box/state.json"
    state = json.loads(path.read_text())
    state["config"]["labels"] = ["bundle=/nowhere", *labels]
    path.write_text(json.dumps(state, separators=(",", ":")))


def place_of(box, *argv: str) -> str:
    """The cgroup in which the backend came to be, below the mount."""
    done = box.run("--root", box.state, *argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (line,) = box.recording().all("cgroup")
    return line.removeprefix("0::/")


def test_exec_is_started_in_the_share_of_its_container(box, share):
    own = place_of(box, "exec", "box", "true")
    start_in(box, share)
    assert own != share.name
    assert place_of(box, "exec", "--cwd", "/", "-u", "", "-e", "A=b", "box", "true", "exec") == share.name
    assert box.recording().all("argv")[-3:] == ["box", "true", "exec"]
    assert [place_of(box, verb, "box") for verb in ("state", "kill", "delete")] == [own] * 3


def test_exec_stays_where_it_is_while_there_are_cpus_for_all(box, share):
    own = place_of(box, "exec", "box", "true")
    start_in(box, share, cpus=100_000)
    avg10 = float(Path("/proc/pressure/cpu").read_text().split()[1].partition("=")[2])
    assert place_of(box, "exec", "box", "true") == (share.name if avg10 >= 1 else own)


@pytest.mark.parametrize("text", ["", "/nowhere 0\n", "/sys/fs/cgroup\n", "no number\n"])
def test_share_that_cannot_be_had_stands_in_nobodys_way(box, share, text):
    own = place_of(box, "exec", "box", "true")
    start_in(box, share)
    next(box.root.glob("run/agentrun/sessions/*/box/start-share")).write_text(text)
    assert place_of(box, "exec", "box", "true") == own


def test_share_is_there_only_where_there_is_a_cpu_controller(box):
    folder = box.root / "etc/agentrun/policy.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-test.yaml").write_text(POLICY)
    try:
        box.run("--root", box.state, "start", "box")
        noted = [path.read_text() for path in box.root.glob("run/agentrun/sessions/*/box/start-share")]
        share = box.cgroup.parent / "agentrun-starts-25"
        has_controller = (box.cgroup / "cpu.weight").exists()
        assert [line.split()[0] for line in noted] == [str(share)] * has_controller
        assert share.exists() == has_controller
        assert not [line for line in box.log() if "share" in line["msg"]]
    finally:
        (folder / "10-test.yaml").unlink()


def test_start_goes_to_the_share_of_the_tier_that_the_annotations_say(box, share):
    own = place_of(box, "start", "box")
    note_tier(box, share)
    assert place_of(box, "start", "box") == own
    annotate(box, "agentrun.dev/tier=low")
    assert place_of(box, "start", "box") == share.name
    assert [place_of(box, verb, "box") for verb in ("state", "kill", "delete")] == [own] * 3


def test_start_knows_the_tier_from_the_copy_that_crun_keeps(box, share):
    own = place_of(box, "start", "box")
    note_tier(box, share)
    copy = box.state / "box/config.json"
    try:
        for given, place in [({"agentrun.dev/tier": "low"}, share.name), ({"a": "low"}, own)]:
            copy.write_text(json.dumps({"annotations": given}, indent=2))
            assert place_of(box, "start", "box") == place
    finally:
        copy.unlink()


@pytest.mark.parametrize(
    "labels", [["agentrun.dev/tier=lower"], ["agentrunXdev/tier=low"], ["A=agentrun.dev/tier=low"]]
)
def test_start_of_another_tier_stays_where_it_is(box, share, labels):
    own = place_of(box, "start", "box")
    note_tier(box, share)
    annotate(box, *labels)
    assert place_of(box, "start", "box") == own


@pytest.mark.parametrize("text", ["", "/nowhere 0\n", "no number\n"])
def test_start_whose_share_cannot_be_had_goes_on(box, share, text):
    own = place_of(box, "start", "box")
    note_tier(box, share)
    annotate(box, "agentrun.dev/tier=low")
    (box.root / "run/agentrun/start-shares/low").write_text(text)
    assert place_of(box, "start", "box") == own


def test_tier_that_is_low_no_longer_is_forgotten_by_the_next_start(box, share):
    folder = box.root / "etc/agentrun/policy.d"
    folder.mkdir(parents=True, exist_ok=True)
    note_tier(box, share)
    (folder / "10-test.yaml").write_text(POLICY.replace("25", "100"))
    try:
        box.run("--root", box.state, "start", "box")
        assert not list((box.root / "run/agentrun/start-shares").iterdir())
        assert not [line for line in box.log() if "share" in line["msg"]]
    finally:
        (folder / "10-test.yaml").unlink()
