"""A store that is full, read-only or damaged: execs are unaffected, no record is lost, doctor shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtimes import LOG, RECORDS, Bundle, run, started, wait_for

STATE = RECORDS.parent
STORE = STATE / "calls.db"
SPILL = Path("/run/agentrun/calls.jsonl")


@pytest.fixture
def box(host, tmp_path) -> Iterator[Bundle]:
    """A container, agentrund, and a small file system for its records."""
    SPILL.unlink(missing_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", STATE)
    try:
        run("agentrun", "--version")
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", "agentrund")
        with started(Bundle(tmp_path, "agentrun-crun", "store-box")) as bundle:
            yield bundle
    finally:
        run("systemctl", "stop", "agentrund")
        run("umount", STATE)
        SPILL.unlink(missing_ok=True)
        LOG.unlink(missing_ok=True)


def call(box: Bundle, code: int) -> None:
    """Run a call, which must work as if nothing was wrong."""
    done = box.exec("sh", "-c", f"echo out; echo err >&2; exit {code}", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")


def ended() -> int:
    """How many calls are known to have ended."""
    rows = [json.loads(line) for line in run("agentrunctl", "calls", "--json").stdout.splitlines()]
    return len({row["id"] for row in rows if row["end"] is not None})


def problems() -> list[str]:
    """What doctor calls a problem."""
    found = json.loads(run("agentrunctl", "doctor", "--json", check=False).stdout)
    return [f"{f['what']}: {f['text']}" for f in found if f["level"] == "problem"]


def in_store() -> str:
    """How many records are in the store."""
    script = f"import sqlite3; print(*sqlite3.connect({str(STORE)!r}).execute('SELECT count(*) FROM calls'))"
    return str(run("python3", "-c", script, check=False).stdout).strip("(,)\n")


def test_full_store_costs_no_exec_and_no_record(box):
    call(box, 1)
    wait_for(lambda: in_store() == "1", "the first record in the store")
    run("dd", "if=/dev/zero", f"of={STATE}/fill", "bs=64k", check=False)
    for code in (2, 3):
        call(box, code)
    wait_for(lambda: ended() == 3, "the records from the journal")
    assert any("MiB left" in text or "cannot be written" in text for text in problems())
    (STATE / "fill").unlink()
    call(box, 4)
    wait_for(lambda: in_store() == "4", "all records in the store")
    assert ended() == 4


def test_read_only_store_costs_no_exec_and_no_record(box):
    call(box, 1)
    wait_for(lambda: in_store() == "1", "the first record in the store")
    run("mount", "-o", "remount,ro", STATE)
    call(box, 2)
    wait_for(lambda: ended() == 2, "the records from the store and from memory")
    assert "store" in run("agentrunctl", "calls").stderr
    assert any(f"directory {STATE}: cannot be written" in text for text in problems())
    run("mount", "-o", "remount,rw", STATE)
    call(box, 3)
    wait_for(lambda: in_store() == "3", "all records in the store")


def test_damaged_store_is_made_anew_from_the_journal(box):
    call(box, 1)
    wait_for(lambda: in_store() == "1", "the first record in the store")
    run("systemctl", "stop", "agentrund")
    for name in STATE.glob("calls.db-*"):
        name.unlink()
    STORE.write_bytes(b"no database " * 1000)
    assert any("records: use store" in text for text in problems())
    run("systemctl", "start", "agentrund")
    call(box, 2)
    wait_for(lambda: in_store() == "2", "all records in a new store")
    assert ended() == 2 and (STATE / "calls.db.damaged").exists()
    assert "damaged store set aside" in LOG.read_text()
