"""Network profiles with real engines and agentrund: what an agent sees, and what the record says."""

from __future__ import annotations

import json

import pytest
from runtimes import run, wait_for
from test_bpf import loaded as loaded
from watched import call, start
from watched import daemon as daemon
from watched import engine as engine

pytestmark = pytest.mark.needs("bpf")


def test_agentrund_puts_the_network_of_a_call_into_its_record(engine):
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))"
    done, kept = call(engine, "python3", "-c", code, intent="net=none")
    assert done.returncode == 1 and "PermissionError" in done.stderr
    assert kept["network"] == {"profile": "none", "denied": 1, "tx_bytes": 0, "rx_bytes": 0}
    assert [note["event"] for note in kept["feedback"]] == ["denied"]
    if engine.name == "docker":  # conmon is gone with the command
        assert "[agentrun] The network denied this call one attempt" in done.stderr
    done, free = call(engine, "python3", "-c", f"{code}; s.send(b'x' * 100)")
    assert done.returncode == 0, done.stderr
    assert free["network"] == {"profile": "default", "denied": 0, "tx_bytes": 128, "rx_bytes": 0}


def test_counters_are_those_of_the_programs_that_are_loaded_now(engine):
    code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))"
    denied = {"profile": "none", "denied": 1, "tx_bytes": 0, "rx_bytes": 0}
    assert call(engine, "python3", "-c", code, intent="net=none")[1]["network"] == denied
    for verb in ("unload", "load"):  # the same version again, with maps of its own
        assert run("agentrunctl", "bpf", verb, "net").returncode == 0
    assert call(engine, "python3", "-c", code, intent="net=none")[1]["network"] == denied


def test_listing_of_networks_has_what_calls_that_run_have_sent(engine):
    code = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.connect(('127.0.0.1', 9)); s.send(b'x' * 100); time.sleep(100)"
    )
    process = start(engine, "python3", "-c", code)
    try:

        def sent() -> list[int]:
            (box,) = json.loads(run("agentrunctl", "net", "box", "--json").stdout)
            return [one["tx_bytes"] for one in box["calls"] if one["tx_bytes"]]

        assert wait_for(sent, "the call's bytes") == [128]
    finally:
        run("agentrunctl", "kill", "--all-calls")
        process.wait(timeout=60)
