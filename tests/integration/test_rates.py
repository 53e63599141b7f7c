"""Network rates of containers, on real docker and podman: measured, kept, gone with the container."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, configure
from runtimes import LOG, run, wait_for
from watched import policy, raw_records

TREE = Path(__file__).parents[2]
LOAD = TREE / "tests/support/netload.py"
SAID = Path("/run/agentrun/net.json")
NET = Path("/sys/class/net")
POLICY = """
version: 1
tiers:
  slow: {network: {egress: 8Mbit, ingress: 8Mbit}}
  free: {}
sessions:
  - {match: {name: slow*}, tier: slow}
  - {tier: free}
"""
PORT = 5201
MBIT = 8.0


@pytest.fixture(scope="module", autouse=True)
def services(host) -> Iterator[None]:
    """agentrund and the keeper of rates, as systemd starts them, with a policy that has rates."""
    configure(TREE)
    with policy(Path("/etc/agentrun/policy.d/10-rates.yaml"), POLICY):
        run("systemctl", "daemon-reload")
        run("systemctl", "start", "agentrund", "agentrun-net")
        yield
        run("systemctl", "stop", "agentrund", "agentrun-net")
    LOG.unlink(missing_ok=True)  # it names the container with the host's network


@pytest.fixture(scope="module", params=[("docker", "runc"), ("podman", "crun")], ids="-".join)
def engine(request) -> Iterator[Engine]:
    """An engine with a container of each tier; the slow one may do to its network what it likes."""
    made = Engine(*request.param)
    made.create("slow", made.wrapped, "--cap-add", "NET_ADMIN", IMAGE, "sleep", "1000000")
    made.create("neighbour", made.wrapped, IMAGE, "sleep", "1000000")
    try:
        yield made
    finally:
        made.rm("slow")
        made.rm("neighbour")


def listed(name: str) -> dict[str, Any]:
    """What `agentrunctl net` says of a container."""
    found: dict[str, Any] = json.loads(run("agentrunctl", "net", name, "--json").stdout)[0]
    return found


def identity(engine: Engine, name: str) -> str:
    """The container's id."""
    return str(engine("inspect", "-f", "{{.Id}}", name).stdout.strip())


def said(container: str) -> dict[str, Any]:
    """What the keeper said last of a container (agentrunctl takes its time where emulated)."""
    sessions = json.loads(SAID.read_text())["sessions"] if SAID.exists() else {}
    return dict(next((entry for where, entry in sessions.items() if where.endswith(container)), {}))


def enforced(engine: Engine, name: str) -> tuple[str, str]:
    """Wait for a container's rates; gives the host's end of its veth, and the ifb of that."""
    container = identity(engine, name)
    wait_for(lambda: said(container).get("enforced"), f"the rates of {name}", 120)
    link = ("cat", "/sys/class/net/eth0/iflink")
    index = run("nsenter", "-t", str(engine.pid(name)), "-n", "-m", *link).stdout.strip()
    (host,) = [path.parent.name for path in NET.glob("*/ifindex") if path.read_text().strip() == index]
    return host, f"arifb{index}"


def gateway(engine: Engine, name: str) -> str:
    """The host's address as a container sees it."""
    networks = json.loads(engine("inspect", "-f", "{{json .NetworkSettings.Networks}}", name).stdout)
    return str(next(iter(networks.values()))["Gateway"])


def address(engine: Engine, name: str) -> str:
    """The container's address as the host sees it."""
    networks = json.loads(engine("inspect", "-f", "{{json .NetworkSettings.Networks}}", name).stdout)
    return str(next(iter(networks.values()))["IPAddress"])


def load(engine: Engine, name: str | None, *arguments: str) -> subprocess.Popen[str]:
    """One side of a connection: in a container's network namespace (an exec would take longer), or here."""
    inside = [] if name is None else ["nsenter", "-t", str(engine.pid(name)), "-n"]
    return subprocess.Popen([*inside, "python3", str(LOAD), *arguments], stdout=subprocess.PIPE, text=True)


