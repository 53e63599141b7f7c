"""Rates on real interfaces and namespaces of a host that has its own; only the runtime is played."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node import wait_for

from agentrun.base.paths import Paths
from agentrun.base.procfs import start_ticks
from agentrun.net.netlink import is_installed

TREE = Path(__file__).parents[2]
LOAD = TREE / "tests/support/netload.py"
CTL = f"import sys; sys.path.insert(0, {str(TREE)!r}); from agentrun.cli.main import main; main()"
POLICY = """
version: 1
tiers:
  slow: {network: {egress: 4Mbit, ingress: 8Mbit}}
  sender: {network: {egress: 8Mbit}}
  free: {}
"""
PORT = 5201


class Lan:
    """A host's network namespace with containers that hang at a bridge, and a keeper that may run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = Paths(str(root))
        self.environment = {**os.environ, "AGENTRUN_ROOT": str(root)}
        self.processes: list[subprocess.Popen[Any]] = []
        self.keeper: subprocess.Popen[Any] | None = None
        for folder in ("etc/agentrun/policy.d", "var/log", "var/lib", "run", "runc"):
            (root / folder).mkdir(parents=True)
        self.host = self._sleep("unshare", "-n")
        self.run("ip", "link", "add", "br0", "type", "bridge")
        self.run("ip", "addr", "add", "10.9.0.1/24", "dev", "br0")
        self.run("ip", "link", "set", "br0", "up")
        self.set_policy(POLICY)

    def set_policy(self, text: str) -> None:
        """Put a policy in force."""
        (self.root / "etc/agentrun/policy.d/10-test.yaml").write_text(text)
        self.ctl("policy", "compile")

    def _sleep(self, *prefix: str) -> int:
        """A process of its own namespace; returns once it is in there."""
        process = subprocess.Popen([*prefix, "sleep", "1000"])
        self.processes.append(process)
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "unshare")
        return process.pid

    def inside(self, pid: int, *command: str) -> list[str]:
        """A command line in the network namespace of a process."""
        return ["nsenter", "-t", str(pid), "-n", *command]

    def run(self, *command: str, pid: int | None = None, check: bool = True) -> str:
        """Run a command on the host, or in the namespace of a container's init; returns its output."""
        done = subprocess.run(
            self.inside(pid or self.host, *command),
            capture_output=True, text=True, check=False, timeout=60, env=self.environment,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """agentrunctl on this host."""
        return self.run(sys.executable, "-c", CTL, *arguments, check=check)

    def container(self, name: str, tier: str, number: int, *, netns: int | None = None) -> int:
        """A running container at the bridge (or in the namespace of another); returns the pid of its init."""
        pid = self._sleep(*self.inside(netns or self.host), *([] if netns else ["unshare", "-n"]))
        if netns is None:
            self.connect(pid, number)
        state = {
            "cgroup_paths": {"": "/sys/fs/cgroup/nowhere"},
            "init_process_pid": pid,
            "init_process_start": start_ticks(pid),
            "config": {"labels": ["bundle=/nowhere", f"agentrun.dev/tier={tier}"]},
        }
        folder = self.root / "runc" / name
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps(state))
        escaped = str(self.root / "runc").strip("/").replace("/", "@")
        (self.root / "run/agentrun/sessions" / escaped / name).mkdir(parents=True, mode=0o700)
        return pid

    def connect(self, pid: int, number: int, name: str = "eth0") -> None:
        """Connect a container to the bridge, as 10.9.0.NUMBER."""
        host = f"veth{number}"
        self.run("ip", "link", "add", host, "type", "veth", "peer", "name", name, "netns", str(pid))
        self.run("ip", "link", "set", host, "master", "br0", "up")
        self.run("ip", "addr", "add", f"10.9.0.{number}/24", "dev", name, pid=pid)
        self.run("ip", "link", "set", name, "up", pid=pid)

    def keep(self) -> None:
        """Start the keeper."""
        arguments = self.inside(self.host, sys.executable, "-c", CTL, "net", "--keep")
        self.keeper = subprocess.Popen(arguments, env=self.environment)
        self.processes.append(self.keeper)
        wait_for((self.root / "run/agentrun/net.json").exists, "the keeper's first look", 30)

    def kill_keeper(self) -> None:
        """End the keeper as a crash does."""
        assert self.keeper
        self.keeper.kill()
        self.keeper.wait()
        (self.root / "run/agentrun/net.json").unlink()

    def seen(self, name: str) -> dict[str, Any]:
        """What the listing says of a container."""
        found = {row["container"]: row for row in json.loads(self.ctl("net", "--json"))}
        return found.get(name, {"enforced": None, "interfaces": []})

    def said(self, name: str) -> dict[str, Any]:
        """What the keeper said last of a container."""
        path = self.root / "run/agentrun/net.json"
        sessions = json.loads(path.read_text())["sessions"] if path.exists() else {}
        return dict(next((entry for where, entry in sessions.items() if where.endswith(f"/{name}")), {}))

    def qdiscs(self, *options: str) -> str:
        """The host's qdiscs, as tc shows them."""
        return self.run("tc", "qdisc", "show", *options)

    def rate(self, sink: int, source: int, address: str) -> float:
        """Mbit/s that a TCP connection gets, from `source` to `sink` (pids of inits, or of the host)."""
        to, by = self.inside(sink, sys.executable, str(LOAD)), self.inside(source, sys.executable, str(LOAD))
        receiver = subprocess.Popen([*to, "sink", str(PORT), "2"], stdout=subprocess.PIPE, text=True)
        sender = subprocess.Popen([*by, "source", address, str(PORT)])
        out, _ = receiver.communicate(timeout=60)
        sender.wait(timeout=60)
        return float(out) / 1e6

    def keeps(self, mbit: float, sink: int, source: int, address: str) -> bool:
        """Whether a connection gets a rate: never more, and as much unless the machine is busy elsewhere."""
        for _ in range(4):
            got = self.rate(sink, source, address)
            assert got < mbit * 1.15
            if got > mbit * 0.85:
                return True
        return False

    def close(self) -> None:
        """End all."""
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self) -> str:
        """Our log."""
        path = Path(self.paths.log)
        return path.read_text() if path.exists() else ""


