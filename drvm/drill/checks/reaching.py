"""Which address of the guest a check goes to."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Interface, ip_interface, ip_network
from itertools import islice
from typing import Any

from drvm.core.errors import AgentError
from drvm.drill.checks.base import INTERFACE, Address, Attempt, Card, GuestUnderTest

_TIMEOUT_S = 3
_MAX_ENTRIES = 256
_MAX_TEXT_CHARS = 80
_THIS_HOST = ip_network("0.0.0.0/8")
_NONE = (
    "no address of the guest is known: its agent tells none, and it has said nothing on its "
    "network; give the check its address"
)


def address_of(guest: GuestUnderTest, asked: str | None) -> Address | Attempt:
    """The one that the check asks for; else one that the guest's agent tells now, or that was heard
    on the network, or that it had when the point was taken. Or why there is none."""
    if asked is not None:
        return ip_interface(asked)
    found = addresses_of(guest)
    return found[0] if found else Attempt(False, False, _NONE)


def addresses_of(guest: GuestUnderTest) -> tuple[Address, ...]:
    """All that are known of it by the best source, the likeliest first."""
    macs = [card.mac for card in guest.cards]
    told = tuple(_told_now(guest, macs))
    if told:
        return tuple(sorted(told, key=_rank))
    heard = guest.wire.heard(macs) if guest.wire is not None else ()
    return heard or tuple(sorted((a for c in guest.cards for a in c.had), key=_rank))


def scoped(address: Address) -> str:
    """As programs take it: an IPv6 address of a link with the link."""
    local = isinstance(address, IPv6Interface) and address.is_link_local
    return f"{address.ip}%{INTERFACE}" if local else str(address.ip)


def _told_now(guest: GuestUnderTest, macs: list[str]) -> Iterator[Address]:
    try:
        answer = guest.domain.agent_command("guest-network-get-interfaces", timeout_s=_TIMEOUT_S)
    except AgentError:
        return
    for card in cards_told(answer):
        if card.mac in macs:
            yield from card.had


def cards_told(answer: Any) -> Iterator[Card]:
    """Of the agent's ``guest-network-get-interfaces``, hostile as it is."""
    for entry in islice(answer if isinstance(answer, list) else (), _MAX_ENTRIES):
        mac = entry.get("hardware-address") if isinstance(entry, dict) else None
        listed = entry.get("ip-addresses") if isinstance(entry, dict) else None
        if isinstance(mac, str) and isinstance(listed, list):
            found = (_address(told) for told in islice(listed, _MAX_ENTRIES))
            yield Card(mac.lower()[:_MAX_TEXT_CHARS], tuple(a for a in found if a is not None))


def _address(told: Any) -> Address | None:
    if not isinstance(told, dict):
        return None
    text, prefix = told.get("ip-address"), told.get("prefix")
    if not isinstance(text, str) or len(text) > _MAX_TEXT_CHARS or type(prefix) is not int:
        return None
    return parse_address(f"{text}/{prefix}")


def parse_address(text: str) -> Address | None:
    """One that a card can have."""
    try:
        found = ip_interface(text.partition("%")[0] if "%" in text else text)
    except ValueError:
        return None
    ip = found.ip  # of an interface's address, ipaddress says less: 0.0.0.0/0, ::1/64
    unusable = ip.is_loopback or ip.is_multicast or ip.is_reserved or ip in _THIS_HOST
    return None if unusable or ip.is_unspecified else found


def _rank(address: Address) -> tuple[bool, bool]:
    """IPv4 first: services that listen on one family only listen there."""
    return address.is_link_local, isinstance(address, IPv6Interface)
