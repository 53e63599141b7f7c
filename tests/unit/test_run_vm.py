"""tests/run-vm: what it takes from pytest's report, which decides what runs again and what is told."""

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TESTS = """
import pytest

def test_fails(): assert 1 == 2, "a - b"
@pytest.mark.parametrize("word", ["two words", "a-b"])
def test_with(word): assert word == "a-b"
@pytest.fixture
def broken():
    yield
    raise OSError("gone")
def test_teardown(broken): pass
"""


@pytest.fixture(scope="module")
def run_vm() -> ModuleType:
    """The script as a module."""
    path = str(Path(__file__).parents[1] / "run-vm")
    loader = importlib.machinery.SourceFileLoader("run_vm", path)
    spec = importlib.util.spec_from_loader("run_vm", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_vm"] = module
    loader.exec_module(module)
    return module


def test_failures_of_a_real_report_are_found(run_vm: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, *run_vm.PYTEST[1:], "test_it.py"]
    report = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True).stdout
    result = run_vm.Result("test-it", [], status=1)
    for line in report.splitlines():
        result.read(line + "\n")
    assert sorted(result.failed) == [
        "test_it.py::test_fails",
        "test_it.py::test_teardown",
        "test_it.py::test_with[two words]",
    ]
    assert any("2 failed, 2 passed, 1 error in" in line for line in result.lines())


def test_only_few_failures_run_again_and_what_passes_then_is_named(
    run_vm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run_tests(name: str, options: list[str], tests: list[str]) -> object:
        ran.append(tests)
        return run_vm.Result(name, options, status=0 if "lucky" in tests[0] else 1)

    monkeypatch.setattr(run_vm, "run_tests", run_tests)
    good = run_vm.Result("good", [], status=0)
    lucky = run_vm.Result("lucky", [], status=1, failed=["t.py::lucky"])
    bad = run_vm.Result("bad", [], status=1, failed=["t.py::bad"])
    run_vm.run_again([good, lucky, bad])
    assert ran == [["t.py::lucky"], ["t.py::bad"]]
    assert [r.status for r in (good, lucky, bad)] == [0, 0, 1]
    assert any("UNSTABLE" in line for line in lucky.lines())
    assert not any("UNSTABLE" in line for line in (*good.lines(), *bad.lines()))


@pytest.mark.parametrize("failed", [[], [f"t.py::{n}" for n in range(9)]])
def test_a_dead_vm_or_many_failures_do_not_run_again(
    run_vm: ModuleType, monkeypatch: pytest.MonkeyPatch, failed: list[str]
) -> None:
    monkeypatch.setattr(run_vm, "run_tests", None)
    result = run_vm.Result("part", [], status=1, failed=failed)
    run_vm.run_again([result])
    assert result.status == 1
