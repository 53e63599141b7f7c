"""Which image a container was made from, from the files of backend and engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrun.base.paths import Paths
from agentrun.cgroups.cgroup import Cgroup
from agentrun.daemon.call import Call
from agentrun.daemon.parts.images import Images


@pytest.fixture
def host(tmp_path) -> Paths:
    """A host whose docker has the container `c1`, from an image, on crun."""
    state = tmp_path / "run/crun/c1"
    state.mkdir(parents=True)
    bundle = "/run/containerd/io.containerd.runtime.v2.task/moby/c1"
    status = {"cgroup-path": "/x", "pid": 1, "process-start-time": 1, "bundle": bundle}
    (state / "status").write_text(json.dumps(status))
    engine = tmp_path / "var/lib/docker/containers/c1"
    engine.mkdir(parents=True)
    (engine / "config.v2.json").write_text(json.dumps({"Name": "/box", "Config": {"Image": "acme/agent:1"}}))
    return Paths(str(tmp_path))


def began(part: Images, host: Paths, container: str, **state: Any) -> Call:
    full = {"id": "1", "root": f"{host.root}/run/crun", "container": container, **state}
    call = Call("/w", "call-0", full, Cgroup("/none"))
    part.began(call)
    return call


def part_of(host: Paths) -> Images:
    return Images(SimpleNamespace(paths=host))  # type: ignore[arg-type]


def test_image_is_noted_for_the_record(host):
    call = began(part_of(host), host, "c1")
    assert call.state["image"] == call.unsaved["image"] == "acme/agent:1"


def test_container_is_looked_up_once(host):
    part = part_of(host)
    began(part, host, "c1")
    Path(host.root, "run/crun/c1/status").unlink()
    assert began(part, host, "c1").state["image"] == "acme/agent:1"


def test_what_is_known_already_is_left_alone(host):
    assert began(part_of(host), host, "c1", image="old").unsaved == {}


@pytest.mark.parametrize("container", ["c2", "../../etc", "", "x" * 300])
def test_unknown_container_has_no_image(host, container):
    assert "image" not in began(part_of(host), host, container).state


@pytest.mark.parametrize("content", ["{", "[]", '{"Config": 1}', '{"Name": "x", "Config": {"Image": 7}}'])
def test_damaged_file_of_the_engine_gives_no_image(host, content):
    Path(host.root, "var/lib/docker/containers/c1/config.v2.json").write_text(content)
    assert "image" not in began(part_of(host), host, "c1").state
