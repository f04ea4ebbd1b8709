"""What was read back, and when: a small record of each run of a check, for all hosts.

The names of packs and other objects are hashes or random, so they lie evenly on a circle. A run
reads an arc of it, whole; runs that follow one another take arcs that do, and so read every byte
within as many runs as shares make the whole, whatever came and went in between. From the arcs it
follows when each pack was read last. docs/adr/028-check.md.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from drvm.chunker.blocks import BlockHasher
from drvm.core.errors import ObjectDamaged, ObjectMissing, RepositoryError, UsageError
from drvm.core.progress import Trace, no_trace
from drvm.repository.crypto import Sealer
from drvm.repository.keys import MAX_SLOT_BYTES, is_slot
from drvm.repository.layout import CHECKS, KEYS, check_object, decode_json, is_check
from drvm.repository.manifest import MAX_COUNT
from drvm.repository.packcheck import Fault, examine
from drvm.repository.points import create_once
from drvm.repository.remembered import Remembered
from drvm.store.base import Store

CIRCLE = 1 << 64
RECORDS_READ = 256
"""The newest; older ones say nothing that matters."""
MAX_SHARES = 10_000

_PART = re.compile(r"(\d{1,5})/(\d{1,5})", re.ASCII)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,2})?) ?%", re.ASCII)


@dataclass(frozen=True, slots=True)
class Arc:
    """``length`` positions of the circle, from ``start`` on and round."""

    start: int
    length: int

    def distance(self, name: bytes) -> int:
        """How far the object lies behind the start."""
        return (int.from_bytes(name[:8], "big") - self.start) % CIRCLE

    def __contains__(self, name: bytes) -> bool:
        return self.distance(name) < self.length

    @property
    def end(self) -> int:
        return (self.start + self.length) % CIRCLE


NOTHING = Arc(0, 0)
WHOLE = Arc(0, CIRCLE)


@dataclass(frozen=True, slots=True)
class Share:
    """How much is to be read: ``part`` of ``parts``, or, where it is 0, ``percent`` of all from
    where the last such run ended."""

    part: int = 0
    parts: int = 0
    percent: float = 0.0

    @property
    def rotates(self) -> bool:
        return not self.parts

    def arc(self, last_end: int) -> Arc:
        if self.parts:
            start, end = (CIRCLE * n // self.parts for n in (self.part - 1, self.part))
            return Arc(start, end - start)
        length = -(-CIRCLE * round(self.percent * 100) // 10_000)
        return Arc(last_end, min(length, CIRCLE))


def parse_share(text: str) -> Share:
    """``3/7`` or ``10%``. Raises ``UsageError``."""
    if match := _PART.fullmatch(text):
        part, parts = int(match[1]), int(match[2])
        if 1 <= part <= parts <= MAX_SHARES:
            return Share(part, parts)
    if (match := _PERCENT.fullmatch(text)) and 0.01 <= float(match[1]) <= 100:
        return Share(percent=float(match[1]))
    raise UsageError(
        f"{text!r:.40} is not a share of the data",
        hint="write it as 10%, or as 3/7: the third of seven parts",
    )


class CheckRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``start``: of the arc, 16 hex; ``length``: 17 hex. ``rotates``: the next such run begins at
    its end. ``seconds``: how long it took; ``packs`` and ``read_bytes``: what was read;
    ``damaged``: packs. ``created`` and ``host`` are for people: the store says when it was."""

    start: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    length: Annotated[str, msgspec.Meta(pattern=r"\A[01][0-9a-f]{16}\Z")]
    rotates: bool
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    packs: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    read_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    damaged: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    created: str
    host: str

    @property
    def arc(self) -> Arc:
        return Arc(int(self.start, 16), min(int(self.length, 16), CIRCLE))


def arc_fields(arc: Arc) -> dict[str, str]:
    """As a record has them."""
    return {"start": f"{arc.start:016x}", "length": f"{arc.length:017x}"}


@dataclass(frozen=True, slots=True)
class Past:
    """A run that is on record; ``began`` by the store's time."""

    record: CheckRecord
    began: dt.datetime


