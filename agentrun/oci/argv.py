"""Find the verb, the container and the few options we need in a runc or crun command line.

Nothing here changes argv. Whatever cannot be read with certainty yields None, and the caller hands off
untouched. Sources: runc main.go, exec.go, delete.go; crun src/crun.c, exec.c; reference runs of the engines.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Global options, before the verb. The shell front (front/agentrun.in) has the same list.
_GLOBAL_VALUED = frozenset(("root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager"))
_GLOBAL_FLAGS = frozenset(("debug", "systemd-cgroup"))

_EXEC_VALUED = frozenset(
    (
        "console-socket",
        "pidfd-socket",
        "cwd",
        "env",
        "user",
        "additional-gids",
        "process",
        "pid-file",
        "process-label",
        "apparmor",
        "cap",
        "preserve-fds",
        "cgroup",
    )
)
_EXEC_FLAGS = frozenset(("tty", "detach", "no-new-privs", "ignore-paused"))
_EXEC_SHORT = {
    "e": "env",
    "u": "user",
    "g": "additional-gids",
    "p": "process",
    "c": "cap",
    "t": "tty",
    "d": "detach",
}

_VALUED = {
    "exec": _EXEC_VALUED,
    "start": frozenset[str](),
    "delete": frozenset[str](),
    "ps": frozenset(("format",)),
}
_FLAGS = {
    "exec": _EXEC_FLAGS,
    "start": frozenset[str](),
    "delete": frozenset(("force",)),
    "ps": frozenset[str](),
}
_SHORT: Mapping[str, Mapping[str, str]] = {
    "exec": _EXEC_SHORT,
    "start": {},
    "delete": {"f": "force"},
    "ps": {"f": "format"},
}


class Invocation:
    """One runtime command line, read.

    `argv` is what the engine gave, without the program name; `verb_at` is the verb's index in it.
    `options` maps a long option name to all its values in order (flags: an empty string each time).
    """

    __slots__ = ("argv", "command", "container_id", "globals", "options", "verb", "verb_at")

    def __init__(
        self,
        argv: Sequence[str],
        verb_at: int,
        global_options: Mapping[str, list[str]],
        options: Mapping[str, list[str]],
        container_id: str,
        command: Sequence[str],
    ) -> None:
        self.argv = argv
        self.verb_at = verb_at
        self.verb = argv[verb_at]
        self.globals = global_options
        self.options = options
        self.container_id = container_id
        self.command = command

    def last(self, name: str) -> str | None:
        """The value that wins when an option of the verb is given several times."""
        values = self.options.get(name)
        return values[-1] if values else None

    def last_global(self, name: str) -> str | None:
        """The same for a global option."""
        values = self.globals.get(name)
        return values[-1] if values else None


def _split(arg: str, short: Mapping[str, str], known: frozenset[str]) -> tuple[str, str | None]:
    """Split one option into its long name and its attached value, if there is one.

    Go's flag package takes `-name` for `--name`; crun's argp takes `-pFILE` for `-p FILE`.
    """
    bare = arg[2:] if arg.startswith("--") else arg[1:]
    name, equals, value = bare.partition("=")
    if name in known:
        return name, value if equals else None
    if arg.startswith("--") or not bare:
        return "", None
    name = short.get(bare[0], "")
    rest = bare[1:]
    if not rest:
        return name, None
    return name, rest[1:] if rest.startswith("=") else rest


def _read_options(
    argv: Sequence[str],
    start: int,
    valued: frozenset[str],
    flags: frozenset[str],
    short: Mapping[str, str],
) -> tuple[dict[str, list[str]], int] | None:
    """Read options from `start`; returns them and the index of the first positional, or None."""
    options: dict[str, list[str]] = {}
    known = valued | flags
    at = start
    while at < len(argv):
        arg = argv[at]
        if arg == "--":
            return options, at + 1
        if not arg.startswith("-") or arg == "-":
            return options, at
        name, value = _split(arg, short, known)
        if name in valued and value is None:
            at += 1
            if at >= len(argv):
                return None
            value = argv[at]
        elif name not in known:
            return None
        options.setdefault(name, []).append(value or "")
        at += 1
    return options, at


def parse(argv: Sequence[str]) -> Invocation | None:
    """Read a command line (without the program name) of a verb that agentrun handles.

    Returns None for every other verb, and for anything that is not understood to the end.
    """
    read = _read_options(argv, 0, _GLOBAL_VALUED, _GLOBAL_FLAGS, {})
    if read is None:
        return None
    global_options, verb_at = read
    if verb_at >= len(argv) or argv[verb_at] not in _VALUED:
        return None
    verb = argv[verb_at]
    read = _read_options(argv, verb_at + 1, _VALUED[verb], _FLAGS[verb], _SHORT[verb])
    if read is None:
        return None
    options, at = read
    if at >= len(argv):
        return None
    container_id, rest = argv[at], list(argv[at + 1 :])
    if verb != "exec":
        # urfave/cli v1 takes flags after the positional for every verb but exec (`delete ID --force`).
        trailing = _read_options(rest, 0, _VALUED[verb], _FLAGS[verb], _SHORT[verb])
        if trailing is None:
            return None
        for name, values in trailing[0].items():
            options.setdefault(name, []).extend(values)
        rest = rest[trailing[1] :]
    elif rest and rest[0] == "--":
        rest = rest[1:]
    return Invocation(argv, verb_at, global_options, options, container_id, rest)


def possible_ids(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The global `--root` and the words that may name a container, for any verb's command line."""
    read = _read_options(argv, 0, _GLOBAL_VALUED, _GLOBAL_FLAGS, {})
    if read is None:
        return None, []
    roots = read[0].get("root")
    return roots[-1] if roots else None, [arg for arg in argv[read[1] + 1 :] if not arg.startswith("-")]


def exec_id(pid_file: str | None) -> str | None:
    """The engine's id of the exec, which is in the path of the pid file it asks for.

    containerd and docker: `<task>/ID.pid` (shim process/exec.go); podman: `<bundle>/ID/exec_pid`
    (libpod container_exec.go, execPidPath). None where the path says nothing.
    """
    if pid_file is None:
        return None
    head, _, name = pid_file.rpartition("/")
    return head.rpartition("/")[2] or None if name == "exec_pid" else name.removesuffix(".pid")


def absolute(path: str | None) -> str | None:
    """A path of the command line, for those who are in another directory."""
    return path if path is None or path.startswith("/") else f"{posix.getcwd()}/{path}"
