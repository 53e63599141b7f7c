"""What all integration tests share: the host, and which of them are run in which guest."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import matrix
import needs
import pytest
from runtimes import LOG, leftovers, missing, require

WANTED = pytest.StashKey[list[needs.Wanted]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guest", choices=needs.GUESTS, help="run only what belongs into this kind of guest")
    parser.addoption(
        "--matrix", choices=matrix.KINDS, default="whole", help="cases of engines, runtimes and drivers"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, as deselected, what another run is for."""
    for item in items:
        item.stash[WANTED] = needs_of(item)
    kept = pairwise(items) if config.getoption("matrix") == "pairwise" else list(items)
    if guest := config.getoption("guest"):
        kept = [item for item in kept if belongs(item, guest)]
    if gone := set(items) - set(kept):
        config.hook.pytest_deselected(items=[item for item in items if item in gone])
        items[:] = kept


def needs_of(item: pytest.Item) -> list[needs.Wanted]:
    """All that the marks of a test, its module and its parameters name."""
    try:
        texts = {text for mark in item.iter_markers("needs") for text in mark.args}
        return sorted(map(needs.parse, texts))
    except needs.UnknownNeedError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None


def belongs(item: pytest.Item, guest: str) -> bool:
    wanted = item.stash[WANTED]
    return needs.runs_in(guest, wanted, is_smoke=item.get_closest_marker("smoke") is not None)


def pairwise(items: list[pytest.Item]) -> list[pytest.Item]:
    """Without the cases of a test that a pairwise run does not need."""
    cases: dict[tuple[Any, str], dict[matrix.Row, pytest.Item]] = defaultdict(dict)
    for item in items:
        if row := row_of(item):
            assert isinstance(item, pytest.Function)
            cases[item.parent, item.originalname][row] = item
    gone = {
        of_test[row]
        for of_test in cases.values()
        for row in of_test.keys() - set(matrix.pairwise(list(of_test)))
    }
    return [item for item in items if item not in gone]


def row_of(item: pytest.Item) -> matrix.Row:
    """A test's place on all of its axes; nothing where it does not run in the cells of a matrix."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or not any(isinstance(value, matrix.Cell) for value in callspec.params.values()):
        return ()
    row: list[Any] = []
    for _, value in sorted(callspec.params.items(), key=lambda one: one[0]):
        row += value if isinstance(value, matrix.Cell) else [repr(value)]
    return tuple(row)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What this guest lacks is named, before any fixture is made."""
    for wanted in item.stash[WANTED]:
        require(wanted.missing_here())


@pytest.fixture(autouse=True, scope="session")
def host():
    """A host that can serve, with an empty log."""
    require(missing())
    LOG.unlink(missing_ok=True)
    yield
    assert leftovers() == []