def measured(engine: Engine, sink: str | None, source: str | None) -> float:
    """Mbit/s from `source` to `sink`: names of containers, or None for the host."""
    to = gateway(engine, str(source)) if sink is None else address(engine, sink)
    receiver = load(engine, sink, "sink", str(PORT), "4")
    sender = load(engine, source, "source", to, str(PORT))
    out, _ = receiver.communicate(timeout=120)
    sender.communicate(timeout=120)
    return float(out) / 1e6


def last_record(engine: Engine, name: str) -> dict[str, Any]:
    """The record of the last call of a container, once there is one."""
    container = identity(engine, name)

    def own() -> list[dict[str, Any]]:
        return [record for record in raw_records() if record["container"] == container]

    found: list[dict[str, Any]] = wait_for(own, f"a record of {name}")
    return found[-1]


def shapes(*names: str) -> list[str]:
    """The qdiscs of interfaces, as tc shows them."""
    return [run("tc", "qdisc", "show", "dev", name).stdout for name in names]


def keeps(engine: Engine, sink: str | None, source: str | None) -> float:
    """What of the rate a connection gets: never more; at the third try as much, where the machine is busy."""
    found = 0.0
    for _ in range(3):
        found = measured(engine, sink, source)
        assert found < MBIT * 1.15
        if found > MBIT * 0.85:
            return found
    raise AssertionError(f"{found} Mbit/s of {MBIT}")


def test_container_gets_its_tiers_rate_in_each_direction_and_its_neighbour_is_not_limited(engine):
    enforced(engine, "slow")
    rates = [keeps(engine, None, "slow"), keeps(engine, "slow", None)]
    free = [measured(engine, None, "neighbour"), measured(engine, "neighbour", None)]
    print(f"{engine.name}, Mbit/s out and in: {rates}; the neighbour: {free}")
    assert min(free) > 2 * MBIT, free
    (interface,) = listed("slow")["interfaces"]
    assert interface["name"] == "eth0" and interface["ingress"]["bytes"] > 1_000_000


def test_container_that_may_change_its_network_cannot_lift_its_rate(engine):
    names = enforced(engine, "slow")
    before = shapes(*names)
    inside = ("nsenter", "-t", str(engine.pid("slow")), "-n", "tc", "qdisc")
    run(*inside, "add", "dev", "eth0", "root", "pfifo", "limit", "10000")
    run(*inside, "add", "dev", "eth0", "clsact")
    run(*inside, "del", "dev", "eth0", "root")
    assert shapes(*names) == before
    keeps(engine, None, "slow")


def test_rate_outlives_a_restart_of_agentrund_and_of_the_keeper(engine):
    names = enforced(engine, "slow")
    before = shapes(*names)
    assert all("rate 8Mbit" in text for text in before)
    run("systemctl", "kill", "-s", "KILL", "agentrund", "agentrun-net")
    SAID.unlink()
    assert shapes(*names) == before
    run("systemctl", "restart", "agentrund", "agentrun-net")
    assert enforced(engine, "slow") == names and shapes(*names) == before


def test_call_of_a_container_that_cannot_have_its_rate_says_so(engine):
    engine.create("slow-host", engine.wrapped, "--network", "host", IMAGE, "sleep", "1000000")
    try:
        container = identity(engine, "slow-host")
        found = wait_for(lambda: said(container), "the keeper to look", 120)
        assert (found["enforced"], found["why"]) == (False, ["it uses the host's network"])
        for name, expected in (("slow-host", ["network.rate"]), ("slow", [])):
            engine("exec", name, "true")
            record = last_record(engine, name)
            assert record["tier"] == "slow" and record["not_enforced"] == expected
    finally:
        engine.rm("slow-host")


def test_nothing_stays_behind_when_the_container_is_removed(engine):
    engine.create("slow-gone", engine.wrapped, IMAGE, "sleep", "1000000")
    names = enforced(engine, "slow-gone")
    engine.rm("slow-gone")
    wait_for(lambda: not any((NET / name).exists() for name in names), "both to go", 120)
    assert (NET / enforced(engine, "slow")[1]).exists()


def test_doctor_and_the_listing_know_of_rates():
    findings = json.loads(run("agentrunctl", "doctor", "--json", check=False).stdout)
    assert [f["level"] for f in findings if f["what"] == "network rates"][:1] == ["ok"]
    assert "CONTAINER" in run("agentrunctl", "net").stdout
