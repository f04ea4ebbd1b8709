"""The process in the network namespace that is joined to a drill's network.

It is process 1 of a PID namespace: when it ends, which it does when drvm hangs up or dies, the
kernel ends all that it and ``Line.run`` started, and the namespace goes, and our end of the cable
with it. It has one thread, as it forks.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import secrets
import selectors
import socket
import struct
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, IPv6Network, ip_interface
from pathlib import Path

import msgspec

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.forked import forked
from drvm.core.process import Child, SystemProcesses
from drvm.drill.checks.base import INTERFACE
from drvm.drill.wire import messages
from drvm.drill.wire.addresses import candidates, likely, subnet_of
from drvm.drill.wire.asking import ask_http, ask_tcp
from drvm.drill.wire.frames import ETH_P_ARP, ETH_P_IPV6, Ip, Neighbours, arp_probe
from drvm.drill.wire.messages import Answer, Begin, Heard, Http, Reach, Request, Tcp
from drvm.restore.served.order import hear_order

_PROBE_S = 0.4
_IP_S = 10.0
_DHCP_S = 0.2
_ANSWER_BYTES = 8192
_FRAME_BYTES = 128
_FRAMES_AT_ONCE = 256
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_USUAL_V6_PREFIX = 64
_SETTINGS = Path("/proc/sys/net")
"""Of the namespace that looks."""


class Inside:
    """``ask`` takes one request after the other; between them ``listen`` is to be called."""

    def __init__(self) -> None:
        self._processes = SystemProcesses()
        self._clock = SystemClock()
        self._neighbours = Neighbours()
        self._listening: list[socket.socket] = []
        self._own: dict[IPv4Address, IPv4Interface] = {}
        self._taken: set[IPv4Address] = set()
        self._reached: set[str] = set()
        self._likely: tuple[IPv4Address, ...] = ()
        self._dhcp: Child | None = None

    @property
    def listening(self) -> list[socket.socket]:
        return self._listening

    def ask(self, request: Request) -> Answer:
        if isinstance(request, Begin):
            self._begin(request)
            return Answer(passed=True)
        if isinstance(request, Heard):
            return Answer(addresses=tuple(map(str, self._heard(request.macs)[:32])))
        self._reach(request.to)
        if isinstance(request, Reach):
            return Answer(passed=True)
        return self._in_a_fork(request)

    def listen(self) -> None:
        """Take what has come; no more than some, so that nobody can keep us here."""
        for listener in self._listening:
            with contextlib.suppress(BlockingIOError, OSError):
                for _ in range(_FRAMES_AT_ONCE):
                    self._neighbours.hear(listener.recv(_FRAME_BYTES))

    def _heard(self, macs: Sequence[str]) -> tuple[Ip, ...]:
        """A guest that got its address by DHCP, or that only listens, may have said nothing yet:
        then the addresses that it is likely to have are asked for."""
        self.listen()
        found = self._neighbours.of(macs)
        if any(address.version == 4 for address in found):
            return found
        self._probe(self._likely)
        return self._neighbours.of(macs)

    def _begin(self, begin: Begin) -> None:
        self._neighbours = Neighbours(begin.cards)
        for kind in (ETH_P_ARP, ETH_P_IPV6):
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
            listener.bind((INTERFACE, kind))
            listener.setblocking(False)
            self._listening.append(listener)
        self._taken.update(map(IPv4Address, begin.taken))
        self._likely = likely(begin)
        with contextlib.suppress(OSError):  # a kernel without IPv6
            (_SETTINGS / f"ipv6/conf/{INTERFACE}/accept_ra").write_text("0")
            (_SETTINGS / f"ipv6/conf/{INTERFACE}/accept_dad").write_text("0")
        for way in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with contextlib.suppress(OSError):
                (_SETTINGS / way).write_text("0")
        _sum_up_here()
        self._ip("link", "set", "lo", "up")
        self._ip("link", "set", INTERFACE, "up")
        for subnet in begin.subnets:
            own = IPv4Interface(subnet.own)
            self._ip("addr", "add", subnet.own, "dev", INTERFACE)
            self._own[own.ip] = own
        if begin.subnets:
            self._dhcp = self._processes.spawn(dnsmasq(begin))
            if self._dhcp.wait(_DHCP_S):
                raise DrvmError("dnsmasq ended as soon as it was started")

    def _reach(self, to: str) -> None:
        address = ip_interface(to)
        if to in self._reached or (address.version == 6 and address.is_link_local):
            return
        if isinstance(address, IPv4Interface):
            own = self._own_for(address)
            self._ip("route", "replace", f"{address.ip}/32", "dev", INTERFACE, "src", str(own))
        else:
            self._reach_v6(address)
        self._reached.add(to)

    def _own_for(self, to: IPv4Interface) -> IPv4Address:
        """An address of ours that the guest takes for its neighbour's."""
        subnet = subnet_of(to)
        for own in self._own.values():
            if own.ip in subnet and own.ip != to.ip:
                return own.ip
        for candidate in candidates(subnet, {to.ip, *self._taken}):
            if not self._is_used(candidate):
                self._ip("addr", "add", f"{candidate}/32", "dev", INTERFACE)
                self._own[candidate] = IPv4Interface(f"{candidate}/{subnet.prefixlen}")
                return candidate
        raise DrvmError(f"no address next to {to.ip} is free")

    def _is_used(self, address: IPv4Address) -> bool:
        self._probe([address])
        return self._neighbours.has(address)

    def _probe(self, addresses: Sequence[IPv4Address]) -> None:
        """Ask who has these, and hear who says so."""
        arp = self._listening[0]
        for address in addresses:
            with contextlib.suppress(OSError):  # its queue is full
                arp.send(arp_probe(arp.getsockname()[4], address))
        deadline_s = self._clock.monotonic_s() + _PROBE_S
        while addresses and (left_s := deadline_s - self._clock.monotonic_s()) > 0:
            with selectors.DefaultSelector() as ready:
                ready.register(arp, selectors.EVENT_READ)
                ready.select(left_s)
            self.listen()

    def _reach_v6(self, to: IPv6Interface) -> None:
        prefix = to.network.prefixlen if to.network.prefixlen < 127 else _USUAL_V6_PREFIX
        network = IPv6Network((to.ip, prefix), strict=False)
        offset = secrets.randbits(128 - prefix)
        own = network[offset if network[offset] != to.ip else offset ^ 2]
        self._ip("-6", "addr", "add", f"{own}/128", "dev", INTERFACE, "nodad")
        self._ip("-6", "route", "replace", f"{to.ip}/128", "dev", INTERFACE, "src", str(own))

    def _in_a_fork(self, request: Tcp | Http) -> Answer:
        def work() -> bytes:
            asked = ask_tcp(request) if isinstance(request, Tcp) else ask_http(request)
            return msgspec.json.encode(asked)

        said = forked(work, limit_s=request.timeout_s, max_bytes=_ANSWER_BYTES)
        if said is None:
            return messages.answer(
                False, True, f"no whole answer within {request.timeout_s:g} s, though connected"
            )
        return msgspec.json.decode(said, type=Answer)

    def _ip(self, *words: str) -> None:
        self._processes.run(["ip", *words], timeout_s=_IP_S)


