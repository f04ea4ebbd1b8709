"""Addresses on a drill's network: what the guests get by DHCP, and which ones are ours.

Pure. A guest with a static address brings its subnet along, which nobody told us: so our own
address is one of the same subnet, and none that a drilled machine is known to have. What is not
known of a subnet's size is taken for /24.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import islice

from drvm.drill.checks.base import Address, Card
from drvm.drill.wire.messages import Begin, Subnet

_USUAL_PREFIX = 24
_LONGEST, _SHORTEST = 30, 8
_POOLS = tuple(
    IPv4Network(net) for net in ("172.31.231.0/24", "10.231.231.0/24", "192.168.231.0/24")
)
_POOL_FIRST, _POOL_LAST = 50, 199
_MAX_SUBNETS = 8
_MAX_CANDIDATES = 16
_MAX_LIKELY = 100


def subnet_of(address: IPv4Interface) -> IPv4Network:
    """As its prefix length says, where it says anything that can be."""
    prefix = address.network.prefixlen
    if not _SHORTEST <= prefix <= _LONGEST:
        prefix = _USUAL_PREFIX
    return IPv4Network((address.ip, prefix), strict=False)


def candidates(subnet: IPv4Network, taken: Collection[IPv4Address]) -> Iterator[IPv4Address]:
    """For an address of ours: from the end of the subnet, but for the last usable one, where
    gateways stand; a few."""
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
    order = (*range(last - 1, max(first, last - 1 - 4 * _MAX_CANDIDATES) - 1, -1), last)
    free = (IPv4Address(number) for number in order if number >= first)
    return islice((address for address in free if address not in taken), _MAX_CANDIDATES)


def plan_dhcp(cards: Iterable[Card], asked: Iterable[Address] = ()) -> Begin:
    """Each card gets the address that it had, where that is known, and others one of a pool. None
    is given twice: machines of a cluster may each have had the one that they share. ``asked``: is
    none of ours either."""
    listed = tuple(cards)
    had = {card.mac: usable_ipv4(card) for card in listed}
    taken = {address.ip for addresses in had.values() for address in addresses}
    taken |= {address.ip for address in asked if isinstance(address, IPv4Interface)}
    networks = list(dict.fromkeys(subnet_of(a[0]) for a in had.values() if a))[:_MAX_SUBNETS]
    subnets = []
    for network in networks:
        own = next(candidates(network, taken), None)
        if own is not None:
            taken.add(own)
            subnets.append(Subnet(f"{own}/{network.prefixlen}"))
    given: dict[IPv4Address, str] = {}
    for mac, addresses in had.items():
        free = next((address.ip for address in addresses if address.ip not in given), None)
        if free is not None:
            given[free] = mac
    hosts = tuple((mac, str(address)) for address, mac in given.items())
    if len(hosts) < len(had):
        pool = next((p for p in _POOLS if _is_clear(p, networks, taken)), None)
        if pool is not None:
            subnets.append(
                Subnet(f"{pool[1]}/{pool.prefixlen}", str(pool[_POOL_FIRST]), str(pool[_POOL_LAST]))
            )
    return Begin(tuple(subnets), hosts, tuple(map(str, sorted(taken))), tuple(had))


def _is_clear(
    pool: IPv4Network, networks: Iterable[IPv4Network], taken: Iterable[IPv4Address]
) -> bool:
    used = any(pool.overlaps(network) for network in networks)
    return not used and not any(address in pool for address in taken)


def likely(begin: Begin) -> tuple[IPv4Address, ...]:
    """What a guest on such a network has, unless nothing was known of it."""
    found = [*map(IPv4Address, begin.taken)][:_MAX_LIKELY]
    for subnet in begin.subnets:
        if subnet.first:
            first, last = int(IPv4Address(subnet.first)), int(IPv4Address(subnet.last))
            found += map(IPv4Address, range(first, last + 1))
    return tuple(found)


def usable_ipv4(card: Card) -> tuple[IPv4Interface, ...]:
    return tuple(
        address
        for address in card.had
        if isinstance(address, IPv4Interface)
        and not (address.is_link_local or address.is_loopback or address.is_multicast)
    )
