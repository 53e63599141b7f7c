"""Pins, modules and the ring buffer as far as they need no kernel, and their refusals."""

from __future__ import annotations

import ctypes
import os

import pytest

from agentrun.bpf import modules, pins, ringbuf, types
from agentrun.errors import BpfError


def test_a_pin_that_others_can_write_or_that_is_a_link_is_refused(tmp_path):
    pin = tmp_path / "map"
    pin.touch(mode=0o600)
    if os.geteuid() != 0:
        pytest.skip("needs root: pins belong to root")
    pins.check_owner(str(pin))
    pin.chmod(0o622)
    with pytest.raises(BpfError, match="not root's alone"):
        pins.check_owner(str(pin))
    link = tmp_path / "link"
    link.symlink_to(pin)
    with pytest.raises(BpfError, match="not root's alone"):
        pins.check_owner(str(link))
    pin.chmod(0o600)
    os.chown(pin, 1, 1)
    with pytest.raises(BpfError, match="owner 1"):
        pins.check_owner(str(pin))


def test_versions_are_in_order_of_age_and_a_half_loaded_one_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "ROOT", str(tmp_path))
    module = modules.MODULES["net"]
    assert modules._versions(module) == []
    for age, name in enumerate(("bb", "aa", "new")):
        (tmp_path / "net" / name).mkdir(parents=True)
        os.utime(tmp_path / "net" / name, ns=(age, age))
    assert modules._versions(module) == ["bb", "aa"]
    pins.remove(f"{tmp_path}/net/bb")
    pins.remove(f"{tmp_path}/net/bb")
    assert modules._versions(module) == ["aa"]


def test_what_is_lost_is_named_only_where_a_version_is_loaded():
    module = modules.MODULES["net"]
    assert modules.Status(module, "f", "aa", None, [], []).lost == []
    partly = modules.Status(module, "f", "aa", "aa", [], [])
    assert partly.in_force and partly.current and "raw, packet" in partly.lost[0]


def head(kind: types.Kind, **fields: object) -> types.Event:
    return types.Event(kind=kind, call=7, pid=1, **fields)


def test_events_are_read_from_their_bytes():
    event = ringbuf.parse(bytes(head(types.Kind.EXIT, value=3 << 8, comm=b"sh")))
    assert event is not None and (event.kind, event.call, event.value, event.comm) == (3, 7, 768, "sh")


@pytest.mark.parametrize(
    ("family", "raw", "shown"), [(2, b"\xc0\0\x02\x01", "192.0.2.1"), (10, bytes(15) + b"\x01", "::1")]
)
def test_a_denial_says_where_to(family, raw, shown):
    denied = types.Denied(event=head(types.Kind.DENIED), family=family, by=1, port=443, count=5)
    ctypes.memmove(denied.address, raw, len(raw))
    event = ringbuf.parse(bytes(denied))
    assert event is not None and (event.address, event.port, event.count) == (shown, 443, 5)


@pytest.mark.parametrize("size", [0, 47, 60])
def test_a_record_that_is_too_short_is_passed_over(size):
    data = bytes(head(types.Kind.DENIED)).ljust(100, b"\0")
    assert ringbuf.parse(data[:size]) is None
