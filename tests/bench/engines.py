"""Benchmarks on real runtimes and docker; needs root, cgroup v2, runc, crun and docker (the test VM).

Prints the table's rows. `python3 tests/bench/engines.py PAIRS WHERE`, with a word for the kind of guest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bundle import running
from pairs import Comparison, compare
from policy import write_policy

DOCKER_PAIRS = 15
POLICIES = Path("/etc/agentrun/policy.d")


def runtimes(pairs: int, folder: Path) -> list[Comparison]:
    """`exec` and `state`, by hand, each runtime in a container that it started itself."""
    with ExitStack() as stack:
        ids = {
            runtime: stack.enter_context(running(runtime, f"b-{runtime}", folder / runtime))
            for runtime in ("runc", "agentrun-runc", "crun", "agentrun-crun")
        }

        def exec_true(runtime: str) -> tuple[str, list[str]]:
            return f"{runtime} exec", [runtime, "exec", ids[runtime], "/bin/true"]

        def state(runtime: str) -> tuple[str, list[str]]:
            return f"{runtime} state", [runtime, "state", ids[runtime]]

        floor = folder / "runc-through-sh"
        floor.write_text('#!/bin/sh\nexec runc "$@"\n')
        floor.chmod(0o755)
        through_sh = ("sh, exec runc state", [str(floor), "state", ids["runc"]])
        results = [
            compare("exec on runc", exec_true("runc"), exec_true("agentrun-runc"), pairs),
            compare("exec on crun", exec_true("crun"), exec_true("agentrun-crun"), pairs),
            compare("exec on crun against plain runc", exec_true("runc"), exec_true("agentrun-crun"), pairs),
            compare("state on runc", state("runc"), state("agentrun-runc"), pairs),
            compare("state through an empty shell script: the floor", state("runc"), through_sh, pairs),
            compare("state on crun", state("crun"), state("agentrun-crun"), pairs),
        ]
        write_policy(POLICIES, 200)
        try:
            subprocess.run(["agentrunctl", "policy", "compile"], check=True, stdout=subprocess.DEVNULL)
            title = "exec on runc, policy of 200 rules"
            results.append(compare(title, exec_true("runc"), exec_true("agentrun-runc"), pairs))
        finally:
            (POLICIES / "10-bench.yaml").unlink()
        return results


def docker(pairs: int) -> Comparison:
    """`docker exec` from client to end, on runc."""
    names = {"runc": "b-docker-runc", "agentrun": "b-docker-agentrun"}
    image = ["agentrun-test/busybox", "sleep", "1000000"]
    for runtime, name in names.items():
        subprocess.run(
            ["docker", "run", "-d", "--rm", "--name", name, "--runtime", runtime, *image],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    try:
        commands = {runtime: ["docker", "exec", name, "true"] for runtime, name in names.items()}
        return compare(
            "docker exec",
            ("runc", commands["runc"]),
            ("agentrun", commands["agentrun"]),
            pairs,
        )
    finally:
        subprocess.run(["docker", "rm", "-f", *names.values()], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure and print."""
    pairs, where = int(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        results = runtimes(pairs, Path(folder))
    results.append(docker(min(pairs, DOCKER_PAIRS)))
    print("\n".join(replace(result, title=f"{result.title}, {where}").row() for result in results))


if __name__ == "__main__":
    main()
