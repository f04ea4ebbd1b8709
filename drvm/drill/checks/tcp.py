"""A TCP port of the guest takes connections, and perhaps says who it is."""

from __future__ import annotations

from dataclasses import dataclass

from drvm.config.checks import GuestAddress, Port, TimeLimit
from drvm.config.fields import Pattern
from drvm.core.text import printable
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need
from drvm.drill.checks.reaching import address_of

_SHOWN_CHARS = 100
NO_WIRE = Attempt(False, False, "the guest's network can't be reached from here", final=True)


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """Implements ``Check``. ``banner``: a regular expression searched for in the first 16 KiB that
    the service says by itself. ``address``: the guest's, where it is not to be found out. A port
    that refuses is an answer: the guest's network is up."""

    port: Port
    banner: Pattern | None = None
    address: GuestAddress | None = None
    timeout_s: TimeLimit = 30.0

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"network"})

    @property
    def name(self) -> str:
        return f"tcp {self.address or ''}:{self.port}".replace(" :", " ")

    @property
    def proves(self) -> str:
        words = f"the guest took a connection to its TCP port {self.port}"
        if self.banner is None:
            return words
        return f"{words} and said what matches {printable(self.banner, _SHOWN_CHARS)}"

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        if guest.wire is None:
            return NO_WIRE
        to = address_of(guest, self.address)
        if isinstance(to, Attempt):
            return to
        return guest.wire.tcp(to, self.port, self.banner, self.timeout_s)
