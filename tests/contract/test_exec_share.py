"""Calls of a low tier are started with that tier's share of the CPUs, before Python starts."""

from __future__ import annotations

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
