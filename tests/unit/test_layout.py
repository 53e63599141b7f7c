"""Who may import whom, and who alone may do what. A package is light or heavy as a whole.

The six light packages are the hot path: they import builtins of the interpreter only, and the bundle is just
these, but for what is imported later on purpose (LATER). Two imports leave them, inside a function (SEAMS).

Where the code needs more than "only X does Y", a table here says who and why. Cgroup files are written by way
of `Cgroup`, by `kernel.killing` as well; who opens one itself is in WRITERS, as is all that opens a file for
writing. `calls.netmark` looks at bpffs (one readdir: bpf(2) would need ctypes) and changes nothing there. Two
modules have netlink sockets, of two protocols: `net.netlink` (rtnetlink) and `kernel.procevents` (the proc
connector). `front` is no package: it starts the hot path, and becomes the backend where that is broken.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from agentrun.front import bundle

TREE = Path(__file__).parents[2]
ROOT = TREE / "agentrun"
# A package may import what its row names, itself, and `base`.
LIGHT = {
    "base": "",
    "cgroups": "",
    "oci": "",
    "decision": "oci",
    "calls": "cgroups oci decision",
    "runtime": "cgroups oci decision calls",
}
HEAVY = {
    "terminal": "",
    "kernel": "cgroups",
    "service": "kernel",
    "policy": "oci decision",
    "feedback": "calls kernel",
    "store": "decision calls",
    "learning": "calls store",
    "bpf": "decision calls",
    "net": "cgroups oci decision calls service kernel terminal",
    "client": "cgroups calls kernel store",
    "daemon": "cgroups oci decision calls kernel service feedback store learning bpf net",
    "trace": "cgroups oci calls kernel client terminal",
    "replay": "terminal",
    "doctor": "cgroups oci decision calls kernel service store bpf net daemon policy",
}
TOP = {"cli"}  # imports anything, and nobody imports it
SEAMS = {
    ("decision.inforce", "policy.hostconfig"),  # a source of the configuration changed
    ("runtime.admission", "feedback.text"),  # a call is refused
}
# Light modules that the hot path imports when it needs them, which is seldom, or not at all.
LATER = {
    "calls.release",  # agentrund died and left calls frozen
    "oci.backend",  # a pinned kind that is not in the configuration; the compiler of that
    "runtime.admission",  # memory is short, and the policy has calls wait
}
# Who opens files for writing, and which; a module that is not here goes through one that is.
WRITERS = {
    "base.files": "any, safely",
    "base.journal": "journals",
    "bpf.modules": "a lock",
    "calls.release": "what agentrund holds",
    "calls.slots": "states of calls",
    "cgroups.cgroup": "cgroupfs",
    "daemon.controller.controller": "cgroupfs: a trigger in memory.pressure",
    "daemon.parts.oomorder": "oom_score_adj of others",
    "feedback.keeper": "stderr of calls",
    "replay.command": "reports",
    "replay.engines": "bundles",
    "replay.parent": "cgroupfs: the parent of a replay's containers, which are not ours",
    "replay.run": "cgroupfs: of a replay's containers",
    "replay.worker": "a file in the container",
    "runtime.exec": "our own oom_score_adj",
    "store.database": "the store's locks",
}
EXECVE = {"oci.handoff"}
NETLINK = {"net.netlink", "kernel.procevents"}
BPFFS = {"calls.netmark"}  # beside all of `bpf`
PINS = {"doctor.bpf"}  # beside all of `bpf`: whether bpffs is there
_WRITE_FLAGS = {"O_WRONLY", "O_RDWR"}
_WRITE_METHODS = {"write_text", "write_bytes"}


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` (then without a name)."""

    module: str
    name: str | None
    is_lazy: bool  # inside a function
    is_hint: bool  # for the type checker

    @property
    def target(self) -> str:
        """What is reached, below `agentrun`."""
        return f"{self.module}.{self.name}".removeprefix("agentrun.") if self.name else self.module


