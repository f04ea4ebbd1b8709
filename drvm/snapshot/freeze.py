"""The instant of a capture: the guest's file systems are frozen, something is taken, they thaw.

A guest that stays frozen hangs. So the time is limited, a watchdog in a process of its own thaws
when it is up or we are dead, the thaw is repeated until it is confirmed, and where it can be,
freeze and thaw are inside one call of libvirtd's. A failure of the agent or of the watchdog costs
the label ``filesystem``, never the guest.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from drvm.core.clock import Clock
from drvm.core.errors import (
    AgentError,
    CaptureError,
    HostError,
    HostUnreachable,
    ProcessFailed,
    UnknownVm,
)
from drvm.host.model import Domain, DomainState
from drvm.snapshot.capture import CaptureRequest, Consistency
from drvm.snapshot.mountpoints import Chosen, choose, mounted
from drvm.snapshot.watchdog import Watch

_LIBVIRTS_AGENT_TIMEOUT_S = -2
_THAW_TRIES = 3
_THAW_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Instant:
    """``frozen_s``: from the request to freeze until the thaw was confirmed, 0 where nothing was
    tried. ``unsure``: a freeze may still be in force. ``mount_points``: what was frozen, where it
    was not all."""

    taken_at: dt.datetime
    consistency: Consistency
    frozen_s: float = 0.0
    unsure: bool = False
    warnings: tuple[str, ...] = ()
    mount_points: tuple[str, ...] = ()


class Thaw(enum.Enum):
    """How a guest was found when it was to be thawed."""

    DONE = enum.auto()
    """It was frozen, and has been seen thawed since; or it does not run any more."""
    BEFORE = enum.auto()
    """It was thawed already."""
    UNSURE = enum.auto()
    """It may still be frozen."""


class Freeze:
    """One freeze of one guest by a call of its own, under the watchdog.

    ``prepare``, ``begin``, take what is to be taken, ``taken``, ``end``: the last always, also
    after an error, and at once after a ``begin`` that failed. ``reason``: why the label is lost.
    """

    def __init__(self, domain: Domain, request: CaptureRequest, clock: Clock, watch: Watch) -> None:
        self._domain = domain
        self._request = request
        self._clock = clock
        self._watch = watch
        self._begun_s: float | None = None
        self._frozen_s = 0.0
        self._thawed = True
        self.reason: str | None = None
        self._chosen = Chosen(())

    def prepare(self) -> str | None:
        """Why the guest can't be frozen, before anything happens; ``None`` if it can be tried.
        Raises ``CaptureError`` where somebody else has frozen it."""
        request = self._request
        self.reason = why_not(self._domain, request, self._watch)
        if request.freeze and self.reason is None:
            try:
                there = mounted(self._domain, request.freeze_timeout_s)
            except AgentError as problem:
                self.reason = problem.message
                return self.reason
            self._chosen = choose(request.freeze, there)
            if not self._chosen.mount_points:
                self.reason = "none of the file systems that the policy wants frozen is there"
        return self.reason

    def begin(self) -> str | None:
        """Freeze what the request says, or why that failed; something may be frozen then."""
        self._begun_s = self._clock.monotonic_s()
        try:
            self._watch.freezing()
            self._domain.set_agent_timeout(self._request.freeze_timeout_s)
            if self._domain.freeze(self._chosen.mount_points) == 0:
                self.reason = "the agent froze no file system"
        except (HostError, ProcessFailed) as problem:
            self.reason = problem.message
        return self.reason

    def refuse_if_required(self) -> None:
        """Raises ``CaptureError`` where the request wants what was not to be had."""
        if self.reason is not None:
            refuse_if_required(self._domain, self._request, self.reason)

    def spoil(self, reason: str | None) -> None:
        """What is taken is not to be called consistent, whatever this guest did."""
        self.reason = self.reason or reason

    def taken(self) -> None:
        """What was taken counts as frozen if the watchdog can't have thawed the guest before."""
        if self._begun_s is not None and self.reason is None:
            self.reason = too_long(self._clock.monotonic_s() - self._begun_s, self._request)

    def end(self) -> None:
        """Thaw, as far as the agent answers; else the watchdog goes on with that. A guest that is
        thawed already was perhaps not frozen when something was taken of it."""
        if self._begun_s is None:
            return
        found = thaw(self._domain, self._clock, self._request.freeze_timeout_s)
        self._thawed = found is not Thaw.UNSURE
        if found is Thaw.BEFORE and self.reason is None:
            self.reason = "somebody else thawed the guest meanwhile"
        if self._thawed:
            self._watch.thawed()
        self._frozen_s = self._clock.monotonic_s() - self._begun_s
        self._begun_s = None
        _release_agent(self._domain)

    def instant(self, taken_at: dt.datetime) -> Instant:
        """After ``end``. Raises as ``refuse_if_required`` does."""
        self.refuse_if_required()
        words = [*self._chosen.warnings]
        if self.reason is not None:
            words.append(only_crash(self.reason))
        if not self._thawed:
            words.append("the guest may still be frozen")
        label: Consistency = "filesystem" if self.reason is None else "crash"
        frozen = self._chosen.mount_points if self.reason is None else ()
        return Instant(taken_at, label, self._frozen_s, not self._thawed, tuple(words), frozen)


