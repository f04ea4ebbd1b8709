"""What is still to be told by one way, and how it went; kept over restarts. Pure."""

from __future__ import annotations

import datetime as dt

import msgspec

from drvm.core.errors import NotifyFailed
from drvm.notify.model import Message

MOST_PENDING = 100
GIVE_UP_AFTER = dt.timedelta(days=3)
REFUSALS = 3
FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 600.0


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """``pending``: the oldest first, at most ``MOST_PENDING``; told in their order. ``attempts``:
    of the first of them. ``lost``: messages that nobody will get by this way. ``failure``: of the
    last attempt, empty where it went well; ``failing_since``: the first one since it did."""

    pending: tuple[Message, ...] = ()
    attempts: int = 0
    next_try: dt.datetime | None = None
    told: int = 0
    failed: int = 0
    lost: int = 0
    last_told: dt.datetime | None = None
    failure: str = ""
    failing_since: dt.datetime | None = None

    def with_message(self, message: Message) -> Outbox:
        """Once, however often it is put in."""
        if any(known.id == message.id for known in self.pending):
            return self
        room = self.pending if len(self.pending) < MOST_PENDING else self.pending[1:]
        return msgspec.structs.replace(
            self,
            pending=(*room, message),
            attempts=self.attempts if len(room) == len(self.pending) else 0,
            lost=self.lost + len(self.pending) - len(room),
        )

    def due(self, now: dt.datetime) -> Message | None:
        """What to tell now. A clock that was set back holds nothing up."""
        longest = dt.timedelta(seconds=LONGEST_PAUSE_S)
        if self.next_try is not None and now < self.next_try <= now + longest:
            return None
        return self.pending[0] if self.pending else None

    def arrived(self, message: Message | None, now: dt.datetime) -> Outbox:
        """``None``: a ping."""
        rest = tuple(kept for kept in self.pending if message is None or kept.id != message.id)
        return msgspec.structs.replace(
            self,
            pending=rest,
            attempts=0,
            next_try=None,
            told=self.told + 1,
            last_told=now,
            failure="",
            failing_since=None,
        )

    def not_arrived(
        self, message: Message | None, now: dt.datetime, text: str, *, refused: bool
    ) -> Outbox:
        """Later again; where it was refused some times, or is days old, never."""
        attempts = self.attempts + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 20))
        failing = msgspec.structs.replace(
            self,
            attempts=attempts,
            next_try=now + dt.timedelta(seconds=pause_s),
            failed=self.failed + 1,
            failure=text,
            failing_since=self.failing_since or now,
        )
        if message is None:
            return failing
        if (refused and attempts >= REFUSALS) or now - message.at > GIVE_UP_AFTER:
            rest = tuple(kept for kept in self.pending if kept.id != message.id)
            return msgspec.structs.replace(
                failing, pending=rest, attempts=0, next_try=None, lost=self.lost + 1
            )
        return failing


_decoder = msgspec.json.Decoder(Outbox)


def encode(outbox: Outbox) -> str:
    return msgspec.json.encode(outbox).decode()


def decode(text: str | None) -> Outbox:
    """An empty one for what can't be read: it was written by another drvm, or is damaged."""
    try:
        return Outbox() if text is None else _decoder.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Outbox()


def reason(error: Exception) -> tuple[str, bool]:
    """For ``not_arrived``: what to say, and whether it was refused."""
    if isinstance(error, NotifyFailed):
        return f"{error.message}{f' ({error.hint})' if error.hint else ''}", error.refused
    return str(error), False
