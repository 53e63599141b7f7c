"""How soon an agent reads what it is told, counted from the end of its call. Prints rows for benchmarks.md.

`feedback.py native N`: agentrund and calls of its own on this machine (root, a cgroup2 mount; a hybrid one
will do). `feedback.py engines N`: OOM kills with docker and podman (the test VM), timed by a tracepoint.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pairs import Comparison

TREE = Path(__file__).parents[2]
IMAGE = "agentrun-test/agentbox"
# Says when its last line was written; the client prints it.
LAST_LINE = "import os, sys, time; sys.stderr.write(f'last {time.monotonic()}\\n'); sys.stderr.flush()"
HOG = "x = bytearray(200 << 20)"
KILL = "import sys; sys.path.insert(0, sys.argv[1]); from agentrun.cli.main import cli; cli(sys.argv[2:])"
VICTIM = re.compile(r" (\d+\.\d+): mark_victim: ")


def read_until_end(stream: int, prefix: bytes) -> tuple[float, float, bytes]:
    """When the first line with a prefix was there, when the stream ended (monotonic), and all of it."""
    seen, text = 0.0, b""
    while data := os.read(stream, 4096):
        text += data
        if not seen and any(line.startswith(prefix) for line in text.splitlines()):
            seen = time.monotonic()
    return seen, time.monotonic(), text


class Kills:
    """OOM kills as the kernel's tracepoint tells them, on the clock of time.monotonic().

    Not the kernel log: its clock is another, and a kill is logged after a page of text on a slow console.
    """

    def __init__(self) -> None:
        self._where = Path("/sys/kernel/tracing/instances/agentrun-bench")
        self._where.mkdir(exist_ok=True)
        (self._where / "trace_clock").write_text("mono")
        (self._where / "events/oom/mark_victim/enable").write_text("1")
        self.forget()

    def forget(self) -> None:
        """Count from here."""
        (self._where / "trace").write_text("")

    def first(self) -> float | None:
        """When the first kill was; None where there was none."""
        found = VICTIM.search((self._where / "trace").read_text())
        return None if found is None else float(found[1])

    def close(self) -> None:
        """Trace no more."""
        self._where.rmdir()


def compare(
    title: str,
    names: tuple[str, str],
    base: Callable[[], list[float]],
    other: Callable[[], list[float]],
    count: int,
) -> list[Comparison]:
    """Two rows, until the line is read and until the stream ends, of two ways to end, in changing order."""
    samples: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(count):
        for which in (0, 1) if number % 2 else (1, 0):
            samples[which].append((base, other)[which]())
    rows = []
    for index, until in enumerate(("is read", "and the end of the output")):
        mine = [[sample[index] for sample in side] for side in samples]
        rows.append(Comparison(f"{title} {until}", *names, *mine))
        print(f"bench: {title} {until}: ratio {rows[-1].ratio():.2f}", file=sys.stderr)
    return rows


def engine_rows(engine: str, runtime: str, count: int) -> list[Comparison]:
    """OOM kills at a call's own limit, against commands that print a line and end."""
    kills = Kills()
    place = ["--runtime", runtime]
    begin = [engine, *place, "run"] if engine == "podman" else [engine, "run", *place]
    create = [*begin, "-d", "--rm", "--name", "b-told", "-m", "300m", IMAGE, "sleep", "1000000"]
    subprocess.run(create, check=True, stdout=subprocess.DEVNULL)

    def run(prefix: bytes, *command: str) -> tuple[float, float, bytes]:
        process = subprocess.Popen([engine, "exec", *command], stderr=subprocess.PIPE)
        assert process.stderr
        seen, end, text = read_until_end(process.stderr.fileno(), prefix)
        process.wait()
        return seen, end, text

    def own_line() -> list[float]:
        seen, end, text = run(b"last", "b-told", "python3", "-c", LAST_LINE)
        began = float(text.split()[1])
        return [(seen - began) * 1000, (end - began) * 1000]

    def oom() -> list[float]:
        while True:
            intent = ("-e", "AGENTRUN_INTENT=memory=64m")
            kills.forget()
            seen, end, _ = run(b"[agentrun] ", *intent, "b-told", "python3", "-c", HOG)
            began = kills.first()
            if began is None:
                sys.exit("bench: nothing was OOM killed")
            if seen:
                return [(seen - began) * 1000, (end - began) * 1000]
            print(f"bench: {engine}: a text did not arrive", file=sys.stderr)

    try:
        names = ("its own last line", "what agentrund tells of an OOM kill")
        return compare(
            f"{engine} exec: from the kill (the print) until the text", names, own_line, oom, count
        )
    finally:
        subprocess.run([engine, "rm", "-f", "b-told"], check=True, stdout=subprocess.DEVNULL)
        kills.close()


def native_rows(count: int) -> list[Comparison]:
    """Calls killed by `agentrunctl kill`, against calls that nothing is told, without any engine."""
    sys.path[:0] = [str(TREE), str(TREE / "tests/support")]
    from cgroups import mount_or_exit
    from node import Node, wait_for

    mount = mount_or_exit()
    root, cgroup = Path(tempfile.mkdtemp()), mount / f"agentrun-bench-{os.getpid()}"
    cgroup.mkdir()
    node = Node(root, cgroup)
    node.start()

    def ended(mode: str) -> list[float]:
        read, write = os.pipe()
        care = {"feedback": mode, "templates": {}}
        call_id = node.call("sleep", "100", stderr=write, care=care, limits={})
        os.close(write)
        process, died = node.processes[-1], []
        waiter = threading.Thread(target=lambda: died.append((process.wait(), time.monotonic())))
        waiter.start()
        time.sleep(0.3)
        killer = subprocess.Popen(
            [sys.executable, "-c", KILL, str(TREE), "kill", call_id],
            env=node.environment,
            stdout=subprocess.DEVNULL,
        )
        seen, end, _ = read_until_end(read, b"[agentrun] ")
        os.close(read)
        waiter.join()
        killer.wait()
        wait_for(lambda: [r for r in node.records() if r["id"] == call_id], "the record")
        if mode == "on" and not seen:
            sys.exit("bench: a text did not arrive")
        began = died[0][1]
        return [((seen or end) - began) * 1000, (end - began) * 1000]

    try:
        names = ("end of the output, nothing told", "what agentrund tells of a kill")
        title = "native: from the end of the process until the text"
        return compare(title, names, lambda: ended("off"), lambda: ended("on"), count)
    finally:
        node.stop()
        for folder, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(folder)
        shutil.rmtree(root)


def main() -> None:
    """Measure and print."""
    where, count = sys.argv[1], int(sys.argv[2])
    if where == "native":
        rows = native_rows(count)
    else:
        rows = engine_rows("docker", "agentrun", count)
        rows += engine_rows("podman", "/usr/bin/agentrun-crun", count)
    print("\n".join(row.row() for row in rows))


if __name__ == "__main__":
    main()
