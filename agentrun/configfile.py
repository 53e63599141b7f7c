"""Compile `/etc/agentrun/config.toml`, and have the policy compiled. Imported only when a source changed."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrun import config as configuration
from agentrun import fastjson, files
from agentrun import policy as policies
from agentrun.config import Config
from agentrun.errors import ConfigError, StateError

if TYPE_CHECKING:
    from agentrun.paths import Paths

VERSION = 1
MODES = ("enforce", "observe", "off")
PIDS_FLOOR = 16
PIDS_MAX = 4096
# Engines call a runtime with any PATH or none (podman kill/delete), so names are looked up here.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILTIN_BACKENDS = ("runc", "crun")

_KEYS = {
    "": ("version", "backends", "mode", "fail", "calls"),
    "calls": ("memory_max", "pids_max"),
}


def _fail(path: str, key: str, value: object, why: str) -> ConfigError:
    return ConfigError(f"read {path}: {key} = {value!r}: {why}")


def _check_keys(path: str, table: dict[str, Any], section: str) -> None:
    known = _KEYS[section]
    for key in table:
        if key in known:
            continue
        name = f"{section}.{key}" if section else key
        close = difflib.get_close_matches(key, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f", known keys: {', '.join(known)}"
        raise ConfigError(f"read {path}: unknown key {name!r}{hint}")


def kind_of(path: str) -> str:
    """Whose state format and quirks a backend has: `crun` or `runc` (and all that wrap or copy it)."""
    return "crun" if "crun" in os.path.basename(path) else "runc"


def find_backend(name: str) -> str | None:
    """The absolute path of an installed backend, or None."""
    if os.path.isabs(name):
        candidates = [name]
    else:
        candidates = [os.path.join(folder, name) for folder in SEARCH_PATH.split(":")]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _is_agentrun(path: str) -> bool:
    """Whether a backend would be agentrun itself (also through a symlink): an endless loop."""
    return os.path.basename(os.path.realpath(path)).split("-")[0] == "agentrun"


def _read_backends(path: str, names: Any) -> list[tuple[str, str]]:
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise _fail(path, "backends", names, "expected a list of names or absolute paths")
    found = []
    for name in names:
        if "/" in name and not os.path.isabs(name):
            raise _fail(path, "backends", name, "neither a plain name nor an absolute path")
        if any(character.isspace() for character in name):
            raise _fail(path, "backends", name, "white space is not supported in a backend's path")
        backend = find_backend(name)
        if backend is None:
            continue
        if _is_agentrun(backend):
            raise _fail(path, "backends", name, "this is agentrun itself")
        found.append((kind_of(backend), backend))
    if not found:
        raise _fail(path, "backends", names, f"none is installed (searched {SEARCH_PATH})")
    return found


def _read_choice(path: str, table: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
    value = table.get(key, choices[0])
    if value not in choices:
        raise _fail(path, key, value, f"expected one of {', '.join(choices)}")
    return str(value)


def _read_percent(path: str, key: str, value: Any) -> float | None:
    """A share such as "80%"; None and "none" mean no ceiling of its own."""
    if value is None or value == "none":
        return None
    try:
        if not (isinstance(value, str) and value.endswith("%")):
            raise ValueError
        percent = float(value[:-1])
        if not 0 < percent <= 100:
            raise ValueError
    except ValueError:
        raise _fail(path, key, value, 'expected a share such as "80%", or "none"') from None
    return percent


def _read_calls(path: str, table: Any) -> dict[str, Any]:
    """The built-in policy, with the limits of `[calls]`; it counts as long as there is no policy file."""
    if not isinstance(table, dict):
        raise _fail(path, "calls", table, "expected a table")
    _check_keys(path, table, "calls")
    pids = table.get("pids_max", PIDS_MAX)
    if not isinstance(pids, int) or isinstance(pids, bool) or not PIDS_FLOOR <= pids <= 1 << 22:
        raise _fail(path, "calls.pids_max", pids, f"expected a number from {PIDS_FLOOR} to {1 << 22}")
    return policies.builtin(_read_percent(path, "calls.memory_max", table.get("memory_max")), pids)


def builtin() -> Config:
    """The configuration of a host without a file."""
    names = [path for name in BUILTIN_BACKENDS if (path := find_backend(name))]
    return Config([(kind_of(path), path) for path in names])


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"read {path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"read {path}: {error}") from error


def compile_file(paths: Paths) -> Config:
    """Read and check config.toml. Raises ConfigError, which names the key, its value and what is expected."""
    if not os.path.exists(paths.config):
        return builtin()
    table = _read_toml(paths.config)
    _check_keys(paths.config, table, "")
    if table.get("version") != VERSION:
        raise _fail(paths.config, "version", table.get("version"), f"expected {VERSION}")
    return Config(
        _read_backends(paths.config, table.get("backends", list(BUILTIN_BACKENDS))),
        _read_choice(paths.config, table, "mode", MODES),
        _read_choice(paths.config, table, "fail", ("open", "closed")) == "closed",
        _read_calls(paths.config, table.get("calls", {})),
    )


def compile_policy(paths: Paths) -> dict[str, Any] | None:
    """Compile the policy files; None where there is none. Raises ConfigError with all problems."""
    names = configuration.policy_names(paths)
    if not names:
        return None
    try:
        policyfile = _policyfile()
    except ImportError as error:
        raise ConfigError(f"read {paths.policy}: PyYAML cannot be imported: {error}") from error
    try:
        compiled: dict[str, Any] = policyfile.compile_files([Path(paths.policy, name) for name in names])
    except policyfile.PolicyError as error:
        raise ConfigError(str(error)) from error
    return compiled


def _policyfile() -> Any:
    """The compiler; under `-S` the interpreter first has to learn where PyYAML is installed."""
    try:
        from agentrun import policyfile
    except ImportError:
        import site

        site.main()
        from agentrun import policyfile
    return policyfile


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
