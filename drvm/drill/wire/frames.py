"""Frames of a drill's network: who uses which address, as ARP and IPv6 tell whoever listens.

RFC 826, RFC 5227 (ARP), RFC 8200, RFC 4861. Guests may send anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
_BROADCAST = b"\xff" * 6
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_ARP_HEAD = (1, 0x0800, 6, 4)
_REQUEST, _REPLY = 1, 2
_ETHERNET_BYTES = 14
_IPV6_BYTES = 40
_MAX_OTHERS = 64
_MAX_ADDRESSES = 8

Ip = IPv4Address | IPv6Address


def speaker(frame: bytes) -> tuple[str, Ip] | None:
    """(MAC, address) of who sent a frame, where it says so; in ARP its own word for it counts."""
    if len(frame) < _ETHERNET_BYTES:
        return None
    kind = int.from_bytes(frame[12:14], "big")
    body = frame[_ETHERNET_BYTES:]
    if kind == ETH_P_ARP and len(body) >= _ARP.size:
        *head, operation, mac, sender, _, _ = _ARP.unpack_from(body)
        if tuple(head) != _ARP_HEAD or operation not in (_REQUEST, _REPLY):
            return None
        address: Ip = IPv4Address(sender)
    elif kind == ETH_P_IPV6 and len(body) >= _IPV6_BYTES and body[0] >> 4 == 6:
        mac, address = frame[6:12], IPv6Address(body[8:24])
    else:
        return None
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        return None
    return mac_text(mac), address


def arp_probe(own_mac: bytes, target: IPv4Address) -> bytes:
    """Who has it? From nobody, so that nobody learns a wrong address: RFC 5227, 2.1.1."""
    ethernet = _BROADCAST + own_mac + ETH_P_ARP.to_bytes(2, "big")
    return ethernet + _ARP.pack(*_ARP_HEAD, _REQUEST, own_mac, bytes(4), bytes(6), target.packed)


def mac_text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)


class Neighbours:
    """Who was heard with which addresses, the last one last; of bounded size. ``cards``: MACs that
    are heard however many others there are, which any guest may make up."""

    def __init__(self, cards: Iterable[str] = ()) -> None:
        self._known: dict[str, dict[Ip, None]] = {mac: {} for mac in cards}
        self._most = len(self._known) + _MAX_OTHERS

    def hear(self, frame: bytes) -> None:
        found = speaker(frame)
        if found is None:
            return
        mac, address = found
        if mac not in self._known and len(self._known) >= self._most:
            return
        addresses = self._known.setdefault(mac, {})
        addresses.pop(address, None)
        addresses[address] = None
        if len(addresses) > _MAX_ADDRESSES:
            del addresses[next(iter(addresses))]

    def of(self, macs: Iterable[str]) -> tuple[Ip, ...]:
        """The likeliest first: IPv4, then what is not only of this link, then the latest."""
        found = [
            (address.is_link_local, address.version, -place, address)
            for mac in macs
            for place, address in enumerate(self._known.get(mac, ()))
        ]
        return tuple(address for *_, address in sorted(found, key=lambda one: one[:3]))

    def has(self, address: Ip) -> bool:
        return any(address in addresses for addresses in self._known.values())
