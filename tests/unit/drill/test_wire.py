"""What is heard on a drill's network, and which addresses are given there."""

from __future__ import annotations

import shutil
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_interface
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import HostError
from drvm.drill.checks.base import Card
from drvm.drill.wire import line
from drvm.drill.wire.addresses import candidates, likely, plan_dhcp, subnet_of
from drvm.drill.wire.frames import Neighbours, arp_probe, speaker
from drvm.drill.wire.inside import dnsmasq

MAC = bytes.fromhex("525400aabbcc")
TEXT = "52:54:00:aa:bb:cc"


def arp(sender: str, mac: bytes = MAC, operation: int = 1) -> bytes:
    head = bytes.fromhex("000108000604") + operation.to_bytes(2, "big")
    body = head + mac + IPv4Address(sender).packed + bytes(10)
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def ipv6(sender: str, mac: bytes = MAC) -> bytes:
    packed = ip_interface(sender).ip.packed
    return b"\x33" * 6 + mac + b"\x86\xdd" + b"\x60" + bytes(7) + packed + bytes(16)


def test_who_asks_by_arp_says_who_it_is() -> None:
    assert speaker(arp("192.0.2.7")) == (TEXT, IPv4Address("192.0.2.7"))


def test_who_only_probes_an_address_has_none() -> None:
    assert speaker(arp_probe(MAC, IPv4Address("192.0.2.7"))) is None


def test_the_sender_of_an_ipv6_packet_is_heard() -> None:
    assert speaker(ipv6("fe80::1")) == (TEXT, ip_interface("fe80::1").ip)


@given(st.binary(max_size=100))
def test_whatever_comes_along_is_heard_or_not(frame: bytes) -> None:
    found = speaker(frame)
    assert found is None or not found[1].is_multicast


@given(st.binary(min_size=12, max_size=12), st.sampled_from([b"\x08\x06", b"\x86\xdd"]), st.data())
def test_frames_that_are_cut_or_garbled_do_no_harm(
    macs: bytes, kind: bytes, data: st.DataObject
) -> None:
    speaker(macs + kind + data.draw(st.binary(max_size=60)))


def test_ipv4_comes_before_ipv6_and_the_latest_before_older_ones() -> None:
    neighbours = Neighbours()
    for frame in (ipv6("fe80::1"), arp("192.0.2.6"), ipv6("2001:db8::1"), arp("192.0.2.7")):
        neighbours.hear(frame)
    found = [str(address) for address in neighbours.of([TEXT])]
    assert found == ["192.0.2.7", "192.0.2.6", "2001:db8::1", "fe80::1"]
    assert neighbours.has(IPv4Address("192.0.2.6"))


def test_who_makes_up_cards_and_addresses_fills_no_memory() -> None:
    neighbours = Neighbours()
    for number in range(2000):
        neighbours.hear(arp(f"10.0.{number // 200}.{number % 200 + 1}"))
        neighbours.hear(arp("192.0.2.7", number.to_bytes(6, "big")))
    assert len(neighbours.of([TEXT])) <= 8
    macs = [":".join(f"{b:02x}" for b in n.to_bytes(6, "big")) for n in range(2000)]
    assert len(neighbours.of(macs)) <= 64 * 8


def test_a_machine_is_heard_however_many_others_a_guest_makes_up() -> None:
    neighbours = Neighbours([TEXT])
    for number in range(200):
        neighbours.hear(arp("192.0.2.7", (1 << 40 | number).to_bytes(6, "big")))
    neighbours.hear(arp("192.0.2.6"))
    assert [str(address) for address in neighbours.of([TEXT])] == ["192.0.2.6"]


IPV4 = st.builds(
    lambda ip, prefix: IPv4Interface((ip, prefix)),
    st.integers(0x0A000000, 0xDF000000),
    st.integers(0, 32),
)
CARDS = st.lists(
    st.builds(
        lambda number, had: Card(f"52:54:00:00:00:{number:02x}", tuple(had)),
        st.integers(0, 255),
        st.lists(IPV4, max_size=2),
    ),
    max_size=6,
    unique_by=lambda card: card.mac,
)


