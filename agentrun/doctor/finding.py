"""What was looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `ok`, `note` (works, but know this) or `problem`."""

    level: str
    what: str
    text: str
