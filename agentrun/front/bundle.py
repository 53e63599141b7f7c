"""Build `hotpath.bin`: all modules of the hot path, compiled, in one file. Run by install.sh:

    python3 bundle.py PACKAGE_DIRECTORY OUTPUT INSTALLED

INSTALLED is where the package will be on the host, for tracebacks.
Importing 30 modules the usual way costs 2 to 3 ms of searching, checking and reading, before every tool call.
The file is the interpreter's magic number followed by a marshalled list of (module name, code, whether it is
a package), each after the ones that it imports. `oci.py` runs them; with another interpreter it imports the
sources instead.

A module that is left out is found at run time all the same, and costs each call its search. So a module that
is not there, a name that a package does not have, and a slow module of the standard library are errors.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import os
import sys
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from types import CodeType

PACKAGE = "agentrun"
ENTRY = "agentrun.runtime.verbs"
# All that the hot path may import: what is built into CPython, on some builds a small file beside it (`_json`
# and `fcntl`), or frozen (`stat`). `__future__` is gone once a module is compiled.
BUILTINS = frozenset(("__future__", "_json", "_signal", "errno", "fcntl", "posix", "stat", "sys", "time"))


class BundleError(Exception):
    """The hot path imports what is not there, or what it may not."""


class Module:
    """One module of the package: its source, read."""

    def __init__(self, directory: str, name: str) -> None:
        self.name = name
        path = find(directory, name)
        if path is None:
            raise BundleError(f"no module {name} in {directory}")
        self.path = path
        self.is_package = os.path.basename(path) == "__init__.py"
        with open(path, encoding="utf-8") as file:
            self.tree = ast.parse(file.read(), path)

    def compile(self, path: str) -> CodeType:
        """Compile as -OO does. `from __future__` has its effect here, so that its run-time import can go."""
        self.tree.body = [
            n for n in self.tree.body if not (isinstance(n, ast.ImportFrom) and n.module == "__future__")
        ]
        flags = __future__.annotations.compiler_flag
        code: CodeType = compile(self.tree, path, "exec", flags=flags, dont_inherit=True, optimize=2)
        return code

    def binds(self, name: str) -> bool:
        """Whether the module itself gives a value to `name`."""
        targets = [t for n in self.tree.body if isinstance(n, ast.Assign) for t in n.targets]
        return any(isinstance(target, ast.Name) and target.id == name for target in targets)

    def error(self, node: ast.stmt, text: str) -> BundleError:
        """An error that says which line it is about."""
        return BundleError(f"{self.path}:{node.lineno}: {text}")


def find(directory: str, name: str) -> str | None:
    """The file of a module of the package that is in `directory`; None where there is none."""
    path = os.path.join(directory, *name.split(".")[1:])
    return next((p for p in (path + ".py", os.path.join(path, "__init__.py")) if os.path.isfile(p)), None)


def is_for_checkers(node: ast.stmt) -> bool:
    """Whether it is `if TYPE_CHECKING`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What is run when a module is imported: no functions, no hints for the type checker, no `except`."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for field in ("orelse",) if is_for_checkers(node) else ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []))


def imported(directory: str, module: Module) -> Iterator[str]:
    """Modules of the package that a module imports when it is run. Raises BundleError."""
    for node in statements(module.tree.body):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise module.error(node, "a relative import")
            names = [node.module]
        for name in names:
            if name.partition(".")[0] != PACKAGE:
                if name not in BUILTINS:
                    raise module.error(node, f"{name} is not for the hot path (see BUILTINS)")
                continue
            if find(directory, name) is None:
                raise module.error(node, f"no module {name}")
            yield name
            if isinstance(node, ast.ImportFrom):
                yield from submodules(directory, module, node)


def submodules(directory: str, module: Module, node: ast.ImportFrom) -> Iterator[str]:
    """Which modules `from PACKAGE import ...` takes; the rest are names of the package itself."""
    source = Module(directory, str(node.module))
    for alias in node.names:
        name = f"{source.name}.{alias.name}"
        if source.is_package and find(directory, name) is not None:
            yield name
        elif source.is_package and not source.binds(alias.name):
            raise module.error(node, f"no module {name}")


def collect(directory: str, name: str, modules: dict[str, Module]) -> None:
    """Add a module to `modules`, after its package and all that it imports. Raises BundleError."""
    if name in modules:
        return
    package = name.rpartition(".")[0]
    if package:
        collect(directory, package, modules)
    module = Module(directory, name)
    for other in imported(directory, module):
        if other != name:
            collect(directory, other, modules)
    modules[name] = module


def bundle(directory: str, entry: str = ENTRY) -> dict[str, Module]:
    """All modules of the hot path, in the order in which they are to be run. Raises BundleError."""
    modules: dict[str, Module] = {}
    collect(directory, entry, modules)
    return modules


def main() -> None:
    """Write the bundle."""
    directory, output, installed = sys.argv[1:]
    try:
        modules = bundle(directory)
    except (BundleError, SyntaxError) as error:
        sys.exit(f"bundle: {error}")
    rows = []
    for name, module in modules.items():
        path = os.path.join(installed, os.path.relpath(module.path, directory))
        rows.append((name, module.compile(path), module.is_package))
    with open(output, "wb") as file:
        file.write(MAGIC_NUMBER + marshal.dumps(rows))


if __name__ == "__main__":
    main()