@dataclass(frozen=True, slots=True)
class History:
    """``runs``: the newest last. ``unreadable``: names of records that don't open."""

    runs: tuple[Past, ...]
    unreadable: tuple[str, ...]

    @property
    def last_end(self) -> int:
        """Where the last run that rotates ended."""
        ends = (past.record.arc.end for past in reversed(self.runs) if past.record.rotates)
        return next(ends, 0)

    def last_read(self, name: bytes, stored: dt.datetime) -> dt.datetime | None:
        """When a pack, ``stored`` then, was read back last; ``None`` if never."""
        found = (past.began for past in self.runs if name in past.record.arc)
        return max((began for began in found if began > stored), default=None)


class Checks:
    """What a check asks of a repository beside its points."""

    def __init__(self, store: Store, sealer: Sealer, hasher: BlockHasher) -> None:
        self._store = store
        self._sealer = sealer
        self._hasher = hasher

    def examine(self, name: bytes, data: bytes) -> Fault | None:
        """What is wrong with the pack of this name, whose whole object is ``data``."""
        return examine(name, data, self._sealer, self._hasher)

    def open(self, purpose: bytes, name: str) -> bytes:
        """The content of a sealed object. Raises ``ObjectMissing`` and ``DamageFound``."""
        return self._sealer.open_object(purpose, name, self._store.get(name))

    def unreadable_slots(self) -> list[str]:
        """Key slots that no passphrase opens."""
        listed = self._store.list(KEYS)
        return [i.name for i in listed if i.size_bytes > MAX_SLOT_BYTES or not self._slot(i.name)]

    def history(self, remembered: Remembered | None = None) -> History:
        return read_history(self._store, self._sealer, remembered)

    def record(self, record: CheckRecord, trace: Trace = no_trace) -> None:
        """A crash leaves a record or none."""
        create_record(self._store, self._sealer, record, trace)

    def _slot(self, name: str) -> bool:
        try:
            return is_slot(name, self._store.get(name))
        except ObjectMissing:  # removed since the listing
            return True
        except ObjectDamaged:
            return False


def create_record(
    store: Store, sealer: Sealer, record: CheckRecord, trace: Trace = no_trace
) -> None:
    name = check_object(secrets.token_hex(8))
    create_once(store, name, sealer.seal_object(b"check", name, msgspec.json.encode(record)))
    trace("check-recorded")


def read_history(store: Store, sealer: Sealer, remembered: Remembered | None = None) -> History:
    remembered = remembered or Remembered()
    listed = [info for info in store.list(CHECKS) if is_check(info.name)]
    listed.sort(key=lambda info: (info.modified, info.name))
    runs: list[Past] = []
    unreadable: list[str] = []
    for info in listed[-RECORDS_READ:]:
        with contextlib.suppress(ObjectMissing):
            try:
                read = functools.partial(_read_record, store, sealer, info.name)
                record = remembered.of((info,), read)
            except (ObjectDamaged, RepositoryError):
                unreadable.append(info.name)
                continue
            runs.append(Past(record, _before(info.modified, record.seconds)))
    remembered.keep_only(CHECKS, [info.name for info in listed[-RECORDS_READ:]])
    return History(tuple(runs), tuple(unreadable))


def _read_record(store: Store, sealer: Sealer, name: str) -> CheckRecord:
    plain = sealer.open_object(b"check", name, store.get(name))
    return decode_json(plain, CheckRecord, name)


def oldest_read(
    history: History, packs: Iterable[tuple[bytes, dt.datetime]]
) -> tuple[dt.datetime | None, int]:
    """(the longest ago that one of the packs, given with their times, was read back; how many
    never were)."""
    oldest: dt.datetime | None = None
    never = 0
    recent = _recent(history.runs)
    for name, stored in packs:
        last = recent.last_read(name, stored)
        if last is None:
            never += 1
        elif oldest is None or last < oldest:
            oldest = last
    return oldest, never


def _recent(runs: Sequence[Past]) -> History:
    """Without runs that newer ones cover, where that is plain to see: a hundred thousand packs
    are compared with each."""
    kept: list[Past] = []
    for past in reversed(runs):
        if all(past.record.arc != newer.record.arc for newer in kept):
            kept.append(past)
        if past.record.arc.length == CIRCLE:
            break
    return History(tuple(reversed(kept)), ())


def _before(moment: dt.datetime, seconds: float) -> dt.datetime:
    try:
        return moment - dt.timedelta(seconds=seconds)
    except OverflowError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)