class Taking(Protocol):
    """How the instant of one machine is taken: by itself (``alone``), or with those of others."""

    def __call__(
        self,
        domain: Domain,
        request: CaptureRequest,
        clock: Clock,
        watch: Watch,
        *,
        take: Callable[[bool], None],
        was_taken: Callable[[], bool] | None,
        freezing: Callable[[bool], None],
    ) -> Instant:
        """Freeze as the request says, ``take``, thaw; or take without a freeze, and only
        crash-consistent.

        ``take(True)`` is to freeze and thaw by itself. ``was_taken`` asks libvirt whether that
        took anything; ``None`` where libvirtd has no such call. ``take(False)`` is called once, if
        at all. ``freezing`` is called before anything happens, with whether a freeze will be
        tried: what it writes down is there when everything else is lost.

        Raises ``CaptureError`` where the request wants ``filesystem`` and it can't be had, or
        where somebody else has frozen the guest; whatever is raised, the guest is thawed as far as
        its agent answers, and what does not thaw at once is left to the watchdog.
        """
        ...


def alone(
    domain: Domain,
    request: CaptureRequest,
    clock: Clock,
    watch: Watch,
    *,
    take: Callable[[bool], None],
    was_taken: Callable[[], bool] | None,
    freezing: Callable[[bool], None],
) -> Instant:
    """Implements ``Taking``: in one call of libvirtd's where there is one that does it."""
    if was_taken is None or request.freeze:  # which freezes all there is
        freeze = Freeze(domain, request, clock, watch)
        return _held(freeze, request, clock, take, freezing)
    reason = why_not(domain, request, watch)
    tried = reason is None
    freezing(tried)
    if reason is None:
        done = _in_one_call(domain, request, clock, watch, take, was_taken)
        if isinstance(done, Instant):
            return done
        reason = done
    refuse_if_required(domain, request, reason)
    taken_at = clock.now()
    take(False)
    return Instant(taken_at, "crash", unsure=tried, warnings=(only_crash(reason),))


def _held(
    freeze: Freeze,
    request: CaptureRequest,
    clock: Clock,
    take: Callable[[bool], None],
    freezing: Callable[[bool], None],
) -> Instant:
    """By calls of their own for freeze and thaw."""
    reason = freeze.prepare()
    freezing(reason is None)
    try:
        if reason is None and freeze.begin() is not None:
            freeze.end()
        freeze.refuse_if_required()
        taken_at = clock.now()
        take(False)
        freeze.taken()
    finally:
        freeze.end()
    return freeze.instant(taken_at)


