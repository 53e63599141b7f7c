"""What the backend itself recorded about a container: its cgroup, its init, where its bundle is.

runc: `<root>/<id>/state.json` (`cgroup_paths[""]`, `init_process_pid`, `init_process_start`, absolute path).
crun: `<root>/<id>/status` (`cgroup-path` relative to the mount, with systemd `.../<unit>.scope/container`).
agentrun keeps no authoritative state of its own: this and the cgroup tree are the truth.
"""

from __future__ import annotations

import posix

from agentrun.base import fastjson, files
from agentrun.base.paths import getenv
from agentrun.base.procfs import start_ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_STATE_LIMIT = 16 << 20
_STATE_FILES = {"runc": "state.json", "crun": "status"}
KINDS = tuple(_STATE_FILES)
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")
_ID_LENGTH = 200


class Container:
    """A container as its backend knows it. `cgroup` is absolute, `start_ticks` identifies the init.

    `annotations` is None where the backend's state does not hold them (they are in `bundle`/config.json).
    """

    __slots__ = ("annotations", "bundle", "cgroup", "container_id", "kind", "pid", "root", "start_ticks")

    def __init__(
        self,
        kind: str,
        root: str,
        container_id: str,
        cgroup: str,
        pid: int,
        start_ticks: int,
        bundle: str = "",
        annotations: dict[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.root = root
        self.container_id = container_id
        self.cgroup = cgroup
        self.pid = pid
        self.start_ticks = start_ticks
        self.bundle = bundle
        self.annotations = annotations

    def is_running(self) -> bool:
        """Whether the init that the backend started still lives (a pid alone may have been reused)."""
        return self.pid > 0 and start_ticks(self.pid) == self.start_ticks


def is_valid_id(container_id: str) -> bool:
    """Whether an id is one that runc or crun accepts, and so safe as a name of ours."""
    return (
        0 < len(container_id) <= _ID_LENGTH
        and container_id not in (".", "..")
        and _ID_CHARACTERS.issuperset(container_id)
    )


def candidate_roots(kind: str) -> list[str]:
    """Where a backend keeps its state when the engine gave no `--root` (podman never does).

    runc looks at XDG_RUNTIME_DIR only without root (rootless_linux.go), crun always (status.c).
    """
    runtime_dir = getenv("XDG_RUNTIME_DIR")
    roots = [f"/run/{kind}"]
    if runtime_dir and (kind == "crun" or posix.geteuid() != 0):
        roots.insert(0, f"{runtime_dir}/{kind}")
    return roots


def find(container_id: str, root: str | None, kinds: Sequence[str], cgroup_root: str) -> Container | None:
    """Find a container by its backend's state file, trying the kinds in order; None where there is none."""
    for kind in kinds:
        for candidate in [root] if root else candidate_roots(kind):
            path = f"{candidate}/{container_id}/{_STATE_FILES[kind]}"
            try:
                data = files.read_regular(path, _STATE_LIMIT)
            except OSError:
                continue
            if data is not None:
                return _read_state(kind, _absolute(candidate), container_id, data, cgroup_root)
    return None


def place_of(state: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Root, id and kind of the container that a call's state names; None where that is none of ours."""
    root, name, kind = (str(state.get(key) or "") for key in ("root", "container", "backend"))
    return (root, name, kind) if root and is_valid_id(name) and kind in KINDS else None


def find_by_prefix(prefix: str, root: str | None, kinds: Sequence[str], cgroup_root: str) -> Container | None:
    """Find a container by the beginning of its id, as people type it; None where it is none or several."""
    names: set[str] = set()
    for candidate in [root] if root else [path for kind in kinds for path in candidate_roots(kind)]:
        try:
            names.update(name for name in posix.listdir(candidate) if name.startswith(prefix))
        except OSError:
            continue
    return find(names.pop(), root, kinds, cgroup_root) if len(names) == 1 else None


def _absolute(path: str) -> str:
    return path.rstrip("/") if path.startswith("/") else f"{posix.getcwd()}/{path}".rstrip("/")


def _read_state(kind: str, root: str, container_id: str, data: bytes, cgroup_root: str) -> Container | None:
    try:
        state = fastjson.loads(data)
        if kind == "runc":
            cgroup = state["cgroup_paths"].get("") or ""
            pid, start = state["init_process_pid"], state["init_process_start"]
            annotations = _runc_annotations(state)
            bundle = annotations.pop("bundle", "")
        else:
            cgroup = _crun_cgroup(state, cgroup_root)
            pid, start = state["pid"], state["process-start-time"]
            bundle, annotations = str(state.get("bundle") or ""), None
        return Container(kind, root, container_id, cgroup, int(pid), int(start), bundle, annotations)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _runc_annotations(state: Any) -> dict[str, str]:
    """runc keeps annotations, and the bundle last, as `key=value` labels (runc specconv)."""
    labels = state.get("config", {}).get("labels") or []
    return {key: value for key, _, value in (str(label).partition("=") for label in labels)}


def _crun_cgroup(state: Any, cgroup_root: str) -> str:
    relative = str(state.get("cgroup-path") or "").strip("/")
    return f"{cgroup_root}/{relative}" if relative else ""


def is_cgroup_v2(cgroup: str, cgroup_root: str) -> bool:
    """Whether `cgroup` is a directory of the cgroup2 mount at `cgroup_root` (never so on cgroup v1)."""
    if not cgroup.startswith(cgroup_root + "/") or ".." in cgroup.split("/"):
        return False
    try:
        inside, mount = posix.stat(cgroup, follow_symlinks=False), posix.stat(cgroup_root)
        posix.stat(cgroup + "/cgroup.procs", follow_symlinks=False)
    except OSError:
        return False
    return inside.st_dev == mount.st_dev
