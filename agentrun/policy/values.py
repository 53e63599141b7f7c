"""The single values of a policy file: flags, names, sizes, durations, commands, networks and the rest."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import yaml

from agentrun.base.units import (
    RATE_LEAST,
    RATE_MOST,
    parse_count,
    parse_duration,
    parse_number,
    parse_rate,
    parse_size,
    show_number,
    show_rate,
)
from agentrun.decision.intent import is_name
from agentrun.decision.shellwords import first_command
from agentrun.policy.frame import SHOWN, Reading, Reference, scalar, shown, suggestion
from agentrun.policy.netprofile import WORDS

BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    label: str = "true or false"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        value = BOOLEANS.get((scalar(node) or "").lower())
        if value is None:
            reading.expected(node, path, self.label)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words. Read as written: YAML 1.1 would make `off` a boolean."""

    words: tuple[str, ...]

    @property
    def label(self) -> str:
        return ", ".join(f"`{word}`" for word in self.words[:-1]) + f" or `{self.words[-1]}`"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node)
        if text not in self.words:
            near = suggestion(text or "", self.words)
            reading.expected(node, path, f"one of {', '.join(self.words)}{near}")
            return None
        return text

    def schema(self) -> dict[str, Any]:
        words: list[str | bool] = list(self.words)
        words += [BOOLEANS[word] for word in self.words if word in BOOLEANS]
        return {"enum": words}


@dataclass(frozen=True, slots=True)
class Text:
    """Any text that is not empty."""

    label: str = "text"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node)
        if not text:
            reading.expected(node, path, self.label)
        return text or None

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "number", "boolean"]}


@dataclass(frozen=True, slots=True)
class Name:
    """A name; one of a `kind` that must be defined when `refers`."""

    kind: str
    refers: bool = True

    @property
    def label(self) -> str:
        return f"name of a {self.kind}"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node)
        if text is None or not is_name(text):
            reading.expected(node, path, f"the name of a {self.kind}: letters, digits, '-', '_', '.'")
            return None
        if self.refers:
            reading.references.append(Reference(self.kind, text, reading, node, path))
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number within bounds: a count or a weight, the only numbers that have no unit."""

    low: int = 1
    high: int = 1 << 22

    @property
    def label(self) -> str:
        return f"whole number, {self.low} to {self.high}"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node) or ""
        number = 0 if text == "0" else parse_count(text)
        if number is None or not self.low <= number <= self.high:
            reading.expected(node, path, f"a {self.label}")
            return None
        return number

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


def _percent(text: str) -> tuple[float | None, str] | None:
    """`50%`, `50% of host` as (percent, of); None for what is no percentage at all."""
    number, sign, rest = text.partition("%")
    if not sign:
        return None
    words = rest.split()
    if words and (len(words) != 2 or words[0] != "of"):
        return None, ""
    return parse_number(number.strip()), words[1] if words else "session"


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes of memory, CPUs, or a count of processes: absolute, or a share of some `wholes`."""

    unit: str
    wholes: tuple[str, ...] = ("session", "host")

    @property
    def label(self) -> str:
        kinds = {"memory": "size", "cpu": "CPUs", "pids": "count"}
        shares = f" or percent of {' or '.join(self.wholes)}" if self.wholes else ""
        return kinds[self.unit] + shares

    def _what(self) -> str:
        examples = {
            "memory": "a size with a unit such as 512M or 2GiB",
            "cpu": "a number of CPUs such as 2, 0.5 or 500m",
            "pids": "a whole number",
        }
        shares = " or ".join(f"'50% of {whole}'" for whole in self.wholes[1:])
        return f"{examples[self.unit]}, or a share such as 50%{f' or {shares}' if shares else ''}"

    def _absolute(self, text: str) -> float | int | None:
        if self.unit == "memory":
            return parse_size(text)
        if self.unit == "pids":
            return parse_count(text)
        if text.endswith("m"):  # Kubernetes' millicpu
            number = parse_number(text[:-1])
            return number / 1000 if number else None
        return parse_number(text) or None

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = (scalar(node) or "").strip()
        share = _percent(text)
        if share is not None:
            percent, of = share
            if percent is None or not 0 < percent <= 100:
                reading.expected(node, path, "a percentage above 0 and up to 100")
            elif of not in self.wholes:
                near = suggestion(of, self.wholes)
                reading.expected(node, path, f"a percentage of {' or '.join(self.wholes)}{near}")
            else:
                return [percent, of]
            return None
        value = self._absolute(text)
        if value is None:
            hint = ""
            if self.unit == "memory" and parse_number(text):
                hint = f" (did you mean '{text}M'? for bytes write '{text}B')"
            reading.expected(node, path, self._what() + hint)
        return value

    def schema(self) -> dict[str, Any]:
        percent = {"type": "string", "pattern": r"^[0-9.]+ *%( of (" + "|".join(self.wholes) + "))?$"}
        absolute: dict[str, dict[str, Any]] = {
            "memory": {"type": "string", "pattern": r"^[0-9.]+([kKmMgGtT]([iI]?[bB])?|[bB])$"},
            "cpu": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"pattern": r"^[0-9]+m$"}]},
            "pids": {"type": "integer", "minimum": 1},
        }
        return {"anyOf": [absolute[self.unit], percent]}


