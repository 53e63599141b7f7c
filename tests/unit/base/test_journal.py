"""The journal: no line is lost to a rename, a torn line or a full disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import stat
from pathlib import Path

import pytest
from crash import die_at_line, in_child

from agentrun.base import journal
from agentrun.base.paths import Paths
from agentrun.calls import record

BIG = 1 << 30


def test_line_is_appended_to_a_file_of_root_alone(tmp_path):
    path = tmp_path / "j"
    for word in ("one", "two"):
        journal.append(str(path), word, BIG)
    assert path.read_text() == "one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_large_file_is_renamed_before_the_next_line(tmp_path):
    path = tmp_path / "j"
    for word in ("one", "two", "three"):
        journal.append(str(path), word, 6)
    assert (path.read_text(), Path(f"{path}.1").read_text()) == ("three\n", "one\ntwo\n")


def test_line_that_was_cut_off_does_not_take_the_next_one_with_it(tmp_path):
    path = tmp_path / "j"
    path.write_text('{"id":"a"}\n{"id":')
    journal.append(str(path), '{"id":"b"}', BIG)
    assert path.read_text() == '{"id":"a"}\n{"id":\n{"id":"b"}\n'


def test_full_disk_is_an_error_and_the_next_line_is_whole(tmp_path):
    """RLIMIT_FSIZE cuts a write off where a full disk does."""
    path = tmp_path / "j"
    path.write_text("x" * 99 + "\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (110, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            journal.append(str(path), "y" * 50, BIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.ENOSPC
    journal.append(str(path), "z", BIG)
    assert path.read_text().splitlines()[1:] == ["y" * 10, "z"]


@pytest.mark.parametrize("plant", ["link", "fifo", "directory"])
def test_what_is_no_file_is_refused(tmp_path, plant):
    path = tmp_path / "j"
    if plant == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif plant == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError):
        journal.append(str(path), "x", BIG)
    assert not (tmp_path / "elsewhere").exists()


def test_file_that_is_being_written_is_not_renamed(tmp_path):
    path = tmp_path / "j"
    path.write_text("x\n")
    with path.open() as writer:
        fcntl.flock(writer, fcntl.LOCK_SH)
        assert not journal.rotate(str(path), 0)
        journal.append(str(path), "y", BIG)  # others are not kept from writing
    assert journal.rotate(str(path), 0)
    assert Path(f"{path}.1").read_text() == "x\ny\n"


def test_writer_that_stopped_in_the_middle_of_a_rename_holds_nobody_up(tmp_path):
    path = tmp_path / "j"
    path.write_text("x\n")
    with path.open() as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        journal.append(str(path), "y", BIG)
    assert path.read_text() == "x\ny\n"


def test_two_who_find_the_file_too_large_rename_it_once(tmp_path):
    """The second one's rename would throw away what the first one renamed."""
    path = tmp_path / "j"
    path.write_text("x" * 100 + "\n")
    with path.open() as found:  # it looked, and was interrupted
        journal.rotate(str(path), 50)
        journal.append(str(path), "new", 50)
        assert not journal._hold(found.fileno(), str(path), fcntl.LOCK_EX)


def test_death_at_any_step_costs_no_line_that_was_there(tmp_path):
    path = tmp_path / "j"
    for step in range(200):
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_text("x" * 20 + "\nwhole\n")

        def work(step=step):
            die_at_line(step, journal)
            journal.append(str(path), "new", 10)

        status = in_child(work)
        journal.append(str(path), "last", BIG)
        lines = "".join(f.read_text() for f in sorted(tmp_path.iterdir(), reverse=True)).splitlines()
        assert lines in (
            ["x" * 20, "whole", "last"],
            ["x" * 20, "whole", "new", "last"],
        )
        if status == 0:
            assert step > 20
            return
    pytest.fail("it never came to its end")


def test_disk_that_cannot_be_written_sends_records_to_memory(tmp_path):
    paths = Paths(str(tmp_path))
    os.makedirs(paths.run)
    os.makedirs(paths.records)  # no file can be there
    record.append(paths, {"id": "a"})
    assert json.loads(Path(paths.spill).read_text()) == {"id": "a"}
