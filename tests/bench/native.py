"""Benchmarks of agentrun's own part on the machine itself: the backend is /bin/true.

Installs into a temporary folder. The exec path works on a real cgroup2 directory, so it needs root and a
cgroup2 mount (a hybrid one will do). Prints the table's rows. `python3 tests/bench/native.py PAIRS`
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from cgroups import mount_or_exit
from installing import make_command
from pairs import Comparison, compare
from policy import write_policy


@contextlib.contextmanager
def container(state_root: Path, mount: Path) -> Iterator[str]:
    """What runc would have left of a running container: a cgroup with an init, and a state file."""
    cgroup = mount / f"agentrun-bench-{os.getpid()}"
    cgroup.mkdir()
    init = subprocess.Popen(["sleep", "1000000"])
    (cgroup / "cgroup.procs").write_text(str(init.pid))
    ticks = int(Path(f"/proc/{init.pid}/stat").read_text().rpartition(")")[2].split()[19])
    (state_root / "bench").mkdir(parents=True)
    state = {"cgroup_paths": {"": str(cgroup)}, "init_process_pid": init.pid, "init_process_start": ticks}
    # A real state.json is about 25 KB; most of it is the container's configuration.
    state["config"] = {"padding": ["x" * 100] * 240}
    (state_root / "bench" / "state.json").write_text(json.dumps(state))
    try:
        yield "bench"
    finally:
        init.kill()
        init.wait()
        for folder, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(folder)


def install(folder: Path) -> str:
    """Install the working tree below `folder` with /bin/true as its backend; returns the program's path."""
    (folder / "root/etc/agentrun").mkdir(parents=True)
    backend = folder / "runc"
    backend.symlink_to("/bin/true")
    (folder / "root/etc/agentrun/config.toml").write_text(f'version = 1\nbackends = ["{backend}"]\n')
    subprocess.run(make_command("install", folder), check=True)
    return f"{folder}/usr/bin/agentrun"


def main() -> None:
    """Measure and print."""
    pairs = int(sys.argv[1])
    mount = mount_or_exit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(AGENTRUN_ROOT=f"{folder}/root", AGENTRUN_CGROUP_ROOT=str(mount))
        agentrun = install(folder)
        true = ("/bin/true", ["/bin/true"])
        results: list[Comparison] = []
        with container(folder / "state", mount) as container_id:
            root = ["--root", f"{folder}/state"]
            passed = ("agentrun state", [agentrun, *root, "state", container_id])
            execed = ("agentrun exec", [agentrun, *root, "exec", container_id, "true"])
            results.append(compare("pass-through, native", true, passed, pairs))
            results.append(compare("exec path, native", true, execed, pairs))
            write_policy(folder / "root/etc/agentrun/policy.d", 200)
            results.append(compare("exec path with a policy of 200 rules, native", true, execed, pairs))
    print("\n".join(result.row() for result in results))


if __name__ == "__main__":
    main()
