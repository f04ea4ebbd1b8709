"""The contract of a check, and the patience with which it is tried.

A guest that boots answers late, and its services later than its agent: so a check is tried
until it passes or its time is over. Whatever the guest says is hostile text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from drvm.core.clock import Clock
from drvm.core.errors import UnknownVm
from drvm.core.text import printable
from drvm.core.units import format_seconds
from drvm.host.model import Domain, DomainState
from drvm.report.model import MAX_DETAIL_CHARS, CheckResult

PAUSE_S = 0.5
"""Between two tries."""
_MAX_NAME_CHARS = 120


@dataclass(frozen=True, slots=True)
class GuestUnderTest:
    """The booted machine; how else to reach it will stand here too."""

    domain: Domain


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a check. ``answered``: the guest gave an answer, right or wrong, so it has
    booted. ``detail``: for people; what the guest said need not be made safe."""

    passed: bool
    answered: bool
    detail: str


class Check(Protocol):
    """``name`` and ``proves`` (what stands proven once it passed) are for people. ``timeout_s``
    limits each try; no try begins later than this after the guest first answered."""

    @property
    def name(self) -> str: ...

    @property
    def proves(self) -> str: ...

    @property
    def timeout_s(self) -> float: ...

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        """Raises ``UnknownVm`` where the machine is gone, ``HostError`` where the host failed."""
        ...


class Checker:
    """Runs checks on one guest, one after the other.

    Until the guest has answered for the first time it has ``boot_timeout_s`` in all, from the
    making of this object on.
    """

    def __init__(self, guest: GuestUnderTest, boot_timeout_s: float, clock: Clock) -> None:
        self._guest = guest
        self._clock = clock
        self._boot_deadline_s = clock.monotonic_s() + boot_timeout_s
        self._answered = False

    def run(self, check: Check) -> CheckResult:
        """Try until it passes or the time is over. Raises ``HostError``."""
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
            if attempt.passed:
                return attempt
            state = self._guest.domain.state()
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
