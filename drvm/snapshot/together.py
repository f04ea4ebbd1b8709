"""The one instant of several machines: all are frozen before anything of any of them is taken, and
none is thawed before everything is taken.

Each machine's capture runs in a thread of its own and comes to ``Together.taking`` for its instant.
There the threads wait for each other, stage by stage, so that all decide alike.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError, DrvmError
from drvm.host.model import Domain
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.freeze import Freeze, Instant
from drvm.snapshot.watchdog import Watch

_LIMIT_S = 120.0
"""For any one stage. Frozen guests don't wait that long: their watchdogs thaw them."""

_PREPARING_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Word:
    """What one machine says at one stage. ``reason``: why it is not frozen."""

    vm: str
    reason: str | None
    required: bool
    moment: dt.datetime


class Together:
    """``members``: how many machines come to ``taking``, which implements ``Taking``."""

    def __init__(self, members: int) -> None:
        self._members = members
        self._changed = threading.Condition()  # re-entrant
        self._said: dict[str, list[_Word]] = {}
        self.failure: BaseException | None = None

    def give_up(self, error: BaseException | None) -> None:
        """All members that wait, or will, raise ``CaptureError``. The first error counts, ``None``
        is none."""
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()

    def wait_for(self, members: int) -> bool:
        """Until so many have come to their instant; ``False`` if the group was given up."""
        with self._changed:
            came = self._said.setdefault("arrived", [])
            return self._wait(lambda: len(came) >= members, _PREPARING_LIMIT_S)

    def taking(
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
        """One label for all: ``filesystem`` where all were frozen from before the first was taken
        until after the last, within the limit of each."""
        freeze = Freeze(domain, request, clock, watch)

        def agree(stage: str, reason: str | None, limit_s: float = _LIMIT_S) -> dt.datetime:
            """When all had come that far. A reason of one is a reason for all."""
            word = _Word(domain.name, reason, request.require_filesystem, clock.now())
            words = self._meet(stage, word, limit_s)
            freeze.spoil(_reason(words))
            return max(word.moment for word in words)

        try:
            agree("arrived", None, _PREPARING_LIMIT_S)
            taken_at = agree("prepared", freeze.prepare())
            freezing(freeze.reason is None)
            if freeze.reason is None:
                taken_at = agree("frozen", freeze.begin())
            if freeze.reason is not None:
                freeze.end()
            take(False)
            agree("taken", None)
            freeze.taken()
            freeze.end()
            agree("thawed", freeze.reason)
        except BaseException as error:
            self.give_up(error)
            raise
        finally:
            freeze.end()
        return freeze.instant(taken_at)

    def _meet(self, stage: str, word: _Word, limit_s: float) -> list[_Word]:
        with self._changed:
            words = self._said.setdefault(stage, [])
            words.append(word)
            self._changed.notify_all()
            if not self._wait(lambda: len(words) == self._members, limit_s):
                why = self.failure.message if isinstance(self.failure, DrvmError) else "interrupted"
                raise CaptureError(f"{word.vm} is not captured, as its group is not: {why}")
            return list(words)

    def _wait(self, is_true: Callable[[], bool], limit_s: float) -> bool:
        """The caller holds the lock."""
        if not self._changed.wait_for(lambda: self.failure is not None or is_true(), limit_s):
            late = CaptureError("the machines of the group did not all come so far in time")
            self.give_up(late)
        return self.failure is None


def _reason(words: list[_Word]) -> str | None:
    """Raises ``CaptureError`` where any of the group may not do without."""
    refused = next((word for word in words if word.reason is not None), None)
    if refused is None:
        return None
    if any(word.required for word in words):
        raise CaptureError(
            f"the file systems of {refused.vm} can't be frozen: {refused.reason}",
            hint="the policy asks for it; is qemu-guest-agent running in the guest?",
        )
    return f"{refused.vm} of its group can't be frozen: {refused.reason}"
