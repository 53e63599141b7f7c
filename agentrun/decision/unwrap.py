"""What a call really runs: argv without `timeout`, `env`, `sudo`, `bash -lc` and the like around it.

    timeout -k 5s 30s bash -lc 'cd /repo && AGENTRUN_INTENT=memory=2g pytest -q'
    words: pytest -q      assignments: AGENTRUN_INTENT=memory=2g      through: timeout, bash, cd

Only looked at: what is started is always the argv as it came. A command that cannot be understood is taken as
it stands, which at worst means that no rule matches it.
"""

from __future__ import annotations

from agentrun.decision import shellwords

_DEPTH_LIMIT = 12
_WORDS_LIMIT = 256
_SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ash", "ksh"))
# Programs that run another: their options that take a value, and how many plain words come before the
# command.
_WRAPPERS: dict[str, tuple[frozenset[str], int]] = {
    "timeout": (frozenset(("-k", "--kill-after", "-s", "--signal")), 1),
    "nice": (frozenset(("-n", "--adjustment")), 0),
    "ionice": (frozenset(("-c", "--class", "-n", "--classdata", "-p", "-P", "-u")), 0),
    "stdbuf": (frozenset(("-i", "-o", "-e", "--input", "--output", "--error")), 0),
    "sudo": (
        frozenset(("-u", "-g", "-h", "-p", "-C", "-r", "-t", "-T", "-U", "-D", "-R", "--user", "--group",
                   "--chdir", "--host", "--prompt", "--chroot")),
        0,
    ),
    "env": (frozenset(("-u", "--unset", "-C", "--chdir", "-S", "--split-string")), 0),
    "nohup": (frozenset(), 0),
    "setsid": (frozenset(), 0),
    "time": (frozenset(("-f", "-o", "--format", "--output")), 0),
    "exec": (frozenset(("-a",)), 0),
    "command": (frozenset(), 0),
    "taskset": (frozenset(), 1),
    "chrt": (frozenset(("-T", "-P", "-D")), 1),
    "xvfb-run": (frozenset(("-n", "-s", "-e", "-f", "-w", "--server-num", "--server-args")), 0),
}  # fmt: skip
# Launchers that name a tool: `uv run pytest` is pytest. (words after the program, options with a value)
_LAUNCHERS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "npx": ((), frozenset(("-p", "--package", "-c", "--call"))),
    "bunx": ((), frozenset(("-p", "--package"))),
    "uvx": ((), frozenset(("--from", "--with", "-p", "--python"))),
    "uv": (("run",), frozenset(("--with", "-p", "--python", "--project", "--extra", "--group", "--env-file",
                               "--directory", "--with-requirements", "--index-url"))),
    "poetry": (("run",), frozenset(("-C", "--directory", "-P", "--project"))),
    "pipenv": (("run",), frozenset()),
    "pdm": (("run",), frozenset(("-p", "--project"))),
    "hatch": (("run",), frozenset(("-e", "--env"))),
    "pnpm": (("exec",), frozenset(("-C", "--dir", "--filter"))),
    "yarn": (("exec",), frozenset()),
    "bundle": (("exec",), frozenset()),
    "conda": (("run",), frozenset(("-n", "--name", "-p", "--prefix"))),
}  # fmt: skip
_PYTHON_VALUED = frozenset(("-W", "-X", "--check-hash-based-pycs"))
# Shell commands before the one that counts: `cd /repo && pytest`.
_PREPARATIONS = frozenset(
    ("cd", "export", "set", "source", ".", "umask", "ulimit", "pushd", "true", ":", "unset", "shopt")
)
# Programs whose first word decides what a call needs. Only words known here are ever stored: any other could
# be anybody's secret.
_INSTALLERS = frozenset(
    ("install", "i", "ci", "add", "update", "upgrade", "sync", "download", "lock", "create")
)
_BUILDERS = frozenset(
    (
        "build",
        "test",
        "run",
        "check",
        "clippy",
        "bench",
        "doc",
        "vet",
        "package",
        "lint",
        "restore",
        "verify",
        "assemble",
    )
)
_CHORES = frozenset(("clone", "fetch", "pull", "push", "gc", "checkout", "rebase", "merge"))
_VERBS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("npm", "pnpm", "yarn", "bun", "cargo", "go", "dotnet", "mvn", "gradle", "bazel", "uv",
                     "poetry"), _INSTALLERS | _BUILDERS),
    **dict.fromkeys(("pip", "pip3", "apt", "apt-get", "apk", "dnf", "yum", "conda", "mamba", "bundle",
                     "composer", "brew", "pipenv", "pdm"), _INSTALLERS),
    "git": _CHORES,
}  # fmt: skip


