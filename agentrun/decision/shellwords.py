"""Split a shell command string into words, to look at it. Nothing is expanded and nothing is run.

Follows POSIX (Shell Command Language, 2.2 and 2.3) as far as the head of a simple command needs: quotes,
backslashes, comments, and where a command ends (`;`, `&`, `|`, newline, redirections, parentheses).
"""

from __future__ import annotations

_LIMIT = 4096  # characters that are looked at
_ENDS = frozenset(";&|()\n")
_BLANKS = frozenset(" \t\r")
_ESCAPED_IN_DOUBLE_QUOTES = frozenset('$`"\\\n')


class _Reader:
    __slots__ = ("at", "parts", "started", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.begin()

    def begin(self) -> None:
        self.parts: list[str] = []
        self.started = False

    def single(self) -> None:
        end = self.text.find("'", self.at + 1)
        end = len(self.text) if end < 0 else end
        self.parts.append(self.text[self.at + 1 : end])
        self.at = end + 1

    def double(self) -> None:
        self.at += 1
        while self.at < len(self.text) and (char := self.text[self.at]) != '"':
            following = self.text[self.at + 1 : self.at + 2]
            if char == "\\" and following in _ESCAPED_IN_DOUBLE_QUOTES and following:
                self.parts.append("" if following == "\n" else following)
                self.at += 2
                continue
            if char in "$`":
                self.expansion(char)
                continue
            self.parts.append(char)
            self.at += 1
        self.at += 1

    def expansion(self, char: str) -> None:
        """`$x`, `$(command)` or a backquoted command: kept as it stands, for nobody here runs it."""
        start = self.at
        if char == "`":
            end = self.text.find("`", start + 1)
            self.at = len(self.text) if end < 0 else end + 1
        elif self.text.startswith("$(", start):
            depth = 0
            while self.at < len(self.text):
                depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
                self.at += 1
                if depth == 0 and self.text[self.at - 1] == ")":
                    break
        else:
            self.at += 1
        self.parts.append(self.text[start : self.at])

    def backslash(self) -> None:
        following = self.text[self.at + 1 : self.at + 2]
        self.parts.append("" if following == "\n" else following)
        self.at += 2


def first_command(text: str) -> tuple[list[str], bool]:
    """The words of the first simple command, without their quotes, and whether that is all of `text`.

    `cd /x && pytest` gives (["cd", "/x"], False): use `commands` for all of them. Redirections are words
    that start with `<` or `>` (and the digit before), and are left out with their targets.
    """
    words, rest = _read_command(text[:_LIMIT], 0)
    return words, rest >= len(text)


def commands(text: str, limit: int = 8) -> list[list[str]]:
    """The simple commands of a list (`a && b; c | d`), at most `limit`, empty ones left out."""
    found: list[list[str]] = []
    text, at = text[:_LIMIT], 0
    while at < len(text) and len(found) < limit:
        words, at = _read_command(text, at)
        if words:
            found.append(words)
    return found


def _read_command(text: str, start: int) -> tuple[list[str], int]:
    reader = _Reader(text)
    reader.at = start
    words: list[str] = []
    skip_target = False

    def end_word() -> None:
        nonlocal skip_target
        if reader.started:
            if skip_target:
                skip_target = False
            else:
                words.append("".join(reader.parts))
        reader.begin()

    while reader.at < len(text):
        char = text[reader.at]
        if char in _ENDS:
            end_word()
            return words, reader.at + 1
        if char in _BLANKS:
            end_word()
            reader.at += 1
        elif char == "#" and not reader.started:
            end = text.find("\n", reader.at)
            reader.at = len(text) if end < 0 else end
        elif char in "<>":
            if "".join(reader.parts).isdigit():
                reader.begin()  # the descriptor of a redirection, as in 2>
            end_word()
            reader.at += len(text[reader.at : reader.at + 3]) - len(
                text[reader.at : reader.at + 3].lstrip("<>&|")
            )
            skip_target = True
        else:
            _read_part(reader, char)
    end_word()
    return words, len(text)


def _read_part(reader: _Reader, char: str) -> None:
    reader.started = True
    if char == "'":
        reader.single()
    elif char == '"':
        reader.double()
    elif char == "\\":
        reader.backslash()
    elif char in "$`":
        reader.expansion(char)
    else:
        reader.parts.append(char)
        reader.at += 1
