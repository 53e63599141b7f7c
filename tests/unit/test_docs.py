"""The documentation: its links lead somewhere, its commands exist, its tables are whole."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from agentrun.cli.main import cli

TREE = Path(__file__).parents[2]
DATA = TREE / "docs/data"
PAGES = [*(TREE / f"{name}.md" for name in ("README", "NEWS", "CONTRIBUTING")), *TREE.glob("docs/**/*.md")]
SOURCES = [
    TREE / "Makefile",
    *(path for folder in ("agentrun", "configs") for path in (TREE / folder).rglob("*") if path.is_file()),
    *(TREE / "bpf").glob("*.[ch]"),
    *(TREE / "tests").rglob("*.py"),
]
README_WORDS = 700

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n?)+", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_MENTION = re.compile(r"docs/[\w./-]*\.(?:md|svg|jsonl)")
_TABLE = re.compile(r"(?:^\|.*\n?)+", re.MULTILINE)
_DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
_OURS = re.compile(r"^(tests|configs|docs|bpf|agentrun|hooks)/[\w./-]+$")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))


@cache
def text_of(page: Path) -> str:
    return page.read_text()


@cache
def prose_of(page: Path) -> str:
    """A page without its blocks of code."""
    return _INDENTED.sub("", _FENCE.sub("", text_of(page)))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub makes of a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", text_of(page))):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return frozenset(found)


def code_of(page: Path) -> Iterator[str]:
    """Lines of code, with those that go on in the next one joined; and what stands between backticks."""
    fences = _FENCE.findall(text_of(page))
    blocks = [block.split("\n", 1)[1].removesuffix("```") for block in fences]
    blocks += _INDENTED.findall(_FENCE.sub("", text_of(page)))
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()
    yield from (" ".join(span.split()) for span in _SPAN.findall(prose_of(page)))


def commands_of(page: Path) -> Iterator[list[str]]:
    """Commands as words, without `sudo` and without variables in front."""
    for line in code_of(page):
        lexer = shlex.shlex(line.strip(), posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a drawing, or prose
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word in (";", "&&", "|"):
                if command:
                    yield command
                command = []
            elif command or not (word == "sudo" or re.match(r"[A-Z_]+=", word)):
                command.append(word)


def known_options(command: click.Command) -> set[str]:
    return {"--help"} | {option for given in command.params for option in given.opts}


def problem_of_agentrunctl(words: list[str]) -> str | None:
    """What a command line of agentrunctl names that is not there."""
    command: click.Command = cli
    options = known_options(command)
    for word in words:
        if word == "--" or word in "<>":
            break
        if word.startswith("--"):
            if word.partition("=")[0] not in options:
                return f"{command.name} has no option {word}"
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return f"{command.name} has no command {word}"
            command = command.commands[word]
            options |= known_options(command)
    return None


def problem_of_make(words: list[str]) -> str | None:
    """What a command line of make names that is no target."""
    targets = set(re.findall(r"^([\w-]+):", (TREE / "Makefile").read_text(), re.MULTILINE))
    wanted = [word for word in words if "=" not in word and word[0] not in "-<>"]
    return (
        None if "-C" in words else next((f"no target {word}" for word in wanted if word not in targets), None)
    )


def problem_of(words: list[str]) -> str | None:
    """What a command names that does not exist."""
    missing = [word for word in words if _OURS.match(word) and not (TREE / word).exists()]
    if missing:
        return f"no file {missing[0]}"
    if words[0] == "systemctl":
        units = [word for word in words if word.startswith("agentrun")]
        known = {unit.stem for unit in (TREE / "configs").glob("*.service")}
        return next((f"no unit {unit}" for unit in units if unit.removesuffix(".service") not in known), None)
    checks = {"agentrunctl": problem_of_agentrunctl, "make": problem_of_make}
    check = checks.get(words[0])
    return check(words[1:]) if check else None


def cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row)) - 1


@every_page
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in _LINK.findall(_SPAN.sub("", prose_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@every_page
def test_commands_name_what_exists(page):
    problems = [f"{shlex.join(words)}: {text}" for words in commands_of(page) if (text := problem_of(words))]
    assert not problems


@every_page
def test_tables_are_whole(page):
    """A blank line ends a table: a row after it is shown as text."""
    problems = []
    for block in _TABLE.findall(_FENCE.sub("", text_of(page))):
        head, *rows = block.splitlines()
        if not rows or not set(rows[0]) <= set("|-: "):
            problems.append(f"no table: {head}")
        problems += [f"other cells than its head has: {row}" for row in rows if cells(row) != cells(head)]
    assert not problems


@every_page
def test_only_news_and_data_have_dates(page):
    if page.name != "NEWS.md" and page.parent != DATA:
        assert not _DATE.findall(text_of(page))


def test_every_page_is_linked_from_another():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in _LINK.findall(text_of(page))
    }
    assert not [page for page in PAGES if page.name != "README.md" and page.resolve() not in linked]


def test_readme_is_short():
    assert len(text_of(TREE / "README.md").split()) <= README_WORDS


def test_code_and_configuration_name_pages_that_exist():
    wrong = [
        f"{source.relative_to(TREE)}: {name}"
        for source in SOURCES
        if source.suffix not in (".pyc", ".o") and source != Path(__file__)
        for name in _MENTION.findall(source.read_text(errors="replace"))
        if not (TREE / name).exists()
    ]
    assert not wrong
