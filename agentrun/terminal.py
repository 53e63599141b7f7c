"""Text on a terminal. What a container chose (names of programs, intents) must not steer it."""

from __future__ import annotations

from rich.text import Text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plain(text: object) -> Text:
    """A text without markup; characters that do not print (escapes, newlines, bidi marks) become `?`."""
    return Text("".join(char if char.isprintable() else "?" for char in str(text)))


def format_size(size: float | None) -> str:
    """Bytes for people: `64 MiB`; a dash for None."""
    if size is None:
        return "-"
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if size >= 10 or unit == 0 else f"{size:.1f} {_UNITS[unit]}"
