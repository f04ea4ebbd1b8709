"""The contract of a check, and the patience with which it is tried.

A guest that boots answers late, and its services later than its agent: so a check is tried
until it passes or its time is over. Whatever the guest says is hostile text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from drvm.core.clock import Clock
from drvm.core.errors import HostUnreachable, UnknownVm
from drvm.core.text import printable
from drvm.core.units import format_seconds
from drvm.host.model import Domain, DomainState
from drvm.report.model import MAX_DETAIL_CHARS, CheckResult

INTERFACE = "drvm0"
"""Our end of the cable into a drill's network, in the namespace of its own."""
PAUSE_S = 0.5
"""Between two tries."""
AWAY_S = 60.0
"""For so long a libvirtd may be away: its packages are being updated."""
_MAX_NAME_CHARS = 120


T = TypeVar("T")
Address = IPv4Interface | IPv6Interface

Beat = Callable[[], None]
"""Called many times a second while a program of this host's runs, which may take an hour. Raises
``Interrupted`` where an end is wanted."""

Need = Literal["network", "console", "disks"]
"""What a check needs besides the machine: to reach its addresses, the text on its console, or
the point's disks on a server."""


@dataclass(frozen=True, slots=True)
class Card:
    """A network card of the drilled machine. ``mac`` in lower case; ``had``: the addresses it had
    when the point was taken, as the guest's agent said then."""

    mac: str
    had: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpAsked:
    """``ca_file``: whose certificates are believed; ``None`` believes any."""

    port: int
    path: str
    tls: bool
    host: str | None
    ca_file: Path | None
    expect_status: tuple[int, ...]
    expect_body: str | None


class Wire(Protocol):
    """How the addresses of a drill's isolated network are reached from this host. Each call ends
    within its time and a few seconds; raises ``HostError`` where the way is gone."""

    def heard(self, macs: Sequence[str]) -> tuple[Address, ...]:
        """Addresses that these cards have used, as far as anybody on the wire could hear: the
        likeliest first. Their prefix lengths are those of single addresses."""
        ...

    def tcp(self, to: Address, port: int, banner: str | None, timeout_s: float) -> Attempt: ...

    def http(self, to: Address, asked: HttpAsked, timeout_s: float) -> Attempt: ...

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        to: Address | None,
        timeout_s: float,
        beat: Beat,
    ) -> Attempt:
        """A program of this host's that sees this network and no other: passed where it ends with
        exit code 0."""
        ...


@dataclass(frozen=True, slots=True)
class Exports:
    """The point's disks, on an NBD server that has them read-only. ``disks``: targets, which are
    the names of the exports."""

    socket: Path
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuestUnderTest:
    """The booted machine, and the ways to it.

    ``wire``, ``console``, ``disks`` are there where a check needs them: ``console`` is the file
    that its serial console is logged to, ``disks`` starts a server for as long as its context
    lasts. ``directory``: the drill's own, which goes with it.
    """

    domain: Domain
    vm: str = ""
    point: str = ""
    drill: str = ""
    cards: tuple[Card, ...] = ()
    wire: Wire | None = None
    console: Path | None = None
    directory: Path | None = None
    disks: Callable[[], AbstractContextManager[Exports]] | None = field(default=None, repr=False)
    beat: Beat = field(default=lambda: None, repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a check. ``answered``: the guest gave an answer, right or wrong, so it has
    booted. ``detail``: for people; what the guest said need not be made safe. ``final``: another
    try would say the same."""

    passed: bool
    answered: bool
    detail: str
    final: bool = False


class Check(Protocol):
    """``name`` and ``proves`` (what stands proven once it passed) are for people. ``timeout_s``
    limits each try; no try begins later than this after the guest first answered."""

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def name(self) -> str: ...

    @property
    def proves(self) -> str: ...

    @property
    def timeout_s(self) -> float: ...

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        """Raises ``UnknownVm`` where the machine is gone, ``HostError`` where the host failed."""
        ...


def is_scan(check: Check) -> bool:
    """Of the disks alone: it takes long, and asks nothing of the machine."""
    return "disks" in check.needs


def patiently(ask: Callable[[], T], clock: Clock) -> T:
    """What libvirt answers, also if it is being restarted. Raises what ``ask`` raises, and
    ``HostUnreachable`` for a libvirtd that stays away."""
    deadline_s = clock.monotonic_s() + AWAY_S
    while True:
        try:
            return ask()
        except HostUnreachable:
            if clock.monotonic_s() >= deadline_s:
                raise
        clock.sleep(PAUSE_S)


class Checker:
    """Runs checks on one guest, one after the other.

    Until the guest has answered for the first time it has ``boot_timeout_s`` in all, from the
    making of this object on. A libvirtd that is restarted meanwhile costs no check any of its time.
    """

    def __init__(self, guest: GuestUnderTest, boot_timeout_s: float, clock: Clock) -> None:
        self._guest = guest
        self._clock = clock
        self._boot_deadline_s = clock.monotonic_s() + boot_timeout_s
        self._answered = False

    def run(self, check: Check) -> CheckResult:
        """Try until it passes or the time is over. Raises ``HostError``, and ``HostUnreachable``
        for a libvirtd that stays away."""
        started_s = self._clock.monotonic_s()
        try:
            attempt = self._try(check, started_s)
        except UnknownVm:
            attempt = Attempt(False, False, "the machine is not running any more")
        return CheckResult(
            name=printable(check.name, _MAX_NAME_CHARS)[:300],
            passed=attempt.passed,
            seconds=round(self._clock.monotonic_s() - started_s, 3),
            detail=printable(attempt.detail, MAX_DETAIL_CHARS // 2, lines=True)[:MAX_DETAIL_CHARS],
        )

    def _try(self, check: Check, started_s: float) -> Attempt:
        while True:
            began_s = self._clock.monotonic_s()
            attempt = check.attempt(self._guest)
            if attempt.answered and not self._answered:
                self._answered = True
                started_s = began_s
            if attempt.passed or attempt.final:
                return attempt
            asked_s = self._clock.monotonic_s()
            state = patiently(self._guest.domain.state, self._clock)
            away_s = self._clock.monotonic_s() - asked_s
            started_s += away_s
            self._boot_deadline_s += away_s
            if state is DomainState.SHUTOFF:
                return Attempt(False, False, f"the machine is off; before that: {attempt.detail}")
            deadline_s = started_s + check.timeout_s if self._answered else self._boot_deadline_s
            if self._clock.monotonic_s() + PAUSE_S >= deadline_s:
                return self._given_up(attempt, state, self._clock.monotonic_s() - started_s)
            self._clock.sleep(PAUSE_S)

    def _given_up(self, attempt: Attempt, state: DomainState, waited_s: float) -> Attempt:
        words = attempt.detail
        if not self._answered:
            words = f"no answer within {format_seconds(waited_s)}: {words}"
        if state is not DomainState.RUNNING:
            words += f" (the machine is {state.value})"
        return Attempt(False, attempt.answered, words)
