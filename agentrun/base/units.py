"""Numbers with units, as intents and policies write them. For the hot path: no `re`, nothing that raises.

size      512M  2GiB  64KB  1.5g  4096B     bytes; K, M, G, T are powers of 1024, as in systemd and docker
duration  500ms  30s  10m  1h  1h30m        seconds
number    2  0.5                            a plain decimal: no sign, no exponent, no blanks
rate      10Mbit  1.5Gbit/s                 bits per second; powers of 1000, as links are sold and tc counts
"""

from __future__ import annotations

_DIGITS_LIMIT = 18
_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_LIMIT = 64  # characters
RATE_LEAST = 64_000  # below, one full packet takes longer than a TCP sender waits before it sends it again
RATE_MOST = 32_000_000_000  # pyroute2 writes 32 bits of bytes per second (TCA_TBF_PARMS)
_RATE_UNITS = {"gbit": 1_000_000_000, "mbit": 1_000_000, "kbit": 1_000}
_RATE_NAMES = {"gbit": "Gbit", "mbit": "Mbit", "kbit": "kbit"}


def parse_number(text: str) -> float | None:
    """A plain non-negative decimal such as `2` or `1.5`; None for signs, exponents, blanks and the rest."""
    whole, dot, fraction = text.partition(".")
    if not whole or len(text) > _DIGITS_LIMIT or (dot and not fraction):
        return None
    digits = whole + fraction
    return float(text) if digits.isascii() and digits.isdigit() else None


def parse_count(text: str) -> int | None:
    """A positive whole number."""
    number = parse_number(text)
    return int(number) if number and number == int(number) else None


def parse_size(text: str) -> int | None:
    """Positive bytes; None without a unit (is `512` bytes or megabytes? nobody should have to guess)."""
    lowered = text.lower()
    if lowered.endswith("ib"):
        lowered = lowered[:-2]
    elif lowered.endswith("b"):
        lowered = lowered[:-1]
        if lowered[-1:].isdigit():
            return parse_count(lowered)
    factor = _SIZES.get(lowered[-1:])
    number = parse_number(lowered[:-1])
    return int(number * factor) or None if factor and number else None


def parse_duration(text: str) -> float | None:
    """Positive seconds, of one or more parts; None without a unit."""
    if not text or len(text) > _DURATION_LIMIT:
        return None
    seconds, rest = 0.0, text.lower()
    while rest:
        digits = _leading(rest, "0123456789.")
        unit = _leading(rest[len(digits) :], "hmsd")
        number, factor = parse_number(digits), _SECONDS.get(unit)
        if number is None or factor is None:
            return None
        seconds += number * factor
        rest = rest[len(digits) + len(unit) :]
    return seconds or None


def _leading(text: str, characters: str) -> str:
    return text[: len(text) - len(text.lstrip(characters))]


def show_size(size: float) -> str:
    """Bytes for people: `512M`, `1.5G`, in the largest unit that leaves at least 1."""
    for unit in ("T", "G", "M", "K"):
        factor = _SIZES[unit.lower()]
        if size >= factor:
            return f"{size / factor:.2f}".rstrip("0").rstrip(".") + unit
    return f"{int(size)}B"


def show_number(number: float) -> str:
    """A number without needless digits."""
    return str(int(number)) if number == int(number) else f"{number:.2f}"


def parse_rate(text: str) -> int | None:
    """Bits per second of `10Mbit` or `10Mbit/s`; None for anything else (MB is bytes, mbps is tc's bytes)."""
    lowered = text.lower().removesuffix("/s")
    factor = _RATE_UNITS.get(lowered[-4:])
    number = parse_number(lowered[:-4])
    return round(number * factor) or None if factor and number else None


def show_rate(rate: int) -> str:
    """A rate for people, in the largest unit that leaves at least 1."""
    for unit, factor in _RATE_UNITS.items():
        if rate >= factor:
            return show_number(rate / factor) + _RATE_NAMES[unit]
    return f"{rate}bit"
