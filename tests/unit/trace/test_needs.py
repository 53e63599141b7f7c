"""What `agentrunctl trace` needs of a host, and which container is meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from node import TREE
from node import node as node

from agentrun.base.errors import TraceError
from agentrun.trace import needs, target


@pytest.fixture
def whole(tmp_path) -> Path:
    """A root directory with headers and tracefs."""
    (tmp_path / "lib/modules/7.3/build/include/linux").mkdir(parents=True)
    (tmp_path / "lib/modules/7.3/build/include/linux/kconfig.h").touch()
    (tmp_path / "sys/kernel/tracing/events").mkdir(parents=True)
    return tmp_path


def test_whole_host_lacks_nothing(whole):
    needs.check(0, "7.3", "/nowhere", str(whole))


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("root", "needs root"),
        ("lib/modules/7.3/build", "apt install linux-headers-7.3"),
        ("sys/kernel/tracing", "mount -t tracefs tracefs /sys/kernel/tracing"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(whole, lacks, says):
    if (whole / lacks).exists():
        (whole / lacks).rename(whole / "gone")
    with pytest.raises(TraceError, match=says):
        needs.check(1000 if lacks == "root" else 0, "7.3", "/nowhere", str(whole))


def test_headers_in_the_kernel_or_where_bcc_is_told_will_do(tmp_path, monkeypatch):
    assert not needs.has_headers("7.3", str(tmp_path))
    (tmp_path / "include/linux").mkdir(parents=True)
    (tmp_path / "include/linux/kconfig.h").touch()
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    assert needs.has_headers("7.3", str(tmp_path))
    monkeypatch.delenv("BCC_KERNEL_SOURCE")
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/kheaders.tar.xz").touch()
    assert needs.has_headers("7.3", str(tmp_path))


def test_cgroup_namespace_is_refused(whole, tmp_path):
    with pytest.raises(TraceError, match="cgroup namespace"):
        needs.check(0, "7.3", str(tmp_path), str(whole))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"no bcc for .*: apt install python3-bpfcc"),
        ("raise OSError('libbcc.so.0: cannot open shared object file')", "libbcc.so.0.*python3-bpfcc"),
        ("encode = 1", "not BPF's bcc"),
    ],
)
def test_bcc_that_is_missing_or_another_is_named(tmp_path, monkeypatch, content, says):
    name = f"agentrun_test_bcc_{os.urandom(4).hex()}"
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TraceError, match=says):
        needs.import_bcc(name)


def test_lack_is_one_line_and_exit_status_1():
    # Without tracefs, headers or root: one of them lacks wherever unit tests run.
    code = "import os; os.geteuid = lambda: 1000; from agentrun.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", "x"], cwd=TREE, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "agentrunctl: trace: needs root: it loads eBPF programs and sees what every call does\n"
    )


ONE, TWO = target.Candidate("abc1", "/c/1", "box"), target.Candidate("abc2", "/c/2", "abc")


@pytest.mark.parametrize(
    ("wanted", "found"), [("abc1", ONE), ("box", ONE), ("abc", TWO), ("x", None), ("", None)]
)
def test_whole_id_or_name_comes_before_how_an_id_begins(wanted, found):
    assert target.choose(wanted, [ONE, TWO]) == found


def test_several_that_begin_so_are_an_error():
    with pytest.raises(TraceError, match="several begin so: abc1, abc2"):
        target.choose("ab", [ONE, TWO])


@pytest.mark.parametrize(
    ("cgroup", "one_of"),
    [
        ("/s/system.slice/docker-0123abcd.scope", "0123abcd"),
        ("/s/machine.slice/libpod-0123abcd.scope/container", "0123abcd"),
        ("/s/system.slice/agentrun-test:my-box.scope", "my-box.scope".removesuffix(".scope")),
        ("/s/by-hand/my-box", "my-box"),
    ],
)
def test_id_is_found_in_a_cgroup_name(cgroup, one_of):
    assert one_of.rpartition(":")[2] in [word.rpartition(":")[2] for word in target.ids_of(cgroup)]


def test_level_counts_cgroups_below_the_root():
    assert target.level_of("/sys/fs/cgroup/a/b", "/sys/fs/cgroup") == 2


def test_container_with_a_call_is_found_by_its_id(node):
    node.call("sleep", "100")
    found = target.find(node.paths, "c")
    assert (found.container_id, found.cgroup.path) == ("c1", str(node.cgroup))
    assert found.cgroup_id == node.cgroup.stat().st_ino
    assert found.calls_id == (node.cgroup / "agentrun-calls").stat().st_ino
    assert found.where and found.where.endswith("/c1")


def test_container_without_a_call_is_found_by_its_cgroup(node):
    found = target.find(node.paths, node.cgroup.name)
    assert found.cgroup.path == str(node.cgroup) and found.where is None


def test_container_without_a_call_is_found_by_its_name(node):
    path = node.cgroup / "docker-0123abcd.scope"
    (path / "agentrun-calls").mkdir(parents=True)
    (node.cgroup / "agentrun-calls").rmdir()
    known = Path(f"{node.root}/var/lib/docker/containers/0123abcd/config.v2.json")
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps({"Name": "/box", "Config": {"Image": "x"}}))
    for wanted in ("box", "0123"):
        found = target.find(node.paths, wanted)
        assert (found.container_id, found.cgroup.path) == ("0123abcd", str(path))


def test_no_such_container_is_an_error(node):
    with pytest.raises(TraceError, match="find container 'nope': none that runs under agentrun"):
        target.find(node.paths, "nope")