@dataclass(frozen=True, slots=True)
class Percent:
    """A plain percentage, compiled to its number."""

    label: str = "percentage"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = (scalar(node) or "").strip()
        number = parse_number(text[:-1].strip()) if text.endswith("%") else None
        if number is None or not 0 < number <= 100:
            reading.expected(node, path, "a percentage above 0 and up to 100, such as 80%")
            return None
        return number

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[0-9.]+ *%$"}


@dataclass(frozen=True, slots=True)
class Duration:
    """A time span, compiled to seconds."""

    label: str = "duration"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node) or ""
        seconds = parse_duration(text)
        if seconds is None:
            hint = f" (did you mean '{text}s'?)" if parse_number(text) else ""
            reading.expected(node, path, f"a duration with a unit such as 30s or 10m{hint}")
        return seconds

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^([0-9.]+(ms|s|m|h|d))+$"}


@dataclass(frozen=True, slots=True)
class Rate:
    """Bits per second of a network, compiled to their number."""

    label: str = "rate"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node) or ""
        rate = parse_rate(text)
        if rate is None:
            reading.expected(node, path, f"bits per second such as 10Mbit or 1Gbit{_rate_hint(text)}")
        elif not RATE_LEAST <= rate <= RATE_MOST:
            reading.expected(node, path, f"a rate from {show_rate(RATE_LEAST)} to {show_rate(RATE_MOST)}")
            return None
        return rate

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[0-9.]+[kKmMgG][bB][iI][tT](/[sS])?$"}


def _rate_hint(text: str) -> str:
    """What was probably meant: megabits where there is no unit, bytes or bits by `MB/s` and `Mbps`."""
    if parse_number(text):
        return f" (did you mean '{text}Mbit'?)"
    short = text.removesuffix("/s").removesuffix("ps")
    unit = {"k": "kbit", "m": "Mbit", "g": "Gbit"}.get(short[-2:-1].lower())
    number = parse_number(short[:-2])
    if unit is None or number is None or short[-1:].lower() != "b":
        return ""
    return f" (bits: '{show_number(number)}{unit}', bytes: '{show_number(number * 8)}{unit}')"


@dataclass(frozen=True, slots=True)
class CpuSet:
    """CPU numbers and ranges, as `cpuset.cpus` takes them."""

    label: str = "list of CPUs"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = (scalar(node) or "").replace(" ", "")
        for part in text.split(","):
            low, dash, high = part.partition("-")
            numbers = [low, high] if dash else [low]
            if not all(n.isascii() and n.isdigit() and len(n) < 6 for n in numbers) or (
                dash and int(low) > int(high)
            ):
                reading.expected(node, path, "CPU numbers such as '0-3,8'")
                return None
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "integer"], "pattern": r"^[0-9]+(-[0-9]+)?(, *[0-9]+(-[0-9]+)?)*$"}


@dataclass(frozen=True, slots=True)
class Command:
    """A command's leading words, each a glob; the first is the program's name."""

    label: str = "words of a command, with `*` and `?`"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        words = first_command(scalar(node) or "")[0]
        if not words:
            reading.expected(node, path, "a command such as 'pytest' or 'npm install'")
            return None
        return words

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class User:
    """A numeric user id, or `root`: names are the container's own and nobody here can look them up."""

    label: str = "user id or `root`"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node) or ""
        if text == "root" or text == "0":
            return 0
        number = parse_count(text)
        if number is None:
            reading.expected(node, path, "a numeric user id, or root (other names are known inside only)")
        return number

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": 0}, {"const": "root"}]}


@dataclass(frozen=True, slots=True)
class Template:
    """A text with `{placeholders}` from a fixed set. Filled in by plain replacement, never by str.format."""

    placeholders: tuple[str, ...]

    @property
    def label(self) -> str:
        return "text with " + ", ".join(f"`{{{name}}}`" for name in self.placeholders)

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node)
        if not text:
            reading.expected(node, path, "a text")
            return None
        for part in text.split("{")[1:]:
            name, closed, _ = part.partition("}")
            if not closed or name not in self.placeholders:
                near = suggestion(name, self.placeholders)
                known = ", ".join(self.placeholders)
                reading.problem(node, path, f"{{{name[:SHOWN]}}}: unknown placeholder{near}, known: {known}")
                return None
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Network:
    """An address range with an optional port: `10.0.0.0/8`, `192.0.2.7:443`, `*:443`; `loopback`, `dns`."""

    label: str = "CIDR, with `:PORT`"

    def read(self, node: yaml.Node, path: str, reading: Reading) -> Any:
        text = scalar(node) or ""
        address, _, port = text.rpartition(":") if text.count(":") == 1 or "]" in text else (text, "", "")
        if "]" in text and not text.rpartition("]")[2].partition(":")[1]:
            address, port = text, ""
        try:
            if address != "*" and address not in WORDS:
                ipaddress.ip_network(address.replace("[", "").replace("]", ""), strict=True)
            if port and not 0 < int(port) < 65536:
                raise ValueError(f"port {port} is out of range")
        except ValueError as error:
            reading.problem(
                node, path, f"{shown(node)}: expected an address range such as 10.0.0.0/8:443 ({error})"
            )
            return None
        return [address.replace("[", "").replace("]", ""), int(port) if port else None]

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}
