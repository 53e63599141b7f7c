"""Compile a network profile of a policy to what the BPF programs read (struct ar_net_profile). Pure.

Of all rules that name a destination the longest prefix decides, then one with a port before one without, then
`deny`. Rules are sorted so, and the first that matches decides.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FORMAT = 1
RULES_LIMIT = 128  # AR_NET_RULES
WORDS: dict[str, tuple[tuple[str, int | None], ...]] = {
    "loopback": (("127.0.0.0/8", None), ("::1/128", None)),
    "dns": (("*", 53),),
}
# Profiles that exist without a definition; `default` and `open` have no rule at all.
UNRESTRICTED = ("default", "open")
BUILTIN: dict[str, dict[str, Any]] = {
    "none": {"default": "deny"},
    "loopback": {"default": "deny", "allow": [["loopback", None]]},
}
_HEAD = struct.Struct("=HHHH")  # format, flags, count, padding
_RULE = struct.Struct("=16sBBBxHxx")  # address, family, prefix, allow, port
_DEFAULT_ALLOW = 1

Rule = tuple[bytes, int, int, bool, int]


def _expand(entries: Sequence[Sequence[Any]], allow: bool) -> Iterator[Rule]:
    """Entries as the policy has them, [address or word, port or None], one rule for each prefix."""
    for address, port in entries:
        for prefix, own_port in WORDS.get(address, ((address, None),)):
            yield _rule(prefix, port or own_port, allow)


def _rule(text: str, port: int | None, allow: bool) -> Rule:
    if text == "*":
        return bytes(16), 0, 0, allow, port or 0
    network = ipaddress.ip_network(text, strict=True)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:  # the programs see ::ffff:a.b.c.d as a.b.c.d
        return mapped.packed.ljust(16, b"\0"), 4, network.prefixlen - 96, allow, port or 0
    packed = network.network_address.packed.ljust(16, b"\0")
    return packed, network.version, network.prefixlen, allow, port or 0


def rules_of(network: Mapping[str, Any]) -> list[Rule]:
    """The rules of a compiled `networks.NAME`, in the order in which they count."""
    rules = [*_expand(network.get("deny", []), False), *_expand(network.get("allow", []), True)]
    return sorted(rules, key=lambda rule: (-rule[2], rule[4] == 0, rule[3]))


def compile_profile(network: Mapping[str, Any]) -> bytes | None:
    """What the attribute of a call's cgroup holds; None for a profile that restricts nothing.

    Raises ValueError where it has more than RULES_LIMIT rules.
    """
    rules = rules_of(network)
    if len(rules) > RULES_LIMIT:
        raise ValueError(f"{len(rules)} rules, at most {RULES_LIMIT} are possible")
    allows = network.get("default", "allow") == "allow"
    if allows and all(rule[3] for rule in rules):
        return None
    head = _HEAD.pack(FORMAT, _DEFAULT_ALLOW if allows else 0, len(rules), 0)
    return head + b"".join(_RULE.pack(*rule) for rule in rules)


def compile_all(networks: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """All profiles by name, built-in ones included, as hexadecimal text for the compiled configuration."""
    programs = {name: compile_profile(network) for name, network in {**BUILTIN, **networks}.items()}
    return {name: None if data is None else data.hex() for name, data in programs.items()}