def why_not(domain: Domain, request: CaptureRequest, watch: Watch) -> str | None:
    """Asked before anything happens: an agent that does not answer is not sent a freeze, which it
    might obey when nobody thaws any more; and without a watchdog nothing is frozen."""
    if domain.state() is DomainState.PAUSED:
        return "the machine is paused"
    try:
        domain.agent_ping(timeout_s=request.freeze_timeout_s)
        watch.get_ready()
    except (AgentError, ProcessFailed) as problem:
        return problem.message
    if domain.filesystems_frozen(timeout_s=request.freeze_timeout_s):
        raise CaptureError(
            f"the file systems of {domain.name} are frozen by somebody else",
            hint="if nobody does it on purpose: virsh domfsthaw",
        )
    return None


def too_long(frozen_s: float, request: CaptureRequest) -> str | None:
    """The watchdog thaws when the limit is up and not before: what was done by then was done
    while the guest stood still."""
    if frozen_s < request.freeze_timeout_s:
        return None
    return f"the freeze took longer than {request.freeze_timeout_s} s and was ended"


def refuse_if_required(domain: Domain, request: CaptureRequest, reason: str) -> None:
    if request.require_filesystem:
        raise CaptureError(
            f"the file systems of {domain.name} can't be frozen: {reason}",
            hint="the policy asks for it; is qemu-guest-agent running in the guest?",
        )


def thaw(domain: Domain, clock: Clock, timeout_s: int) -> Thaw:
    """A few tries, but none after an agent's silence: the watchdog tries for longer. Raises
    nothing."""
    try:
        for number in range(_THAW_TRIES):
            frozen = domain.filesystems_frozen(timeout_s=timeout_s)
            if frozen is False:
                return Thaw.DONE if number else Thaw.BEFORE
            if domain.state() is DomainState.SHUTOFF:
                return Thaw.DONE
            if frozen is None:
                return Thaw.UNSURE
            with contextlib.suppress(AgentError):
                domain.thaw()
                continue
            clock.sleep(_THAW_PAUSE_S)
    except UnknownVm:
        return Thaw.DONE
    except HostError:
        return Thaw.UNSURE
    return Thaw.UNSURE


def _in_one_call(
    domain: Domain,
    request: CaptureRequest,
    clock: Clock,
    watch: Watch,
    take: Callable[[bool], None],
    was_taken: Callable[[], bool],
) -> Instant | str:
    """The reason where the agent failed before anything was taken."""
    taken_at, start_s = clock.now(), clock.monotonic_s()
    words: list[str] = []
    thawed = True
    try:
        watch.freezing()
        domain.set_agent_timeout(request.freeze_timeout_s)
        take(True)
        took_s = clock.monotonic_s() - start_s
    except ProcessFailed as problem:
        return problem.message
    except HostUnreachable:
        raise
    except HostError as problem:  # what a hostile agent says is not always known as the agent's
        took_s = clock.monotonic_s() - start_s
        thawed = thaw(domain, clock, request.freeze_timeout_s) is not Thaw.UNSURE
        if not was_taken():
            if thawed:
                watch.thawed()
            return problem.message
        # libvirtd froze and took the snapshot, but its thaw failed
        late = "the thaw was late" if thawed else "the guest may still be frozen"
        words.append(f"{late}: {problem.message}")
    finally:
        _release_agent(domain)
    if thawed:
        watch.thawed()
    reason = too_long(took_s, request)
    if reason is not None:
        refuse_if_required(domain, request, reason)
        words.append(only_crash(reason))
    label: Consistency = "filesystem" if reason is None else "crash"
    frozen_s = clock.monotonic_s() - start_s
    return Instant(taken_at, label, frozen_s, not thawed, tuple(words))


def only_crash(reason: str) -> str:
    return f"only crash-consistent: {reason}"


def _release_agent(domain: Domain) -> None:
    with contextlib.suppress(HostError, UnknownVm):
        domain.set_agent_timeout(_LIBVIRTS_AGENT_TIMEOUT_S)
