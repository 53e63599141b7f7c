"""Compile `/etc/agentrun/config.toml`, and have the policy compiled. Imported only when a source changed."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrun.base import fastjson, files
from agentrun.base.errors import ConfigError, StateError
from agentrun.base.limits import PIDS_FLOOR, PIDS_MOST
from agentrun.base.units import parse_duration, parse_number
from agentrun.decision import config as configuration
from agentrun.decision import inforce, match
from agentrun.decision.config import Config
from agentrun.oci.backend import SEARCH_PATH, find_backend, kind_of

if TYPE_CHECKING:
    from agentrun.base.paths import Paths

VERSION = 1
MODES = ("enforce", "observe", "off")
ENFORCEMENTS = ("auto", "bpf", "cgroup", "none")
PIDS_MAX = 4096
RECORDS_LIMIT = 1 << 20  # days, or MiB
OOM_HOLD_LIMIT_S = 1.0
BUILTIN_BACKENDS = ("runc", "crun")

_KEYS = {
    "": ("version", "backends", "mode", "fail", "enforcement", "oom_hold", "parking", "calls", "records"),
    "calls": ("memory_max", "pids_max"),
    "records": ("keep_days", "max_mb"),
}


class _Source:
    """config.toml while it is read: all its problems, each with file, line and column."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[str] = []
        self.text = ""
        self.table = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            toml = _toml()
        except ImportError as error:
            raise ConfigError(f"{self.path}:1:1: cannot be read without tomli: {error}") from error
        try:
            with open(self.path, encoding="utf-8") as file:
                self.text = file.read()
            return dict(toml.loads(self.text))
        except toml.TOMLDecodeError as error:
            found = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
            place = f"{found[1]}:{found[2]}" if found else f"{self.text.count(chr(10)) + 1}:1"
            raise ConfigError(f"{self.path}:{place}: not valid TOML: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path}:1:1: cannot be read: {error}") from error

    def problem(self, key: str, text: str) -> None:
        """Note a mistake at a key (`calls.pids_max`)."""
        line, column = self._locate(key)
        self.problems.append(f"{self.path}:{line}:{column}: {text}")

    def wrong(self, key: str, value: object, why: str) -> None:
        """Note a value that is not what it should be."""
        self.problem(key, f"{key} = {value!r}: {why}")

    def _locate(self, key: str) -> tuple[int, int]:
        """Where a key stands, which TOML readers do not tell. A missing key belongs to the first line."""
        section, _, name = key.rpartition(".")
        current = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            header = re.match(r"\s*\[\s*([\w.-]+)\s*\]", line)
            if header:
                current = header[1]
            found = re.match(rf"(\s*\[?\s*)({re.escape(key)}|{re.escape(name)})\b", line)
            if found and (current == section or found[2] == key):
                return number, len(found[1]) + 1
        return 1, 1

    def check_keys(self, table: dict[str, Any], section: str) -> None:
        """Note keys that nobody knows."""
        known = _KEYS[section]
        for key in table:
            if key not in known:
                name = f"{section}.{key}" if section else key
                close = difflib.get_close_matches(key, known, n=1)
                hint = f", did you mean {close[0]!r}?" if close else f", known keys: {', '.join(known)}"
                self.problem(name, f"unknown key {name!r}{hint}")


def _is_agentrun(path: str) -> bool:
    """Whether a backend would be agentrun itself (also through a symlink): an endless loop."""
    return os.path.basename(os.path.realpath(path)).split("-")[0] == "agentrun"


def _read_backends(source: _Source) -> list[tuple[str, str]]:
    names = source.table.get("backends", list(BUILTIN_BACKENDS))
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        source.wrong("backends", names, "expected a list of names or absolute paths")
        return []
    found = []
    before = len(source.problems)
    for name in names:
        backend = find_backend(name)
        if "/" in name and not os.path.isabs(name):
            source.wrong("backends", name, "neither a plain name nor an absolute path")
        elif any(character.isspace() for character in name):
            source.wrong("backends", name, "white space is not supported in a backend's path")
        elif backend is not None and _is_agentrun(backend):
            source.wrong("backends", name, "this is agentrun itself")
        elif backend is not None:
            found.append((kind_of(backend), backend))
    if not found and len(source.problems) == before:
        source.wrong("backends", names, f"none is installed (searched {SEARCH_PATH})")
    return found


def _read_choice(source: _Source, key: str, choices: tuple[str, ...]) -> str:
    value = source.table.get(key, choices[0])
    if value not in choices:
        source.wrong(key, value, f"expected one of {', '.join(choices)}")
    return str(value)


def _read_percent(source: _Source, key: str, value: Any) -> float | None:
    """A share such as "80%"; None and "none" mean no ceiling of its own."""
    if value is None or value == "none":
        return None
    number = parse_number(value[:-1]) if isinstance(value, str) and value.endswith("%") else None
    if number is None or not 0 < number <= 100:
        source.wrong(key, value, 'expected a share such as "80%", or "none"')
    return number