class Command:
    """`words` that count, `assignments` (NAME=value) on the way to them, names of what was taken off."""

    __slots__ = ("assignments", "through", "words")

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.assignments: list[str] = []
        self.through: list[str] = []

    @property
    def program(self) -> str:
        """The program's name without its directory."""
        return base_name(self.words[0]) if self.words else ""

    @property
    def family(self) -> str:
        """What calls like this one have in common, in the words of a rule: `pytest`, `npm install`."""
        program = self.program
        known = _VERBS.get(program)
        if known is None:
            return program
        verb = next((word for word in self.words[1:] if not word.startswith("-")), "")
        return f"{program} {verb}" if verb in known else program


def base_name(path: str) -> str:
    """The last component of a path."""
    return path.rpartition("/")[2]


def is_assignment(word: str) -> bool:
    """Whether a word is `NAME=value` with a name that a shell would take."""
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isascii() and name.isidentifier()


def unwrap(argv: list[object]) -> Command:
    """What `argv` really runs. Never raises, whatever is in it."""
    command = Command([word for word in argv[:_WORDS_LIMIT] if isinstance(word, str)])
    for _ in range(_DEPTH_LIMIT):
        before = command.words
        _take_layer(command)
        if command.words is before or not command.words:
            break
    return command


def _take_layer(command: Command) -> None:
    words, program = command.words, command.program
    if words and is_assignment(words[0]):
        command.assignments.append(words[0])
        command.words = words[1:]
    elif program in _SHELLS:
        _take_shell(command)
    elif program in _WRAPPERS:
        _take_wrapper(command, *_WRAPPERS[program])
    elif program in _LAUNCHERS:
        _take_launcher(command, *_LAUNCHERS[program])
    elif program.startswith("python") and not program[6:].strip("0123456789."):
        _take_python(command)


def _skip_options(words: list[str], start: int, valued: frozenset[str]) -> int:
    at = start
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        if words[at] == "--":
            return at + 1
        at += 2 if words[at] in valued else 1
    return at


def _replace(command: Command, words: list[str]) -> None:
    """Go on with the wrapped words; a wrapper without any (`env`, `nice`) is itself the command."""
    if words:
        command.through.append(command.program)
        command.words = words


def _take_wrapper(command: Command, valued: frozenset[str], plain: int) -> None:
    words = command.words
    at = _skip_options(words, 1, valued)
    if command.program == "env":
        split = _split_string(words[1:at])
        if split is not None:
            _replace(command, split + words[at:])
            return
    if command.program in ("env", "sudo"):
        while at < len(words) and is_assignment(words[at]):
            command.assignments.append(words[at])
            at += 1
    _replace(command, words[at + plain :])


def _split_string(options: list[str]) -> list[str] | None:
    """The words of `env -S 'K=V cmd'`."""
    for at, option in enumerate(options):
        for prefix in ("-S", "--split-string="):
            if option in ("-S", "--split-string") and at + 1 < len(options):
                return shellwords.first_command(options[at + 1])[0]
            if option.startswith(prefix) and option != prefix and option != "--split-string":
                return shellwords.first_command(option[len(prefix) :])[0]
    return None


def _take_shell(command: Command) -> None:
    """The first command of `-c STRING` that does something; a script or an interactive shell stays."""
    words = command.words
    at, is_string = 1, False
    while at < len(words) and words[at][:1] in "-+" and len(words[at]) > 1:
        option = words[at]
        if option == "--":
            at += 1
            break
        is_string |= option.startswith("-") and not option.startswith("--") and "c" in option
        # The last letter of a bundle such as -euo takes the next word.
        is_valued = option in ("--rcfile", "--init-file") or (option[1] != "-" and option[-1] in "oO")
        at += 2 if is_valued else 1
    if not is_string or at >= len(words):
        return
    found = shellwords.commands(words[at])
    exported: list[str] = []
    for simple in found:
        head = simple[0]
        if head == "export":
            exported += filter(is_assignment, simple[1:])
        if head not in _PREPARATIONS and not all(map(is_assignment, simple)):
            command.assignments += exported
            _replace(command, simple)
            return
    if found:
        command.assignments += exported
        _replace(command, found[-1])


def _take_launcher(command: Command, verbs: tuple[str, ...], valued: frozenset[str]) -> None:
    words = command.words
    at = _skip_options(words, 1, valued)
    for verb in verbs:
        if at >= len(words) or words[at] != verb:
            return
        at = _skip_options(words, at + 1, valued)
    _replace(command, words[at:])


def _take_python(command: Command) -> None:
    """`python -m pytest -q` is pytest -q; a script stays what it is."""
    words, at = command.words, 1
    while at < len(words) and words[at].startswith("-"):
        option = words[at]
        if option == "-m" and at + 1 < len(words):
            _replace(command, words[at + 1 :])
            return
        if not option.startswith("--") and option.endswith("m") and "c" not in option:
            _replace(command, words[at + 1 :])  # -Im pytest
            return
        if option in ("-", "--", "-c"):
            return
        at += 2 if option in _PYTHON_VALUED else 1
