"""Network rates: their text, and from what is there to what is to be done. No netlink here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hosts import host_with
from hypothesis import given
from hypothesis import strategies as st

from agentrun.base.errors import NetError
from agentrun.base.units import parse_rate, show_rate
from agentrun.cgroups.cgroup import Cgroup
from agentrun.cli.net import _lines
from agentrun.daemon.call import Call
from agentrun.daemon.parts.ratenotes import RateNotes
from agentrun.doctor.network import network_rates, rate_findings
from agentrun.net import status
from agentrun.net.look import Network, bring_about, judge
from agentrun.net.model import (
    HANDLE,
    INGRESS,
    PRIORITY,
    ROOT,
    DropLink,
    DropRedirect,
    DropShape,
    Filter,
    Host,
    Link,
    MakeClsact,
    MakeIfb,
    Operation,
    Qdisc,
    Redirect,
    SetShape,
)
from agentrun.net.plan import gaps, orphans, plan_all, plan_link, shape_of
from agentrun.net.rate import Rates, of_tier, strictest
from agentrun.net.sessions import Session, parse_dev
from agentrun.policy.compiler import compile_texts

VETH = Link(7, "vetha", "veth", 2, 0)
OTHER = Link(8, "vethb", "veth", 2, 1)
IFB = Link(9, "arifb7", "ifb")
BOTH = Rates(egress=8_000_000, ingress=16_000_000)
EMPTY = Host((Link(1, "lo"), VETH, OTHER), (Qdisc(7, "noqueue", 0, ROOT),))


def carry_out(host: Host, operations: list[Operation]) -> Host:
    """What the kernel would make of it."""
    links, qdiscs, filters = list(host.links), list(host.qdiscs), list(host.filters)
    for operation in operations:
        index = {link.name: link.index for link in links}
        match operation:
            case MakeIfb(name):
                assert name not in index
                links.append(Link(max(8, *index.values()) + 1, name, "ifb"))
            case SetShape(name, shape, exists):
                there = [q for q in qdiscs if q.link == index[name] and q.parent == ROOT and q.handle]
                assert bool(there) is exists
                qdiscs = [q for q in qdiscs if q.link != index[name] or q.parent != ROOT]
                qdiscs.append(Qdisc(index[name], "tbf", HANDLE, ROOT, shape.rate, shape.limit))
            case DropShape(name):
                qdiscs.remove(next(q for q in qdiscs if q.link == index[name] and q.handle == HANDLE))
            case MakeClsact(name):
                assert not [q for q in qdiscs if q.link == index[name] and q.parent == INGRESS]
                qdiscs.append(Qdisc(index[name], "clsact", 0xFFFF0000, INGRESS))
            case Redirect(name, ifb):
                assert [q for q in qdiscs if q.link == index[name] and q.parent == INGRESS]
                filters.append(Filter(index[name], "u32", PRIORITY, index[ifb]))
            case DropRedirect(name):
                filters.remove(next(f for f in filters if f.link == index[name] and f.priority == PRIORITY))
            case DropLink(name):
                links = [link for link in links if link.name != name]
                qdiscs = [q for q in qdiscs if q.link != index[name]]
    return Host(tuple(links), tuple(qdiscs), tuple(filters))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10Mbit", 10_000_000),
        ("1.5gbit", 1_500_000_000),
        ("64kbit/s", 64_000),
        ("10", None),
        ("10Mbps", None),
        ("10MB", None),
        ("-1Mbit", None),
        ("Mbit", None),
        ("0Mbit", None),
        ("1 Mbit", None),
        ("", None),
    ],
)
def test_rate_is_read_with_its_unit_or_not_at_all(text, rate):
    assert parse_rate(text) == rate


@given(st.integers(64_000, 32_000_000_000))
def test_rate_is_shown_so_that_it_can_be_read_again(rate):
    shown = parse_rate(show_rate(rate))
    assert shown is not None and abs(shown - rate) <= rate * 0.005 + 1


@given(st.text(max_size=30))
def test_any_text_is_a_rate_or_none(text):
    rate = parse_rate(text)
    assert rate is None or rate > 0


def test_tiers_rates_are_compiled_to_bits_per_second():
    text = "version: 1\ntiers: {low: {network: {egress: 10Mbit, ingress: 1Gbit}}, high: {}}\n"
    policy = compile_texts([("p", text)])
    assert of_tier(policy, "low") == Rates(10_000_000, 1_000_000_000)
    assert not of_tier(policy, "high") and not of_tier(policy, None) and not of_tier(policy, "gone")


def test_of_several_in_one_namespace_the_least_of_each_direction_holds():
    assert strictest([Rates(5, None), Rates(7, 3), Rates()]) == Rates(5, 3)
    assert strictest([]) == Rates()


@pytest.mark.parametrize("rate", [64_000, 8_000_000, 1_000_000_000, 32_000_000_000])
def test_bucket_takes_a_jumbo_frame_and_lets_nobody_wait_for_long(rate):
    shape = shape_of(rate)
    assert shape.rate == rate / 8 < 1 << 32
    assert shape.burst >= 9_018 and shape.limit > shape.burst and shape.limit < 1 << 32
    # 64 KiB may wait whatever the rate, for a sender's burst; from 5 Mbit/s on that is 100 ms.
    assert (shape.limit - shape.burst) / shape.rate <= (0.1 if rate > 6_000_000 else 8.2)


def test_nothing_is_touched_where_nothing_is_wanted_and_nothing_of_ours_is_there():
    assert plan_link(EMPTY, VETH, Rates()).operations == []


def test_each_direction_is_set_at_the_hosts_end_and_set_only_once():
    plan = plan_link(EMPTY, VETH, BOTH)
    assert plan.problems == []
    assert plan.operations == [
        SetShape("vetha", shape_of(16_000_000), False),
        MakeIfb("arifb7"),
        SetShape("arifb7", shape_of(8_000_000), False),
        MakeClsact("vetha"),
        Redirect("vetha", "arifb7"),
    ]
    assert plan_link(carry_out(EMPTY, plan.operations), VETH, BOTH).operations == []


def test_changed_rate_is_changed_in_place_and_one_that_is_gone_is_taken_off():
    there = carry_out(EMPTY, plan_link(EMPTY, VETH, BOTH).operations)
    assert plan_link(there, VETH, Rates(9_000_000, 16_000_000)).operations == [
        SetShape("arifb7", shape_of(9_000_000), True)
    ]
    assert plan_link(there, VETH, Rates(None, 16_000_000)).operations == [
        DropRedirect("vetha"),
        DropLink("arifb7"),
    ]
    left = carry_out(there, plan_link(there, VETH, Rates()).operations)
    assert [q.kind for q in left.qdiscs] == ["clsact"] and left.links == EMPTY.links and left.filters == ()


def test_what_is_half_done_is_finished():
    whole = plan_link(EMPTY, VETH, BOTH).operations
    for count in range(len(whole)):
        there = carry_out(EMPTY, whole[:count])
        done = carry_out(there, plan_link(there, VETH, BOTH).operations)
        assert plan_link(done, VETH, BOTH).operations == []
        assert {(q.link, q.rate) for q in done.qdiscs if q.kind == "tbf"} == {(7, 2_000_000), (9, 1_000_000)}


def test_redirect_to_an_ifb_that_was_removed_by_hand_is_made_anew():
    there = carry_out(EMPTY, plan_link(EMPTY, VETH, BOTH).operations)
    gone = replace(there, links=EMPTY.links, qdiscs=tuple(q for q in there.qdiscs if q.link != 9))
    operations = plan_link(gone, VETH, BOTH).operations
    assert operations == [
        MakeIfb("arifb7"),
        SetShape("arifb7", shape_of(8_000_000), False),
        DropRedirect("vetha"),
        Redirect("vetha", "arifb7"),
    ]


@pytest.mark.parametrize(
    ("theirs", "rates", "problem"),
    [
        ({"qdiscs": (Qdisc(7, "htb", 0x10000, ROOT),)}, Rates(None, 1_000_000), "somebody else (htb)"),
        ({"qdiscs": (Qdisc(7, "tbf", 0x10000, ROOT),)}, Rates(None, 1_000_000), "somebody else (tbf)"),
        (
            {"qdiscs": (Qdisc(7, "clsact", 0xFFFF0000, INGRESS),), "filters": (Filter(7, "bpf", 1),)},
            Rates(1_000_000),
            "somebody else at its ingress (bpf)",
        ),
        ({"links": (*EMPTY.links, Link(9, "arifb7", "dummy"))}, Rates(1_000_000), "arifb7 is an"),
    ],
)
def test_what_others_put_there_is_named_and_left_alone(theirs: dict[str, Any], rates, problem):
    host = replace(EMPTY, **theirs)
    plan = plan_link(host, VETH, rates)
    assert plan.operations == [] and problem in plan.problems[0]
    assert plan_link(host, VETH, Rates()).operations == []  # nor when nothing is wanted any more


def test_empty_clsact_of_others_is_shared():
    host = replace(EMPTY, qdiscs=(Qdisc(7, "clsact", 0xFFFF0000, INGRESS),))
    kinds = [type(operation) for operation in plan_link(host, VETH, Rates(1_000_000)).operations]
    assert kinds == [MakeIfb, SetShape, Redirect]


def test_only_interfaces_of_the_named_namespaces_are_changed():
    plans = plan_all(EMPTY, {1: Rates(None, 1_000_000), 5: BOTH})
    assert plans[1].operations == [SetShape("vethb", shape_of(1_000_000), False)]
    assert plans[5].operations == []


def test_ifb_is_removed_with_its_interface_and_nobody_elses_is():
    there = carry_out(EMPTY, plan_link(EMPTY, VETH, BOTH).operations)
    theirs = (Link(20, "ifb0", "ifb"), Link(21, "arifbX", "ifb"), Link(22, "arifb99", "dummy"))
    gone = replace(there, links=(*(link for link in there.links if link != VETH), *theirs))
    assert orphans(there) == [] and orphans(gone) == [DropLink("arifb7")]


def test_ways_around_a_rate_are_named():
    rates = Rates(1_000_000)
    assert gaps([VETH], {}, rates) == [] == gaps([], {}, rates)  # loopback alone leads nowhere
    assert gaps([VETH], {"docker0": "bridge", "v1": "veth", "tun0": "tun"}, rates) == []
    assert gaps([VETH], {"mv0": "macvlan"}, rates) == ["mv0 has no end on this host (macvlan)"]
    assert gaps([VETH], {"eth9": ""}, rates) == ["eth9 has no end on this host (physical)"]
    assert gaps([], {"tap0": None}, rates) == ["tap0 has no end on this host"]
    assert gaps([], {"mv0": "macvlan"}, Rates()) == []


def test_hosts_own_network_is_never_limited():
    session = Session("w", "c", 1, 1, tier="low", rates=BOTH)
    network = Network((0, 0), [session], is_host=True)
    judge([network])
    assert not network.rates and network.why == ["it uses the host's network"]
    assert status.describe([network])["w"]["enforced"] is False


def test_names_in_proc_net_dev_may_be_anything():
    head = b"Inter-|   Receive\n face |bytes\n"
    text = head + b"    lo: 1 2\n  eth0: 3 4\n a:b:c: 5 6\n \xff\x1b: 7 8\n" + b" x: 1\n" * 100
    names = parse_dev(text)
    assert names[:2] == ["eth0", "a:b:c"] and len(names) == 32 and parse_dev(b"") == []


TIERS = "version: 1\ntiers: {low: {network: {egress: 1Mbit}}, high: {}}\n"


@pytest.mark.parametrize(
    ("tier", "mode", "said", "expected"),
    [
        ("low", "enforce", None, ["io", "network.rate"]),
        ("low", "enforce", {"enforced": False, "why": ["x"]}, ["io", "network.rate"]),
        ("low", "enforce", {"enforced": True, "why": []}, None),
        ("low", "observe", None, None),
        ("high", "enforce", None, None),
        (None, "enforce", None, None),
    ],
)
def test_record_says_where_the_rate_was_not_in_force(tmp_path, tier, mode, said, expected):
    paths = host_with(tmp_path, TIERS)
    (tmp_path / "run/agentrun").mkdir(exist_ok=True)
    if said is not None:
        status.write(paths, {"/where": said}, "")
    daemon: Any = SimpleNamespace(paths=paths)
    call = Call("/where", "call-0", {"tier": tier, "mode": mode, "not_enforced": ["io"]}, Cgroup("/nowhere"))
    part = RateNotes(daemon)
    assert part.is_done(call) and part.is_done(call)
    assert call.unsaved.get("not_enforced") == expected


def test_doctor_tells_why_rates_do_not_hold():
    def told(said: dict[str, Any], now: float = 10.0, there: bool = True) -> list[tuple[str, str]]:
        return [(f.level, f.text) for f in rate_findings(said, now, there)]

    assert told({}, there=False)[0][0] == "problem" and "pyroute2" in told({}, there=False)[0][1]
    assert "agentrun-net does not run" in told({})[0][1]
    said = {"at": 5.0, "problem": "", "sessions": {
        "/s/root/aaaa": {"enforced": True, "why": []},
        "/s/root/bbbb": {"enforced": False, "why": ["it uses the host's network"]},
    }}  # fmt: skip
    assert told(said) == [
        ("ok", "in force for 1 containers"),
        ("note", "not in force for bbbb: it uses the host's network"),
    ]
    assert "agentrun-net does not run" in told(said, now=100.0)[0][1]
    assert told({**said, "problem": "no"}) == [("problem", "not enforced: no")]


def test_doctor_asks_only_where_the_policy_has_rates(tmp_path):
    paths = host_with(tmp_path, "version: 1\ntiers: {high: {}}\n")
    assert list(network_rates(paths)) == []
    Path(paths.policy, "10-test.yaml").write_text(TIERS)
    assert [finding.level for finding in network_rates(paths)] == ["problem"]


def test_listing_has_a_line_for_each_direction_and_each_call():
    counts = {"bytes": 2048, "packets": 3, "drops": 1, "waiting": 0}
    interface = {"name": "eth0", "host": {"name": "vetha"}, "rates": {"egress": 8_000_000, "ingress": None},
                 "egress": counts, "ingress": None}  # fmt: skip
    call = {"id": "abc", "denied": 2, "tx_bytes": 100, "rx_bytes": 0}
    assert _lines({"is_host": False, "interfaces": [interface], "calls": [call]}) == [
        ("eth0", "vetha", "egress", "8Mbit", "2K", "3", "1"),
        ("call abc", "-", "egress", "-", "100B", "-", "2 denied"),
        ("", "-", "ingress", "-", "0B", "-", "-"),
    ]
    assert _lines({"is_host": True, "interfaces": [], "calls": []})[0][0] == "the host's"


class _Refusing:
    """Netlink where some operations fail; the others happen."""

    def __init__(self, host: Host, *kinds: type) -> None:
        self.host = host
        self._kinds = kinds

    def apply(self, _: Host, operation: Operation) -> None:
        if isinstance(operation, self._kinds):
            raise NetError(f"{type(operation).__name__} failed")
        self.host = carry_out(self.host, [operation])


@pytest.mark.parametrize(
    ("kinds", "why", "shaped"),
    [
        ((MakeIfb,), ["MakeIfb failed"], {7}),
        ((MakeClsact,), ["MakeClsact failed"], {7, 9}),
        ((SetShape,), ["SetShape failed", "SetShape failed"], set()),
        ((Redirect,), ["Redirect failed"], {7, 9}),
    ],
)
def test_what_fails_is_told_once_and_nothing_is_redirected_where_nothing_is_shaped(kinds, why, shaped):
    netlink: Any = _Refusing(EMPTY, *kinds)
    network = Network((0, 1), [Session("w", "c", 1, 1, rates=BOTH)], netns_id=0)
    bring_about(netlink, EMPTY, [network])
    assert network.why == why and netlink.host.filters == ()
    assert {q.link for q in netlink.host.qdiscs if q.kind == "tbf"} == shaped
    # Once it works, the next look finishes it.
    better: Any = _Refusing(netlink.host)
    network.why.clear()
    bring_about(better, netlink.host, [network])
    assert network.why == [] and plan_link(better.host, VETH, BOTH).operations == []