def _read_calls(source: _Source) -> dict[str, Any]:
    """The built-in policy, with the limits of `[calls]`; it counts as long as there is no policy file."""
    table = source.table.get("calls", {})
    if not isinstance(table, dict):
        source.wrong("calls", table, "expected a table")
        return match.builtin()
    source.check_keys(table, "calls")
    pids = table.get("pids_max", PIDS_MAX)
    if not isinstance(pids, int) or isinstance(pids, bool) or not PIDS_FLOOR <= pids <= PIDS_MOST:
        source.wrong("calls.pids_max", pids, f"expected a number from {PIDS_FLOOR} to {PIDS_MOST}")
    return match.builtin(_read_percent(source, "calls.memory_max", table.get("memory_max")), pids)


def _read_records(source: _Source) -> dict[str, int | None]:
    """How long records are kept; None for no limit."""
    table = source.table.get("records", {})
    if not isinstance(table, dict):
        source.wrong("records", table, "expected a table")
        return {}
    source.check_keys(table, "records")
    defaults = {"keep_days": configuration.KEEP_DAYS, "max_mb": configuration.MAX_MB}
    return {key: _read_limit(source, f"records.{key}", table.get(key, n)) for key, n in defaults.items()}


def _read_limit(source: _Source, key: str, value: Any) -> int | None:
    if value == "none":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= RECORDS_LIMIT:
        source.wrong(key, value, f'expected a number from 1 to {RECORDS_LIMIT}, or "none"')
        return None
    return value


def _read_oom_hold(source: _Source) -> int:
    """How long a call that is killed for memory waits for its feedback, in milliseconds; 0 for not at all."""
    value = source.table.get("oom_hold")
    if value is None:
        return configuration.OOM_HOLD_MS
    if value == "none":
        return 0
    seconds = parse_duration(value) if isinstance(value, str) else None
    if seconds is None or not 0.001 <= seconds <= OOM_HOLD_LIMIT_S:
        source.wrong("oom_hold", value, 'expected a duration from "1ms" to "1s", or "none"')
        return 0
    return round(seconds * 1000)


def _read_flag(source: _Source, key: str) -> bool:
    value = source.table.get(key, False)
    if not isinstance(value, bool):
        source.wrong(key, value, "expected true or false")
    return value is True


def builtin() -> Config:
    """The configuration of a host without a file."""
    names = [path for name in BUILTIN_BACKENDS if (path := find_backend(name))]
    return Config([(kind_of(path), path) for path in names])


def compile_file(paths: Paths) -> Config:
    """Read and check config.toml. Raises ConfigError with every mistake: its place, value, what to write."""
    if not os.path.exists(paths.config):
        return builtin()
    source = _Source(paths.config)
    source.check_keys(source.table, "")
    if source.table.get("version") != VERSION:
        source.wrong("version", source.table.get("version"), f"expected {VERSION}")
    compiled = Config(
        _read_backends(source),
        _read_choice(source, "mode", MODES),
        _read_choice(source, "fail", ("open", "closed")) == "closed",
        _read_calls(source),
        enforcement=_read_choice(source, "enforcement", ENFORCEMENTS),
        records=_read_records(source),
        oom_hold_ms=_read_oom_hold(source),
        parking=_read_flag(source, "parking"),
    )
    if source.problems:
        raise ConfigError("\n".join(source.problems))
    return compiled


def compile_policy(paths: Paths) -> dict[str, Any] | None:
    """Compile the policy files; None where there is none. Raises ConfigError with all problems."""
    names = inforce.policy_names(paths)
    if not names:
        return None
    try:
        compiler = _import_installed("agentrun.policy.compiler")  # which needs PyYAML
    except ImportError as error:
        raise ConfigError(f"read {paths.policy}: PyYAML cannot be imported: {error}") from error
    try:
        compiled: dict[str, Any] = compiler.compile_files([Path(paths.policy, name) for name in names])
    except compiler.PolicyError as error:
        raise ConfigError(str(error)) from error
    return compiled


def _toml() -> Any:
    """The reader of TOML: Python's own, or before 3.11 tomli, which has the same names."""
    try:
        return importlib.import_module("tomllib")
    except ImportError:
        return _import_installed("tomli")


def _import_installed(name: str) -> Any:
    """A module that is, or needs, an installed one: `-S` hides where those are."""
    try:
        return importlib.import_module(name)
    except ImportError:
        import site

        site.main()
        return importlib.import_module(name)


def store(paths: Paths, config: Config) -> None:
    """Write the compiled JSON and the shell front's list of backends. Raises StateError."""
    os.close(files.open_private_directory(paths.state, StateError))
    try:
        compiled = fastjson.dumps(config.to_json()) + "\n"
        files.write_atomic(paths.compiled, compiled.encode())
        # The front compares the age of this file with the source's, so it is written last.
        lines = "fail closed\n" if config.fail_closed else ""
        lines += "".join(f"{kind} {path}\n" for kind, path in config.backends)
        files.write_atomic(paths.backends, os.fsencode(lines))
    except OSError as error:
        raise StateError("store compiled configuration", paths.state, error) from error
