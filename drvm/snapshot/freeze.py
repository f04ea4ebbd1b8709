"""The instant of a capture: the guest's file systems are frozen, something is taken, they thaw.

A guest that stays frozen hangs. So the time is limited, the thaw is repeated until it is
confirmed, and where it can be, freeze and thaw are inside one call of libvirtd's, which ends also
when drvm is killed. A failure of the agent costs the label ``filesystem``, never the guest.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.errors import AgentError, CaptureError, HostError
from drvm.host.model import Domain, DomainState
from drvm.snapshot.capture import CaptureRequest, Consistency

_LIBVIRTS_AGENT_TIMEOUT_S = -2
_THAW_TRIES = 3
_THAW_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Instant:
    """``frozen_s``: from the request to freeze until the thaw was confirmed, 0 where nothing was
    frozen. ``unsure``: a freeze was tried, and failed, or nobody has seen the guest thawed."""

    taken_at: dt.datetime
    consistency: Consistency
    frozen_s: float = 0.0
    unsure: bool = False
    warnings: tuple[str, ...] = ()


def quiesced(
    domain: Domain,
    request: CaptureRequest,
    clock: Clock,
    *,
    take: Callable[[bool], None],
    was_taken: Callable[[], bool],
    freezing: Callable[[bool], None],
) -> Instant:
    """Freeze, take and thaw in one call of libvirtd's, ``take(True)``; where the agent fails,
    ``take(False)``, and only crash-consistent.

    ``freezing`` is called before anything happens, with whether a freeze will be tried: what it
    writes down is there when everything else is lost. ``was_taken`` asks libvirt. Raises
    ``CaptureError`` where the request wants ``filesystem`` and it can't be had, or where somebody
    else has frozen the guest; whatever is raised, the guest is thawed as far as its agent answers.
    """
    reason = why_not(domain, request)
    tried = reason is None
    freezing(tried)
    if reason is None:
        instant, reason = _in_one_call(domain, request, clock, take, was_taken)
        if instant is not None:
            return instant
    refuse_if_required(domain, request, reason)
    taken_at = clock.now()
    take(False)
    return unfrozen(taken_at, reason, tried=tried)


def held(
    domain: Domain,
    request: CaptureRequest,
    clock: Clock,
    *,
    take: Callable[[], None],
    freezing: Callable[[bool], None],
) -> Instant:
    """As ``quiesced``, by calls of their own for freeze and thaw, for what libvirtd does not do
    in one. ``take`` is called once."""
    reason = why_not(domain, request)
    tried = reason is None
    freezing(tried)
    if reason is None:
        domain.set_agent_timeout(request.freeze_timeout_s)
        try:
            taken_at, start_s = clock.now(), clock.monotonic_s()
            try:
                domain.freeze()
                take()
            except AgentError as problem:
                reason = problem.message
            finally:
                thawed = thaw(domain, clock)
            if reason is None:
                frozen_s = clock.monotonic_s() - start_s
                words = () if thawed else ("the guest may still be frozen",)
                return Instant(taken_at, "filesystem", frozen_s, not thawed, words)
        finally:
            with contextlib.suppress(HostError):
                domain.set_agent_timeout(_LIBVIRTS_AGENT_TIMEOUT_S)
    refuse_if_required(domain, request, reason)
    taken_at = clock.now()
    take()
    return unfrozen(taken_at, reason, tried=tried)


def why_not(domain: Domain, request: CaptureRequest) -> str | None:
    """Asked before anything happens: an agent that does not answer is not sent a freeze, which it
    might obey when nobody thaws any more."""
    if domain.state() is DomainState.PAUSED:
        return "the machine is paused"
    try:
        domain.agent_ping(timeout_s=request.freeze_timeout_s)
    except AgentError as problem:
        return problem.message
    if domain.filesystems_frozen():
        raise CaptureError(
            f"the file systems of {domain.name} are frozen by somebody else",
            hint="if nobody does it on purpose: virsh domfsthaw",
        )
    return None


def refuse_if_required(domain: Domain, request: CaptureRequest, reason: str) -> None:
    if request.require_filesystem:
        raise CaptureError(
            f"the file systems of {domain.name} can't be frozen: {reason}",
            hint="the policy asks for it; is qemu-guest-agent running in the guest?",
        )


def unfrozen(taken_at: dt.datetime, reason: str, *, tried: bool) -> Instant:
    words = f"only crash-consistent: {reason}"
    return Instant(taken_at, "crash", unsure=tried, warnings=(words,))


def thaw(domain: Domain, clock: Clock) -> bool:
    """Whether the guest was seen thawed; a few tries."""
    for _ in range(_THAW_TRIES):
        frozen = domain.filesystems_frozen()
        if frozen is False:
            return True
        if frozen:
            with contextlib.suppress(AgentError):
                domain.thaw()
                continue
        clock.sleep(_THAW_PAUSE_S)
    return False


def _in_one_call(
    domain: Domain,
    request: CaptureRequest,
    clock: Clock,
    take: Callable[[bool], None],
    was_taken: Callable[[], bool],
) -> tuple[Instant | None, str]:
    """No instant, and the reason, where the agent failed before anything was taken."""
    domain.set_agent_timeout(request.freeze_timeout_s)
    try:
        taken_at, start_s = clock.now(), clock.monotonic_s()
        try:
            take(True)
            return Instant(taken_at, "filesystem", clock.monotonic_s() - start_s), ""
        except AgentError as problem:
            thawed = thaw(domain, clock)
            frozen_s = clock.monotonic_s() - start_s
            if not was_taken():
                return None, problem.message
            # libvirtd froze and took the snapshot, but its thaw failed
            words = f"the thaw was late: {problem.message}"
            if not thawed:
                words = f"the guest may still be frozen: {problem.message}"
            return Instant(taken_at, "filesystem", frozen_s, not thawed, (words,)), ""
    finally:
        with contextlib.suppress(HostError):
            domain.set_agent_timeout(_LIBVIRTS_AGENT_TIMEOUT_S)
