"""Let a call's process document tell the truth about its machine. Pure.

A call that may use one CPU of sixty-four should start one worker, not sixty-four: programs look at the
machine, not at their cgroup. What is changed: environment variables that nobody set, `execCPUAffinity`,
`ioPriority` and `scheduler` where the engine set none.
"""

from __future__ import annotations

from agentrun.decision import intent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.decision.plan import Plan
    from agentrun.oci.processdoc import Process

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