@given(CARDS)
def test_no_address_of_ours_is_one_that_a_guest_had(cards: list[Card]) -> None:
    begin = plan_dhcp(cards)
    had = {str(a.ip) for card in cards for a in card.had}
    assert not had & {subnet.own.partition("/")[0] for subnet in begin.subnets}
    for mac, address in begin.hosts:
        assert address in {str(a.ip) for card in cards if card.mac == mac for a in card.had}


@given(IPV4)
def test_our_address_is_a_usable_one_of_the_guests_subnet(guest: IPv4Interface) -> None:
    subnet = subnet_of(guest)
    found = [*candidates(subnet, {guest.ip})]
    assert guest.ip in subnet
    assert 1 <= len(found) <= 16
    assert all(address in subnet.hosts() for address in found[:2] if subnet.prefixlen > 20)
    assert guest.ip not in found
    assert not {subnet.network_address, subnet.broadcast_address} & {*found}


def test_a_guest_gets_the_address_it_had_and_an_unknown_one_gets_any() -> None:
    cards = [Card(TEXT, (ip_interface("192.0.2.7/24"),)), Card("52:54:00:00:00:02")]
    begin = plan_dhcp(cards)
    argv = dnsmasq(begin)
    assert f"--dhcp-host={TEXT},192.0.2.7" in argv
    assert "--dhcp-range=192.0.2.0,static,255.255.255.0,1h" in argv
    assert "--dhcp-range=172.31.231.50,172.31.231.199,255.255.255.0,1h" in argv
    assert "--port=0" in argv
    assert "--interface=drvm0" in argv


def test_an_address_that_two_guests_had_is_given_once_as_dnsmasq_refuses_more() -> None:
    shared = ip_interface("192.0.2.9/24")
    begin = plan_dhcp([Card(TEXT, (shared,)), Card("52:54:00:00:00:02", (shared,))])
    assert begin.hosts == ((TEXT, "192.0.2.9"),)
    assert begin.subnets[-1].first, "the other gets one of the pool"


def test_no_address_of_ours_is_one_that_a_check_asks() -> None:
    card = Card(TEXT, (ip_interface("192.0.2.7/24"),))
    (usual,) = plan_dhcp([card]).subnets
    (other,) = plan_dhcp([card], [ip_interface(usual.own)]).subnets
    assert other.own != usual.own
    unknown = Card(TEXT)
    (pool,) = plan_dhcp([unknown]).subnets
    (clear,) = plan_dhcp([unknown], [ip_interface(pool.own)]).subnets
    assert clear.own != pool.own


class Failing:
    """Implements ``Child``: in the network, but unable to serve it."""

    pid = 1

    def hear(self, timeout_s: float) -> str:
        return '{"failed": "dnsmasq ended as soon as it was started"}'

    def wait(self, timeout_s: float) -> bool:
        return True

    def leave(self) -> None:
        pass


def test_a_network_that_can_not_be_served_is_told_of_before_machines_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes: Any = SimpleNamespace(spawn=lambda *_, **__: Failing(), run=lambda *_, **__: None)
    monkeypatch.setattr(line, "tell_order", lambda *_: None)
    with (
        pytest.raises(HostError, match="dnsmasq ended"),
        line.joined(processes, "virbr9", "0" * 16, ()),
    ):
        pytest.fail("it was not joined")


def test_the_addresses_that_guests_had_and_those_of_the_pool_are_the_likely_ones() -> None:
    begin = plan_dhcp([Card(TEXT, (ip_interface("192.0.2.7/24"),)), Card("52:54:00:00:00:02")])
    found = likely(begin)
    assert IPv4Address("192.0.2.7") in found
    assert IPv4Address("172.31.231.199") in found
    assert len(found) == 152  # and what is ours


def test_the_pool_keeps_clear_of_the_guests_own_subnets() -> None:
    cards = [Card(TEXT, (ip_interface("172.31.0.9/16"),)), Card("52:54:00:00:00:02")]
    pool = plan_dhcp(cards).subnets[-1]
    assert not IPv4Network("172.31.0.0/16").overlaps(IPv4Interface(pool.own).network)


def test_what_is_missing_to_join_the_network_is_said_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "dnsmasq" else tool)
    monkeypatch.setattr(line, "_effective", lambda: 0)
    tools, rights = line.wire_problems()
    assert "dnsmasq is missing" in tools
    assert "CAP_NET_ADMIN and CAP_SYS_ADMIN" in rights
