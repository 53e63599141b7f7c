"""A policy of many rules, none of which matches until the last: the most that matching can cost."""

from __future__ import annotations

from pathlib import Path

CLASSES = 10


def write_policy(folder: Path, rules: int) -> None:
    """Write a policy file of `rules` rules on commands, directories and users into a policy directory."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["version: 1", "classes:"]
    lines += [
        f"  class-{n}: {{memory: {{max: {50 + n}%, high: 90% of max}}, pids: {{max: 1000}}}}"
        for n in range(CLASSES)
    ]
    lines.append("rules:")
    for n in range(rules - 1):
        command = f"[tool-{n}, 'manager-{n} install*', 'runner-{n} run test*']"
        lines.append(f"  - {{match: {{command: {command}, cwd: /srv/{n}/*}}, class: class-{n % CLASSES}}}")
    lines.append("  - {match: {command: '*'}, class: class-0}")
    (folder / "10-bench.yaml").write_text("\n".join(lines) + "\n")