def dnsmasq(begin: Begin) -> list[str]:
    """Addresses and nothing else: no names, no files of the host's, no memory of leases. Our own
    address is told as the gateway, as guests wait for one; it leads nowhere."""
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]
    argv += ["--port=0", "--leasefile-ro", "--pid-file=", "--user=nobody", "--no-ping"]
    argv += [f"--interface={INTERFACE}", "--except-interface=lo", "--bind-interfaces"]
    argv += ["--dhcp-authoritative", "--log-facility=-", "--quiet-dhcp"]
    for subnet in begin.subnets:
        own = IPv4Interface(subnet.own)
        place = f"{subnet.first},{subnet.last}" if subnet.first else f"{own.network[0]},static"
        argv.append(f"--dhcp-range={place},{own.netmask},1h")
    return argv + [f"--dhcp-host={mac},{address}" for mac, address in begin.hosts]


def _sum_up_here() -> None:
    """Write checksums ourselves: nothing on the way does, and DHCP clients that read raw frames
    refuse what has none. ethtool's ``-K drvm0 tx off``."""
    value = array.array("I", [_ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP16x", INTERFACE.encode(), value.buffer_info()[0])
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket,
        contextlib.suppress(OSError),
    ):
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def main() -> int:
    inside = Inside()
    os.write(1, b"ready\n")
    while True:
        with selectors.DefaultSelector() as ready:
            for source in (sys.stdin.buffer, *inside.listening):
                ready.register(source, selectors.EVENT_READ)
            found = [key.fileobj for key, _ in ready.select()]
        inside.listen()
        if sys.stdin.buffer not in found:
            continue
        order = hear_order(sys.stdin.buffer)
        if not order:
            return 0
        try:
            said = inside.ask(msgspec.json.decode(order, type=Request))
        except (DrvmError, OSError, ValueError) as problem:
            said = Answer(failed=messages.cut(str(problem)))
        os.write(1, msgspec.json.encode(said) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