@pytest.fixture
def lan(tmp_path) -> Iterator[Lan]:
    """A host without a container yet."""
    tools = all(map(shutil.which, ("ip", "tc", "nsenter", "unshare")))
    if os.geteuid() != 0 or not tools or not is_installed():
        reason = "needs root, iproute2, util-linux and pyroute2"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    made = Lan(tmp_path)
    try:
        yield made
    finally:
        made.close()


def enforced(lan: Lan, name: str) -> dict[str, Any]:
    """Wait until a container's rates are in force."""

    wait_for(lambda: lan.said(name).get("enforced"), f"rates of {name}", 20)
    return lan.seen(name)


def test_rates_hold_in_each_direction_and_only_where_they_are_wanted(lan):
    lan.keep()
    slow, free = lan.container("slow-1", "slow", 2), lan.container("free-1", "free", 3)
    enforced(lan, "slow-1")
    assert lan.keeps(4, lan.host, slow, "10.9.0.1") and lan.keeps(8, slow, lan.host, "10.9.0.2")
    assert lan.rate(free, lan.host, "10.9.0.3") > 16 and lan.rate(lan.host, free, "10.9.0.1") > 16
    (interface,) = lan.seen("slow-1")["interfaces"]
    assert interface["name"] == "eth0" and interface["host"]["name"] == "veth2"
    assert interface["rates"] == {"egress": 4_000_000, "ingress": 8_000_000}
    assert interface["egress"]["bytes"] > 400_000 and interface["ingress"]["packets"] > 100
    assert lan.seen("free-1")["why"] == [] and not lan.seen("free-1")["enforced"]
    assert "eth0" in lan.ctl("net", "slow-1") and lan.log() == ""
    assert "agentrun-net runs" in lan.ctl("net", "--apply", check=False)


def test_container_with_every_capability_cannot_take_its_rate_away(lan):
    lan.keep()
    slow = lan.container("slow-1", "slow", 2)
    enforced(lan, "slow-1")
    before = lan.qdiscs()
    for command in (
        "tc qdisc del dev eth0 root",
        "tc qdisc add dev eth0 root pfifo limit 10000",
        "tc qdisc add dev eth0 clsact",
        "ip link set eth0 txqueuelen 10000",
    ):
        lan.run(*command.split(), pid=slow, check=False)
    assert lan.qdiscs() == before
    assert lan.rate(lan.host, slow, "10.9.0.1") < 4.6
    # In a namespace inside its own its interface is out of our sight, and keeps what it has.
    inner = lan._sleep(*lan.inside(slow), "unshare", "-n")
    lan.run("ip", "link", "set", "eth0", "netns", str(inner), pid=slow)
    lan.run("ip", "link", "add", "dummy9", "type", "bridge")  # so that the keeper looks
    wait_for(lambda: lan.seen("slow-1")["interfaces"] == [], "the keeper to look")
    assert lan.qdiscs() == before


def test_rates_outlive_the_keeper_and_follow_the_policy(lan):
    lan.keep()
    lan.container("slow-1", "slow", 2)
    enforced(lan, "slow-1")
    before = lan.qdiscs("dev", "veth2")
    lan.kill_keeper()
    assert lan.qdiscs("dev", "veth2") == before
    lan.keep()
    assert lan.qdiscs("dev", "veth2") == before and lan.seen("slow-1")["enforced"]
    lan.set_policy("version: 1\ntiers: {slow: {network: {egress: 5Mbit, ingress: 10Mbit}}}\n")
    wait_for(lambda: "rate 10Mbit" in lan.qdiscs("dev", "veth2"), "the new rate")
    assert lan.seen("slow-1")["interfaces"][0]["rates"] == {"egress": 5_000_000, "ingress": 10_000_000}
    lan.set_policy("version: 1\ntiers: {slow: {}}\n")
    wait_for(lambda: "tbf" not in lan.qdiscs() and "arifb" not in lan.run("ip", "link"), "none any more")
    assert "mirred" not in lan.run("tc", "filter", "show", "dev", "veth2", "ingress")


