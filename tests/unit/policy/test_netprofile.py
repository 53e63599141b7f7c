"""Network profiles: from policy to the bytes that the programs read, and to a call's cgroup."""

from __future__ import annotations

import ctypes
import ipaddress
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.errors import CgroupError
from agentrun.bpf import types
from agentrun.calls import netmark
from agentrun.cgroups.cgroup import Cgroup
from agentrun.decision import config
from agentrun.policy import netprofile


def decode(program: bytes) -> types.NetProfile:
    return types.NetProfile.from_buffer_copy(program.ljust(ctypes.sizeof(types.NetProfile), b"\0"))


def decision(profile: types.NetProfile, address: str, port: int) -> bool:
    """What net.bpf.c decides, as its comments say it."""
    ip = ipaddress.ip_address(address)
    for rule in profile.rules[: profile.count]:
        width = 128 if rule.family == 6 else 32
        prefix = bytes(rule.address)[: width // 8]
        same = not rule.family or (
            rule.family == ip.version
            and ip in ipaddress.ip_network((int.from_bytes(prefix, "big"), rule.prefix))
            if rule.family != 6
            else ip.version == 6 and ip in ipaddress.IPv6Network((prefix, rule.prefix))
        )
        if same and rule.port in (0, port):
            return bool(rule.allow)
    return bool(profile.flags & types.NET_DEFAULT_ALLOW)


def test_constants_are_those_of_the_contract():
    assert netprofile.FORMAT == types.NET_FORMAT
    assert netprofile.RULES_LIMIT == types.NET_RULES
    assert netmark.ATTRIBUTE == types.NET_XATTR
    assert netprofile._RULE.size == ctypes.sizeof(types.NetRule)
    assert netprofile.compile_profile(netprofile.BUILTIN["none"]) == netmark._NONE


@pytest.mark.parametrize(
    ("address", "port", "allowed"),
    [
        ("169.254.169.254", 80, False),  # the longest prefix, although `*:80` is allowed
        ("10.1.2.3", 443, True),
        ("10.1.2.3", 80, False),  # 10.0.0.0/8 before *:80
        ("10.9.9.9", 443, False),
        ("192.0.2.1", 22, True),
        ("::1", 22, True),
        ("2001:db8::1", 22, False),
    ],
)
def test_the_longest_prefix_then_the_port_then_deny_decides(address, port, allowed):
    network = {
        "default": "allow",
        "deny": [["169.254.169.254", None], ["10.0.0.0/8", None], ["2001:db8::/32", None]],
        "allow": [["10.1.0.0/16", 443], ["*", 80], ["10.0.0.0/8", None]],
    }
    program = netprofile.compile_profile(network)
    assert program is not None
    assert decision(decode(program), address, port) is allowed


def test_mapped_prefixes_become_ipv4_rules():
    (rule,) = netprofile.rules_of({"deny": [["::ffff:10.0.0.0/104", None]]})
    assert rule[:3] == (bytes([10]).ljust(16, b"\0"), 4, 8)


def test_a_profile_that_restricts_nothing_is_no_profile():
    assert netprofile.compile_profile({"default": "allow", "allow": [["10.0.0.0/8", None]]}) is None
    assert netprofile.compile_profile({"default": "deny"}) is not None


def test_too_many_rules_are_refused():
    entries = [[f"10.0.{n}.0/24", None] for n in range(129)]
    with pytest.raises(ValueError, match="129 rules"):
        netprofile.compile_profile({"default": "deny", "allow": entries})


@given(
    st.lists(st.tuples(st.ip_addresses(), st.none() | st.integers(1, 65535), st.booleans()), max_size=20),
    st.booleans(),
)
def test_exact_addresses_get_what_they_were_given(entries, default):
    chosen = {(str(ip), port): allow for ip, port, allow in entries if ip.version == 4 or not ip.ipv4_mapped}
    network = {
        "default": "allow" if default else "deny",
        "allow": [[ip, port] for (ip, port), allow in chosen.items() if allow],
        "deny": [[ip, port] for (ip, port), allow in chosen.items() if not allow],
    }
    program = netprofile.compile_profile(network)
    if program is None:
        return
    for (ip, port), allow in chosen.items():
        if port is not None:
            assert decision(decode(program), ip, port) is allow


def test_a_name_that_is_not_known_denies_and_open_ones_cost_nothing():
    assert netmark.program_of({}, "nowhere") == netmark._NONE
    for name in (None, "default", "open"):
        assert netmark.program_of({}, name) is None
    assert netmark.program_of({"network_programs": {"x": None}}, "x") is None


def test_what_cannot_be_enforced_is_told_or_refused(tmp_path):
    call = Cgroup(str(tmp_path))
    host = config.Config([])
    assert netmark.mark(host, call, "open", str(tmp_path / "none"))
    assert not netmark.mark(host, call, "none", str(tmp_path / "none"))
    host.fail_closed = True
    with pytest.raises(CgroupError, match="not loaded"):
        netmark.mark(host, call, "none", str(tmp_path / "none"))


def test_only_a_whole_version_counts_as_loaded(tmp_path):
    (tmp_path / "new").mkdir()
    assert not netmark.is_in_force(str(tmp_path))
    (tmp_path / "0123456789abcdef").mkdir()
    assert netmark.is_in_force(str(tmp_path))


def test_the_profile_is_on_the_cgroup_of_a_call(tmp_path):
    (tmp_path / "pins/0123456789abcdef").mkdir(parents=True)
    folder = tmp_path / "call-0"
    folder.mkdir()
    try:
        os.setxattr(folder, "user.probe", b"")
    except OSError:
        pytest.skip("no user attributes on this file system")
    host = config.Config([])
    assert netmark.mark(host, Cgroup(str(folder)), "none", str(tmp_path / "pins"))
    assert os.getxattr(folder, netmark.ATTRIBUTE) == netmark._NONE
    host.enforcement = "cgroup"
    assert not netmark.mark(host, Cgroup(str(folder)), "none", str(tmp_path / "pins"))
