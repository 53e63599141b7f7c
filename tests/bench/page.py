"""Tables that stand between marks in a page of docs/."""

from __future__ import annotations

from pathlib import Path


def write_between(page: Path, mark: str, text: str) -> None:
    """Put a text between `<!-- MARK -->` and `<!-- end of MARK -->`."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