def test_interface_that_comes_later_gets_the_rate_and_one_that_goes_leaves_nothing(lan):
    lan.keep()
    pid = lan.container("sender-1", "sender", 2)
    enforced(lan, "sender-1")
    lan.connect(pid, 7, "eth1")
    wait_for(lambda: lan.run("ip", "link").count(": arifb") == 2, "a rate for the second interface")
    assert [i["name"] for i in enforced(lan, "sender-1")["interfaces"]] == ["eth0", "eth1"]
    lan.run("ip", "link", "del", "veth7")
    wait_for(lambda: lan.run("ip", "link").count(": arifb") == 1, "the ifb to go")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "arifb" not in lan.run("ip", "link"), "the other ifb to go")


def test_what_others_put_there_stays_and_is_named(lan):
    pid = lan.container("slow-1", "slow", 2)
    lan.container("sender-1", "sender", 3)
    lan.run("tc", "qdisc", "add", "dev", "veth2", "root", "handle", "1:", "pfifo", "limit", "7")
    lan.run("tc", "qdisc", "add", "dev", "veth3", "clsact")
    theirs = "tc filter add dev veth3 ingress pref 5 protocol ip u32 match u32 0 0 flowid 1:"
    lan.run(*theirs.split())
    lan.keep()
    assert lan.seen("slow-1")["why"] == ["veth2 has a qdisc of somebody else (pfifo)"]
    assert lan.seen("sender-1")["why"] == ["veth3 has filters of somebody else at its ingress (u32)"]
    assert "limit 7" in lan.qdiscs("dev", "veth2") and lan.run("ip", "link").count(": arifb") == 1
    assert lan.rate(lan.host, pid, "10.9.0.1") < 4.6  # the other direction has its rate all the same
    assert lan.log().count("network rates not enforced") == 2
    assert lan.said("slow-1")["enforced"] is lan.said("sender-1")["enforced"] is False


def test_namespaces_that_cannot_have_a_rate_are_named(lan):
    lan.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    lan.run("ip", "link", "set", "up0", "up")
    lone, mixed = lan.container("lone", "slow", 2), lan.container("mixed", "slow", 3)
    lan.container("shared", "sender", 0, netns=mixed)
    lan.container("host", "slow", 0, netns=lan.host)
    lan.run("ip", "link", "del", "veth2")
    lan.keep()
    assert enforced(lan, "lone")["interfaces"] == []  # loopback only
    for pid in (lone, mixed):
        lan.run("ip", "link", "add", "link", "up0", "name", "mv0", "type", "macvlan")
        lan.run("ip", "link", "set", "mv0", "netns", str(pid))
    assert lan.seen("lone")["why"][0].startswith("mv0 has no end on this host")
    assert lan.seen("mixed")["why"] == ["mv0 has no end on this host (macvlan)"]
    assert lan.seen("host")["why"] == ["it uses the host's network"]
    assert lan.seen("shared")["shared_with"] == ["mixed"]
    # Of two containers in one namespace the stricter one counts.
    assert lan.seen("mixed")["interfaces"][0]["rates"] == {"egress": 4_000_000, "ingress": 8_000_000}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\x1b[2Jb", b"[red]"])
def test_names_that_a_container_chose_change_nothing(lan, name):
    pid = lan.container("slow-1", "slow", 2)
    for number in range(40):  # more than are looked at
        lan.run("ip", "link", "add", f"b{number}", "type", "bridge", pid=pid)
    lan.run("ip", "link", "set", "eth0", "down", pid=pid)
    lan.run("ip", "link", "set", "eth0", "name", os.fsdecode(name), pid=pid)
    lan.keep()
    row = lan.seen("slow-1")
    assert row["enforced"] and row["interfaces"][0]["rates"] == {"egress": 4_000_000, "ingress": 8_000_000}
    assert 1 < len(row["interfaces"]) <= 33
    shown = lan.ctl("net")
    assert "\x1b" not in shown and "4Mbit" in shown and lan.log() == ""


def test_without_pyroute2_it_says_so_and_nothing_else_happens(lan):
    lan.container("slow-1", "slow", 2)
    hidden = lan.root / "hidden/pyroute2"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')\n")
    before = os.environ.get("PYTHONPATH", "")
    lan.environment["PYTHONPATH"] = f"{hidden.parent}:{before}"
    assert "pyroute2 is not installed" in lan.ctl("net", check=False)
    lan.keep()
    assert lan.keeper and lan.keeper.poll() is None
    assert (
        "pyroute2 is not installed" in json.loads((lan.root / "run/agentrun/net.json").read_text())["problem"]
    )
    assert lan.log().count("pyroute2 is not installed") == 1 and "tbf" not in lan.qdiscs()
