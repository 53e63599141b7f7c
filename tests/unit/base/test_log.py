"""Our own log and the engine's."""

from __future__ import annotations

import errno
import json
import os

import pytest

from agentrun.base import errors, log
from agentrun.base.paths import Paths
from agentrun.oci import errorlog
from agentrun.oci.argv import parse


@pytest.fixture
def paths(tmp_path) -> Paths:
    (tmp_path / "var/log").mkdir(parents=True)
    return Paths(str(tmp_path))


def lines(path: str) -> list[dict[str, object]]:
    with open(path) as file:
        return [json.loads(line) for line in file]


def test_hostile_value_stays_inside_its_line(paths):
    log.warn(paths, "x", error='a\n{"level":"error"}\x1b[2J\udcff' + "y" * 5000)
    found = lines(paths.log)
    assert len(found) == 1 and len(str(found[0]["error"])) == 1024


def test_only_root_may_read_it(paths):
    log.warn(paths, "x")
    assert os.stat(paths.log).st_mode & 0o777 == 0o600


def test_large_log_is_moved_aside(paths):
    with open(paths.log, "w") as file:
        file.write("x" * (5 << 20))
    log.warn(paths, "new")
    assert [line["msg"] for line in lines(paths.log)] == ["new"]
    assert os.path.getsize(paths.log + ".1") == 5 << 20


def test_log_that_is_a_symlink_is_not_followed(paths, tmp_path):
    (tmp_path / "precious").write_text("")
    os.symlink(tmp_path / "precious", paths.log)
    log.warn(paths, "x")
    assert (tmp_path / "precious").read_text() == ""


def test_log_that_cannot_be_written_is_no_error(tmp_path):
    log.warn(Paths(str(tmp_path / "nowhere")), "x")


def test_engine_gets_the_error_in_its_format(tmp_path, capfd):
    path = str(tmp_path / "l")
    errorlog.oci_error(parse(["--log", path, "--log-format", "json", "exec", "c"]), 'bad "thing"\n')
    assert lines(path)[0]["msg"] == 'agentrun: bad "thing"\n'
    assert capfd.readouterr().err.startswith("agentrun: bad")


ENGINE_WORDS = ("permission denied", "no such file", "not a directory", "is a directory", "not permitted")


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS]
)
def test_reason_never_sounds_like_the_commands_own_failure(number):
    text = errors.reason(OSError(number, os.strerror(number))).lower()
    assert errno.errorcode[number].lower() in text
    assert not any(words in text for words in ENGINE_WORDS)
