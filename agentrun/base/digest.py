"""SHA-256 without hashlib, which costs 2 ms to import."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _sha256() -> Any:
    for module in ("_sha2", "_sha256", "hashlib"):  # Python 3.12, those before, any other
        try:
            return __import__(module).sha256
        except ImportError:
            continue
    raise ImportError("no SHA-256 in this interpreter")


def digest(text: str) -> str:
    """16 hex digits of SHA-256, from the interpreter's built-in module (hashlib costs 2 ms to import)."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        data = text.encode("utf-8", "surrogatepass")
    return str(_sha256()(data).hexdigest()[:16])
