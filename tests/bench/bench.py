"""`make bench`: side by side in one run, natively and in both kinds of guest; rewrites docs/benchmarks.md.

`PAIRS=N python3 tests/bench/bench.py`
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from pairs import HEADER

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
VM = ["tests/vm/vm"]
TEXTS = 30

CONFIGURE = """
mkdir -p /etc/docker
cp configs/docker-daemon.json /etc/docker/daemon.json
systemctl reload docker
mkdir -p /etc/containers/containers.conf.d
cp configs/podman-agentrun.conf /etc/containers/containers.conf.d/agentrun.conf
systemctl start agentrund
"""
IN_GUEST = {
    "full": """
python3 tests/bench/engines.py {pairs} emulated
python3 tests/bench/feedback.py engines {texts}
""",
    "fast": "python3 tests/bench/engines.py {pairs} fast",  # feedback.py needs BPF programs
}
VERSIONS = (
    "runc --version | head -1; crun --version | head -1; docker --version; uname -sr; python3 --version"
)


def output(command: list[str]) -> str:
    """Run a command of ours with its errors shown; returns its stdout."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: {' '.join(command[:4])}: status {done.returncode}")
    return done.stdout.strip()


def measure_in_guest(kind: str, pairs: int) -> tuple[str, str]:
    """Rows of the engines' benchmarks in one kind of guest, and the versions that they ran on."""
    option, instance = ["--fast"] if kind == "fast" else [], ["--name", f"bench-{kind}"]
    output([*VM, "build", *option])
    script = CONFIGURE + IN_GUEST[kind].format(pairs=pairs, texts=min(pairs, TEXTS))
    try:
        rows = output([*VM, "run", *option, *instance, "--fresh", "--", "sh", "-ec", script])
        versions = output([*VM, "ssh", *instance, "--", VERSIONS])
    finally:
        output([*VM, "down", *instance])
    return rows, ", ".join(versions.splitlines())


def write_page(table: str) -> None:
    """Put the table between its marks; the text around it stays."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def main() -> None:
    """Measure everything and write the page."""
    pairs = int(os.environ.get("PAIRS", "40"))
    native = output([sys.executable, "tests/bench/native.py", str(pairs)])
    native += "\n" + output([sys.executable, "tests/bench/feedback.py", "native", str(min(pairs, TEXTS))])
    rows, versions = measure_in_guest("full", pairs)
    fast_rows, fast_versions = measure_in_guest("fast", pairs)
    where = f"Linux {platform.release()}, Python {platform.python_version()}"
    guests = f"Emulated (no KVM): {versions}. Fast guest (User-Mode Linux): {fast_versions}"
    note = f"`PAIRS={pairs} make bench`. {guests}. Natively: {where}."
    table = f"{HEADER}\n{rows}\n{fast_rows}\n{native}\n\n{note}"
    write_page(table)
    print(table)


if __name__ == "__main__":
    main()
