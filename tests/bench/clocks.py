"""Whose time a VM's clock counts, as options of `tests/vm/vm` (tests/vm/README.md)."""

from __future__ import annotations

# By the host's, two CPUs; or by the instructions of one: uneven by a third, or the same to a percent.
CLOCKS: dict[str, list[str]] = {"host": [], "counted": ["--smp", "1", "--tcg-thread", "counted"]}
