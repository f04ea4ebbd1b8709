"""A check goes to the guest's own address, wherever it is known from."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.drill.checks.base import Attempt, Card, Check, GuestUnderTest
from drvm.drill.checks.http import HttpCheck
from drvm.drill.checks.reaching import address_of, addresses_of, cards_told, parse_address
from drvm.drill.checks.script import ScriptCheck
from drvm.drill.checks.tcp import TcpCheck
from drvm.drill.ways import cards_of
from tests.fakes.drill_host import DrilledDomain, DrillHost
from tests.fakes.wire import FakeWire

MAC = "52:54:00:aa:bb:cc"
OTHER = "52:54:00:00:00:02"
HAD = ip_interface("192.0.2.9/25")
INTERFACES = [
    {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
    {
        "name": "docker0",
        "hardware-address": "02:42:00:00:00:01",
        "ip-addresses": [{"ip-address": "172.17.0.1", "prefix": 16}],
    },
    {
        "name": "eth0",
        "hardware-address": MAC.upper(),
        "ip-addresses": [
            {"ip-address": "fe80::1", "prefix": 64},
            {"ip-address": "2001:db8::7", "prefix": 64},
            {"ip-address": "192.0.2.7", "prefix": 24},
        ],
    },
]


def guest(wire: FakeWire | None, answer: Any = None, had: tuple[Any, ...] = ()) -> GuestUnderTest:
    host = DrillHost(machines={"m": "<domain/>"})
    if answer is not None:
        host.agent_answers["guest-network-get-interfaces"] = lambda: answer
    domain: Any = DrilledDomain(host, "m")
    return GuestUnderTest(domain, "web1", "p1", "d1", (Card(MAC, had),), wire)


def test_what_the_agent_says_of_the_machines_own_cards_comes_first() -> None:
    found = addresses_of(guest(FakeWire(told=(HAD,)), INTERFACES, (HAD,)))
    assert [str(a) for a in found] == ["192.0.2.7/24", "2001:db8::7/64", "fe80::1/64"]


@pytest.mark.parametrize(
    "text", ["0.0.0.0/0", "0.0.0.5/24", "127.0.0.1/8", "::1/64", "::/0", "::ffff:127.0.0.1/96"]
)
def test_an_address_that_would_lead_to_ourselves_is_none_of_a_guest(text: str) -> None:
    assert parse_address(text) is None


def test_without_an_agent_what_was_heard_on_the_network_comes_first() -> None:
    wire = FakeWire(told=(ip_interface("192.0.2.8"),))
    assert addresses_of(guest(wire, had=(HAD,))) == wire.told
    assert wire.asked == [("heard", (MAC,))]


def test_at_last_the_addresses_that_it_had_are_tried() -> None:
    assert address_of(guest(FakeWire(), had=(HAD,)), None) == HAD


def test_the_address_that_the_check_gives_goes_before_all() -> None:
    found = address_of(guest(FakeWire(), INTERFACES), "198.51.100.1/28")
    assert str(found) == "198.51.100.1/28"


def test_a_guest_without_any_known_address_is_no_answer_yet() -> None:
    found = address_of(guest(FakeWire()), None)
    assert isinstance(found, Attempt)
    assert (found.passed, found.answered, found.final) == (False, False, False)


def test_a_tcp_check_connects_to_the_guest() -> None:
    wire = FakeWire()
    assert TcpCheck(22, "^SSH", timeout_s=9).attempt(guest(wire, INTERFACES)).passed
    assert wire.asked == [("192.0.2.7/24", 22, "^SSH", 9)]


def test_an_http_check_asks_the_usual_port() -> None:
    wire = FakeWire()
    HttpCheck().attempt(guest(wire, INTERFACES))
    HttpCheck(tls=True, host="www.example.org").attempt(guest(wire, INTERFACES))
    assert [asked.port for _, asked, _ in wire.asked] == [80, 443]


def test_a_script_is_told_what_it_is_about() -> None:
    wire = FakeWire()
    assert ScriptCheck(("/bin/check", "x")).attempt(guest(wire, INTERFACES)).passed
    ((argv, env, to, _),) = wire.asked
    assert (argv, str(to)) == (("/bin/check", "x"), "192.0.2.7/24")
    assert env == {
        "DRVM_VM": "web1",
        "DRVM_POINT": "p1",
        "DRVM_DRILL": "d1",
        "DRVM_ADDRESS": "192.0.2.7",
        "DRVM_ADDRESSES": "192.0.2.7 2001:db8::7 fe80::1%drvm0",
    }


def test_a_script_also_runs_beside_a_guest_without_address() -> None:
    wire = FakeWire()
    assert ScriptCheck(("/bin/check",)).attempt(guest(wire)).passed
    assert wire.asked[-1][1]["DRVM_ADDRESS"] == ""


@pytest.mark.parametrize("check", [TcpCheck(22), HttpCheck(), ScriptCheck(("true",))])
def test_without_a_way_to_the_guest_such_checks_fail_at_once(check: Check) -> None:
    found = check.attempt(guest(None, INTERFACES))
    assert (found.passed, found.final) == (False, True)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (HttpCheck(tls=True), "certificate not verified"),
        (HttpCheck(tls=True, ca_file=Path("/ca.pem")), "certificate verified"),
        (HttpCheck(expect_status=(200, 204)), "status 200 or 204"),
        (TcpCheck(22, banner="^SSH"), "matches ^SSH"),
    ],
)
def test_what_a_check_proves_is_said_exactly(check: Check, words: str) -> None:
    assert words in check.proves


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["hardware-address", "ip-addresses", "ip-address", "prefix"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_the_agent_says_of_addresses_is_understood_or_left_out(answer: Any) -> None:
    for card in cards_told(answer):
        assert not any(address.is_multicast or address.is_loopback for address in card.had)


def xml(*macs: str) -> str:
    cards = "".join(f"<interface type='network'><mac address='{mac}'/></interface>" for mac in macs)
    return f"<domain type='qemu'><devices>{cards}</devices></domain>"


def test_the_cards_of_a_machine_get_back_the_addresses_they_had() -> None:
    told = {"cards": f"{OTHER} 192.0.2.8/24; {MAC} 192.0.2.7/24; {MAC} 2001:db8::7/64; junk"}
    first, second = cards_of(xml(MAC.upper(), OTHER), told)
    assert first == Card(MAC, (ip_interface("192.0.2.7/24"), ip_interface("2001:db8::7/64")))
    assert second == Card(OTHER, (ip_interface("192.0.2.8/24"),))


def test_points_of_an_older_drvm_tell_the_address_of_an_only_card() -> None:
    told = {"addresses": "eth0 192.0.2.7/24; eth0 2001:db8::7/64"}
    assert [str(a) for card in cards_of(xml(MAC), told) for a in card.had] == [
        "192.0.2.7/24",
        "2001:db8::7/64",
    ]
    assert not any(card.had for card in cards_of(xml(MAC, OTHER), told))
    told = {"addresses": "eth0 192.0.2.7/24; docker0 172.17.0.1/16"}
    assert cards_of(xml(MAC), told) == (Card(MAC),)


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_stands_in_a_point_the_cards_are_the_machines(cards: str, addresses: str) -> None:
    found = cards_of(xml(MAC, OTHER), {"cards": cards, "addresses": addresses})
    assert [card.mac for card in found] == [MAC, OTHER]
