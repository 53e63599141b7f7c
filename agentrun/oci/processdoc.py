"""The exec's process document (OCI runtime-spec, `process`): read it, and let it tell the call the truth.

A call that may use one CPU of sixty-four should start one worker, not sixty-four: programs look at the
machine, not at their cgroup. What is changed: environment variables that nobody set, `execCPUAffinity`,
`ioPriority` and `scheduler` where the engine set none. Only ever in a regular file, replaced as a whole.
"""

from __future__ import annotations

import posix
import stat

from agentrun.base import fastjson, files
from agentrun.decision import intent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.decision.plan import Plan
    from agentrun.oci.argv import Invocation

_LIMIT = 16 << 20

# Who reads it: OpenMP (and coreutils' nproc), OpenBLAS, MKL, numexpr, Rayon, Go, make, CMake, cargo,
# pytest-xdist, CPython 3.13, node-gyp and npm, libuv, Julia, polars. Not JAVA_TOOL_OPTIONS: the JVM
# announces it on stderr.
_CPU_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "RAYON_NUM_THREADS",
    "GOMAXPROCS", "CMAKE_BUILD_PARALLEL_LEVEL", "CARGO_BUILD_JOBS", "PYTEST_XDIST_AUTO_NUM_WORKERS",
    "PYTHON_CPU_COUNT", "JOBS", "JULIA_NUM_THREADS", "POLARS_MAX_THREADS",
)  # fmt: skip
_GO_MEMORY_PERCENT = 90  # Go's collector should act before the kernel does
SCHEDULERS = {"low": ("SCHED_BATCH", 10)}  # policy, nice
_IO_PRIORITIES = {"low": {"class": "IOPRIO_CLASS_BE", "priority": 7}}


class Process:
    """What an exec will run. `path` is the document, None where there is none that can be rewritten."""

    __slots__ = ("argv", "cwd", "document", "environment", "path", "tty", "uid")

    def __init__(self, document: dict[str, Any], path: str | None) -> None:
        self.document = document
        self.path = path
        user = document.get("user")
        uid = user.get("uid") if isinstance(user, dict) else None
        cwd = document.get("cwd")
        self.environment = _list(document.get("env"))
        self.argv = _list(document.get("args"))
        self.cwd = cwd if isinstance(cwd, str) else None
        self.uid = uid if isinstance(uid, int) else 0
        self.tty = document.get("terminal") is True


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def read(invocation: Invocation) -> Process:
    """The process of an exec, from its document or its options.

    Only a regular file is looked at: a document that comes through a pipe is the backend's to read, and so
    are complaints about one that is broken.
    """
    path = invocation.last("process")
    if path is None:
        return Process(_from_options(invocation), None)
    try:
        data = files.read_regular(path, _LIMIT, follow=True)
        document = fastjson.loads(data) if data else None
    except (OSError, ValueError):
        document = None
    return Process(document, path) if isinstance(document, dict) else Process({}, None)


def _from_options(invocation: Invocation) -> dict[str, Any]:
    user = (invocation.last("user") or "").partition(":")[0]
    return {
        "args": list(invocation.command),
        "env": list(invocation.options.get("env", [])),
        "cwd": invocation.last("cwd"),
        "terminal": "tty" in invocation.options,
        "user": {"uid": int(user) if user.isdigit() else 0},
    }


def machine_truth(plan: Plan, session_cpus: float | None, session_memory: int | None) -> dict[str, str]:
    """Environment variables for a call that is narrower than its session; empty for one that is not.

    `GOMAXPROCS` and its like are counts: a fraction of a CPU still is one worker.
    """
    truth: dict[str, str] = {}
    if plan.cpus is not None and (session_cpus is None or plan.cpus < session_cpus):
        count = str(max(1, -int(-plan.cpus // 1)))
        truth = dict.fromkeys(_CPU_VARIABLES, count)
        truth["MAKEFLAGS"] = f"-j{count}"
    if plan.memory is not None and (session_memory is None or plan.memory < session_memory):
        truth["GOMEMLIMIT"] = str(plan.memory * _GO_MEMORY_PERCENT // 100)
    return truth


def rewritten(
    process: Process, plan: Plan, truth: dict[str, str], strip_intent: bool
) -> dict[str, Any] | None:
    """The document with what the plan adds, None where nothing changes. Variables that are set stay."""
    environment = list(process.environment)
    if strip_intent:
        environment = [entry for entry in environment if not _is_intent(entry)]
    taken = {entry.partition("=")[0] for entry in environment if isinstance(entry, str)}
    environment += [f"{name}={value}" for name, value in truth.items() if name not in taken]
    changes: dict[str, Any] = {} if environment == process.environment else {"env": environment}
    document = process.document
    if plan.cpuset is not None and "execCPUAffinity" not in document:
        changes["execCPUAffinity"] = {"final": plan.cpuset}
    if plan.priority in SCHEDULERS and "scheduler" not in document:
        policy, nice = SCHEDULERS[plan.priority]
        changes["scheduler"] = {"policy": policy, "nice": nice}
    if plan.priority in _IO_PRIORITIES and "ioPriority" not in document:
        changes["ioPriority"] = _IO_PRIORITIES[plan.priority]
    return {**document, **changes} if changes else None


def _is_intent(entry: object) -> bool:
    return isinstance(entry, str) and entry.partition("=")[0] in (
        intent.INTENT_VARIABLE,
        intent.HINT_VARIABLE,
    )


def replace(path: str, document: dict[str, Any]) -> bool:
    """Replace a document as a whole, its mode and owner kept. False for one that is not a plain file.

    A symlink is left alone (`/dev/fd/N` is one), and so is a file with other names: replacing it would
    leave those with the old content. Raises OSError, and ValueError on text that UTF-8 cannot hold.
    """
    info = posix.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        return False
    files.write_atomic(path, fastjson.dump_bytes(document), like=info)
    return True
