"""Several machines as one consistency group.

Each member is captured by its own engine, with all that belongs to that; only the instants are
taken together (``together``). Whoever fails makes all others give up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from types import TracebackType

from drvm.core.errors import CaptureError, CleanupFailed, DrvmError
from drvm.core.threads import Pool
from drvm.host.model import DomainState
from drvm.snapshot.capture import CaptureRequest, Engine, FrozenMachine
from drvm.snapshot.choose import choose
from drvm.snapshot.parts import Parts
from drvm.snapshot.together import Together

_MAX_MEMBERS = 64

Capture = contextlib.AbstractContextManager[FrozenMachine]


class Captured:
    """One member's capture, entered already: a context of its own, so that each machine is put
    back as soon as its own point is written."""

    def __init__(self, capture: Capture, machine: FrozenMachine) -> None:
        self._capture = capture
        self._machine = machine
        self._left = False

    def __enter__(self) -> FrozenMachine:
        return self._machine

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """See ``Engine.capture``. Does nothing the second time."""
        if self._left:
            return None
        self._left = True
        return self._capture.__exit__(kind, error, trace)


@contextlib.contextmanager
def capture_group(
    parts: Parts, requests: Sequence[CaptureRequest]
) -> Iterator[tuple[Captured, ...]]:
    """Captures of all machines at one instant, in the order of ``requests``.

    Those that are off take part as they are. Of those that run, all get the label ``filesystem``
    or all ``crash``. Raises ``CaptureError`` where any can't be captured: before anything is
    frozen, as far as that is known before. Leaving puts back whatever was not left by itself.
    """
    if len(requests) > _MAX_MEMBERS:
        raise CaptureError(f"a group of more than {_MAX_MEMBERS} machines is not supported")
    members = _in_order(parts, requests)
    running = [member for member in members if member.runs]
    together = Together(len(running))
    entered: dict[str, Captured] = {}
    with contextlib.ExitStack() as stack:

        def enter(member: _Member) -> None:
            given = replace(parts, taking=together.taking) if member.runs else parts
            capture = _engine(given, member).capture(member.request)
            captured = Captured(capture, capture.__enter__())
            stack.push(captured)
            entered[member.uuid] = captured

        for member in members:
            if not member.runs:
                enter(member)
        _enter_together(running, together, enter)
        uuids = {member.request.vm: member.uuid for member in members}
        yield tuple(entered[uuids[request.vm]] for request in requests)


@dataclass(frozen=True, slots=True)
class _Member:
    request: CaptureRequest
    uuid: str
    runs: bool


def _in_order(parts: Parts, requests: Sequence[CaptureRequest]) -> list[_Member]:
    """By UUID: in this order the machines' locks are taken, whoever asks for which group."""
    members = []
    for request in requests:
        domain = parts.host.domain(request.vm)
        runs = domain.state() is not DomainState.SHUTOFF
        members.append(_Member(request, domain.uuid, runs))
    if len({member.uuid for member in members}) < len(members):
        raise CaptureError("a machine is named twice in its group")
    return sorted(members, key=lambda member: member.uuid)


def _engine(parts: Parts, member: _Member) -> Engine:
    choice = choose(parts, member.uuid)
    domain = parts.host.domain(member.uuid)
    if (domain.state() is not DomainState.SHUTOFF) != member.runs:
        raise CaptureError(f"{domain.name} was started or stopped meanwhile", hint="try again")
    return choice.engine


def _enter_together(
    members: Sequence[_Member], together: Together, enter: Callable[[_Member], None]
) -> None:
    """Each in a thread of its own, begun when the one before has all but its instant."""
    futures: list[Future[None]] = []
    with Pool(len(members) or 1, thread_name_prefix="group") as pool:
        try:
            for number, member in enumerate(members, 1):
                futures.append(pool.submit(enter, member))
                futures[-1].add_done_callback(lambda f: together.give_up(f.exception()))
                if not together.wait_for(number):
                    break
            wait(futures)
        except BaseException as interruption:
            together.give_up(interruption)
            raise
    if together.failure is not None:
        raise _with_cleanup(together.failure, futures)


def _with_cleanup(failure: BaseException, futures: Sequence[Future[None]]) -> BaseException:
    """What went wrong first; and which machines are, because of that, not back on their disks."""
    errors = [future.exception() for future in futures]
    left = [e for e in errors if isinstance(e, CleanupFailed) and e is not failure]
    if not left or not isinstance(failure, DrvmError):
        return failure
    words = "; ".join(error.message for error in (failure, *left))
    return CleanupFailed(words, hint=left[0].hint)
