"""Text on a terminal. What a container chose (names of programs, intents) must not steer it."""

from __future__ import annotations

from rich.text import Text


def plain(text: object) -> Text:
    """A text without markup; characters that do not print (escapes, newlines, bidi marks) become `?`."""
    return Text("".join(char if char.isprintable() else "?" for char in str(text)))