@dataclass(frozen=True)
class Module:
    """One module of a tree: its dotted name below `agentrun`, and its source."""

    name: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """Its first part: `daemon` of daemon.parts.stalls; a module beside the packages is one of its own."""
        return self.name.partition(".")[0]

    @cached_property
    def imports(self) -> list[Import]:
        """All imports, wherever they are."""
        functions = [n for n in ast.walk(self.tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        lazy = {id(inner) for function in functions for inner in ast.walk(function)}
        blocks = [n for n in ast.walk(self.tree) if isinstance(n, ast.If) and bundle.is_for_checkers(n)]
        hints = {id(inner) for block in blocks for node in block.body for inner in ast.walk(node)}
        found: list[Import] = []
        for node in ast.walk(self.tree):
            where = id(node) in lazy, id(node) in hints
            if isinstance(node, ast.Import):
                found += [Import(alias.name, None, *where) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [Import(str(node.module), alias.name, *where) for alias in node.names]
        return found

    @cached_property
    def texts(self) -> set[str]:
        """String constants that are not docstrings."""
        bodies = [
            n.body for n in ast.walk(self.tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))
        ]
        docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        constants = [n for n in ast.walk(self.tree) if isinstance(n, ast.Constant) and id(n) not in docs]
        return {n.value for n in constants if isinstance(n.value, str)}

    def attributes(self) -> set[str]:
        """Names after a dot, anywhere, and names that are imported."""
        names = {n.attr for n in ast.walk(self.tree) if isinstance(n, ast.Attribute)}
        return names | {one.name for one in self.imports if one.name}

    def opens_for_writing(self) -> bool:
        """Whether a file is opened for writing here."""
        if self.attributes() & (_WRITE_FLAGS | _WRITE_METHODS):
            return True
        return any(_is_writing_open(node) for node in ast.walk(self.tree))


def _is_writing_open(node: ast.AST) -> bool:
    """`open(path, "w")`, `path.open("a")` and their like."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in ("open", "fdopen"):
        return False
    given = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
    modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes)


@cache
def read(root: Path) -> tuple[Module, ...]:
    """All modules of a tree but those of `front`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and parts[0] != "front":
            found.append(Module(name, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def is_ours(one: Import) -> bool:
    """Whether it reaches a package of ours; `agentrun` itself has its version only."""
    return one.module.startswith("agentrun.") or (one.module == "agentrun" and one.name != "__version__")


def wrong_imports(root: Path) -> Iterator[str]:
    """Imports of ours that the tables do not allow."""
    rows = {**LIGHT, **HEAVY}
    for module in read(root):
        if module.package in TOP:
            continue
        if module.package not in rows:
            yield f"{module.name}: no package of the tables"
            continue
        allowed = {module.package, "base", *rows[module.package].split()}
        for one in filter(is_ours, module.imports):
            is_seam = one.is_lazy and (module.name, one.target) in SEAMS
            if one.target.partition(".")[0] not in allowed and not is_seam:
                yield f"{module.name} imports {one.target}"


def unused_seams(root: Path) -> Iterator[str]:
    """Seams that nothing uses any more."""
    modules = {module.name: module for module in read(root)}
    for source, target in sorted(SEAMS):
        if source not in modules or target not in {one.target for one in modules[source].imports}:
            yield f"{source} does not import {target}"


def circles(root: Path) -> Iterator[str]:
    """Packages that import each other, be it through others (by name, not in the order of the circle)."""
    below: dict[str, set[str]] = {}
    for module in read(root):
        arrows = below.setdefault(module.package, set())
        for one in filter(is_ours, module.imports):
            if (module.name, one.target) not in SEAMS:
                arrows.add(one.target.partition(".")[0])
        arrows.discard(module.package)
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        yield " -> ".join(sorted(set(error.args[1])))


def slow_imports(root: Path) -> Iterator[str]:
    """What a light module imports and is neither ours, nor a builtin, nor put off, nor a hint.

    What an `except` imports stands in for a builtin that an interpreter lacks (see `bundle.statements`).
    """
    for module in read(root):
        if module.package not in LIGHT:
            continue
        for node in bundle.statements(module.tree.body):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.partition(".")[0] != "agentrun" and name not in bundle.BUILTINS:
                    yield f"{module.name} imports {name}"


def strays(root: Path) -> Iterator[str]:
    """Things that are done outside of the one place for them."""
    for module in read(root):
        attributes = module.attributes()
        if any(a.startswith("exec") and a.removeprefix("exec") in _EXEC for a in attributes):
            yield from _unless(module.name in EXECVE, f"{module.name} calls execve")
        if "AF_NETLINK" in attributes or any(
            one.module.split(".")[0] == "pyroute2" for one in module.imports
        ):
            yield from _unless(module.name in NETLINK, f"{module.name} speaks netlink")
        if any("/sys/fs/bpf" in text for text in module.texts):
            yield from _unless(module.package == "bpf" or module.name in BPFFS, f"{module.name} knows bpffs")
        if any(one.target.startswith("bpf.pins") for one in module.imports):
            yield from _unless(module.package == "bpf" or module.name in PINS, f"{module.name} uses pins")
        if module.opens_for_writing():
            yield from _unless(module.name in WRITERS, f"{module.name} opens a file for writing")


_EXEC = {"v", "ve", "vp", "vpe", "l", "le", "lp", "lpe"}


def _unless(is_fine: bool, problem: str) -> list[str]:
    return [] if is_fine else [problem]


def idle_exceptions(root: Path) -> Iterator[str]:
    """Modules that the tables allow something that they do not do."""
    modules = {module.name: module for module in read(root)}
    for name in sorted(WRITERS):
        if name not in modules or not modules[name].opens_for_writing():
            yield f"{name} opens no file for writing"
    for name in sorted(EXECVE | NETLINK | BPFFS | PINS | LATER):
        if name not in modules:
            yield f"{name} is not there"


RULES = (wrong_imports, unused_seams, circles, slow_imports, strays, idle_exceptions)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps_the_rules(rule):
    assert list(rule(ROOT)) == []


def test_bundle_is_the_light_packages():
    """A module that fell out of the bundle costs each call 0.1 ms, and nothing else would tell."""
    light = {module.name for module in read(ROOT) if module.package in LIGHT}
    bundled = {name.removeprefix("agentrun.") for name in bundle.bundle(str(ROOT)) if name != "agentrun"}
    assert bundled == light - LATER


def test_every_package_says_what_it_is():
    for folder in (path.parent for path in ROOT.rglob("*.py")):
        if folder.name != "front":
            tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), folder


IN_STRINGS = re.compile(r"\bfrom (agentrun[\w.]*) import ([\w, ]+)")
MADE_UP = {"test_layout.py", "test_bundle.py"}  # their strings are trees of their own


def gone(text: str) -> Iterator[str]:
    """What a program in a string imports of ours and is not there."""
    for module, names in IN_STRINGS.findall(text):
        path = bundle.find(str(ROOT), module)
        for name in (word.split()[0] for word in names.split(",") if word.strip()):
            is_module = bundle.find(str(ROOT), f"{module}.{name}") is not None
            is_named = path is not None and re.search(rf"\b{name}\b", Path(path).read_text(encoding="utf-8"))
            if not is_module and not (is_named and not str(path).endswith("__init__.py")):
                yield f"{module}.{name}"


def test_programs_in_strings_import_what_is_there():
    """What is run in another process, or in a guest, no type checker has seen."""
    problems = []
    for path in [*ROOT.rglob("*.py"), *(TREE / "tests").rglob("*.py")]:
        if path.name not in MADE_UP:
            strings = Module(path.name, ast.parse(path.read_text(encoding="utf-8"))).texts
            problems += [f"{path.relative_to(TREE)}: {name}" for text in strings for name in gone(text)]
    assert problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import sys; from agentrun.cli.main import main; main()", []),
        ("from agentrun.oci import handoff, argv\n", []),
        ("from agentrun.ctl import main", ["agentrun.ctl.main"]),
        ("from agentrun import errors", ["agentrun.errors"]),
        ("x\nfrom agentrun.base.errors import AgentrunError, Gone\n", ["agentrun.base.errors.Gone"]),
    ],
)
def test_program_that_imports_what_is_gone_is_told(text, problem):
    assert list(gone(text)) == problem


FINE = {
    "decision/inforce.py": "def load():\n    from agentrun.policy import hostconfig\n",
    "runtime/admission.py": "def refuse():\n    from agentrun.feedback import text\n",
    "policy/hostconfig.py": "from agentrun.decision import inforce\n",
    "decision/plan.py": "from agentrun.oci import engine\n",
}


@pytest.fixture
def tree(tmp_path):
    """Writes a small tree that keeps the rules, and other files: `tree({path: text})`."""

    def write(files: dict[str, str]) -> Path:
        for name, text in {**FINE, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_small_tree_keeps_the_rules(tree):
    root = tree(
        {"cli/main.py": "from agentrun.daemon import main\n", "front/oci.py": "posix.execve(1, 2, 3)\n"}
    )
    assert [problem for rule in RULES[:-1] for problem in rule(root)] == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "problem"),
    [
        (wrong_imports, "base/a.py", "from agentrun.oci import argv", "base.a imports oci.argv"),
        (wrong_imports, "oci/a.py", "from agentrun import calls", "oci.a imports calls"),
        (wrong_imports, "oci/a.py", "import agentrun.calls.slots", "oci.a imports agentrun.calls.slots"),
        (
            wrong_imports,
            "calls/a.py",
            "def f():\n  from agentrun.kernel import b",
            "calls.a imports kernel.b",
        ),
        (
            wrong_imports,
            "calls/a.py",
            "if TYPE_CHECKING:\n  from agentrun.bpf import b",
            "calls.a imports bpf.b",
        ),
        (wrong_imports, "daemon/parts/a.py", "from agentrun.cli import b", "daemon.parts.a imports cli.b"),
        (wrong_imports, "client.py", "from agentrun.daemon import b", "client imports daemon.b"),
        (wrong_imports, "attic/a.py", "", "attic.a: no package of the tables"),
        (
            wrong_imports,
            "decision/inforce.py",
            "from agentrun.policy import hostconfig",
            "decision.inforce imports",
        ),
        (wrong_imports, "decision/a.py", FINE["decision/inforce.py"], "decision.a imports policy.hostconfig"),
        (unused_seams, "decision/inforce.py", "", "decision.inforce does not import policy.hostconfig"),
        (circles, "oci/a.py", "from agentrun.policy import b", "decision -> oci -> policy"),
        (slow_imports, "calls/a.py", "import hashlib", "calls.a imports hashlib"),
        (slow_imports, "calls/a.py", "import errno, struct", "calls.a imports struct"),
        (slow_imports, "calls/a.py", "from os.path import join", "calls.a imports os.path"),
        (strays, "calls/a.py", "import os\nos.execv('a', [])", "calls.a calls execve"),
        (strays, "daemon/a.py", "from posix import execve", "daemon.a calls execve"),
        (strays, "net/a.py", "socket.socket(socket.AF_NETLINK)", "net.a speaks netlink"),
        (strays, "net/a.py", "def f():\n  from pyroute2 import IPRoute", "net.a speaks netlink"),
        (strays, "daemon/a.py", "A = '/sys/fs/bpf/agentrun'", "daemon.a knows bpffs"),
        (strays, "daemon/a.py", "from agentrun.bpf import pins", "daemon.a uses pins"),
        (strays, "daemon/a.py", "os.open('memory.max', os.O_WRONLY)", "daemon.a opens a file for writing"),
        (strays, "daemon/a.py", "open('memory.max', 'w')", "daemon.a opens a file for writing"),
        (strays, "daemon/a.py", "open('memory.max', mode='r+b')", "daemon.a opens a file for writing"),
        (strays, "daemon/a.py", "(path / 'cpu.max').write_text('1')", "daemon.a opens a file for writing"),
        (idle_exceptions, "base/files.py", "", "base.files opens no file for writing"),
    ],
)
def test_each_rule_can_fail(tree, rule, name, text, problem):
    found = list(rule(tree({name: text + "\n"})))
    assert any(problem in each for each in found), found


@pytest.mark.parametrize(
    "text",
    [
        "open(path)",
        "open(path, 'rb')",
        "os.open(path, os.O_RDONLY)",
        "'''In /sys/fs/bpf.'''",
        "def execute(): pass",
        "try:\n  import _json\nexcept ImportError:\n  import json",
    ],
)
def test_what_is_fine_is_not_told(tree, text):
    root = tree({"calls/a.py": text + "\n"})
    assert [problem for rule in RULES[:-1] for problem in rule(root)] == []
