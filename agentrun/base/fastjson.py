"""JSON for the exec hot path, without `re`.

`import json` pulls in `re` and half of the standard library: 6 of the 15 ms that Python costs before it
does anything. CPython's C scanner and string encoder are what `json` itself uses; here they are used
directly, with `json` as the fallback where an interpreter has no `_json`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_WHITESPACE = " \t\n\r"


class _ScannerOptions:
    """What `_json.make_scanner` reads from its context (a `json.JSONDecoder` in the standard library)."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


def _skip_whitespace(text: str, start: int) -> int:
    while start < len(text) and text[start] in _WHITESPACE:
        start += 1
    return start


def _c_loads() -> Callable[[str], Any]:
    import _json

    scan = _json.make_scanner(_ScannerOptions)  # type: ignore[arg-type]

    def loads(text: str) -> Any:
        try:
            value, end = scan(text, _skip_whitespace(text, 0))
        except StopIteration as error:
            raise ValueError(f"parse JSON: no value at character {error.value}") from None
        except RecursionError:
            raise ValueError("parse JSON: nested too deep") from None
        except SystemError:
            # Before Python 3.12 the scanner reports errors only where json.decoder is loaded already.
            raise ValueError("parse JSON: damaged") from None
        if _skip_whitespace(text, end) != len(text):
            raise ValueError(f"parse JSON: extra text at character {end}")
        return value

    return loads


try:
    from _json import encode_basestring as _quote_raw
    from _json import encode_basestring_ascii as _quote

    _loads = _c_loads()
except ImportError:  # an interpreter built without the C accelerator
    from json import loads as _loads
    from json.encoder import py_encode_basestring as _quote_raw
    from json.encoder import py_encode_basestring_ascii as _quote


def quote(text: str) -> str:
    """One JSON string, in ASCII, with its quotes."""
    return str(_quote(text))


def loads(data: bytes | str) -> Any:
    """Parse one JSON text; bytes that are not UTF-8 survive as surrogates.

    Raises ValueError on anything that is not exactly one JSON value.
    """
    if isinstance(data, bytes):
        data = data.decode("utf-8", "surrogateescape")
    return _loads(data)


def dumps(value: object, quote_text: Callable[[str], str] = quote) -> str:
    """Write `value` (None, bool, int, float, str, list, tuple, dict) as one line of ASCII JSON."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return quote_text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if value - value == 0 else "null"  # NaN and infinity are not JSON
    if isinstance(value, dict):
        items = (f"{quote_text(str(k))}:{dumps(v, quote_text)}" for k, v in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(dumps(item, quote_text) for item in value) + "]"
    raise TypeError(f"write JSON: no form for {type(value).__name__}")


def dump_bytes(value: object) -> bytes:
    """Write `value` as `loads` read it: bytes that were not UTF-8 come out as they were.

    Raises ValueError (UnicodeEncodeError) on half a surrogate pair, which UTF-8 cannot hold.
    """
    return dumps(value, _quote_raw).encode("utf-8", "surrogateescape")
