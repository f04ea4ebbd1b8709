"""How much the repository held, day by day, as this host saw it: for the report's forecast.

What is gone from a repository has left no trace in it, so growth can't be read from it afterwards.
A sample a day is kept in the state directory instead. It is only a history: where it is lost or
can't be written, there is no forecast for two weeks, and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from drvm.core.clock import Clock
from drvm.core.files import write_durably
from drvm.report.input import StorageSample, VmRow
from drvm.repository.layout import PACKS
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.wiring.assembly import Wiring

LIST_EVERY_S = 3600.0
"""A repository of 30 TiB has a million packs, a thousand requests to list them."""

MAX_SAMPLES = 400
_OLDEST = dt.timedelta(days=MAX_SAMPLES)
_MAX_FILE_BYTES = 1024 * 1024
_FUTURE = dt.timedelta(hours=1)

_decoder = msgspec.json.Decoder(tuple[StorageSample, ...])


class _Packs:
    """The bytes of all packs, listed once in a while by a whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listed: tuple[float, int] | None = None

    def stored_bytes(self, repository: Repository, clock: Clock) -> int:
        with self._lock:
            now_s = clock.monotonic_s()
            if self._listed is None or now_s - self._listed[0] >= LIST_EVERY_S:
                total = sum(info.size_bytes for info in repository.store.list(PACKS))
                self._listed = (now_s, total)
            return self._listed[1]


@functools.lru_cache(maxsize=8)
def _packs(_location: str, _repository_id: str) -> _Packs:
    return _Packs()


def stored_bytes(repository: Repository, clock: Clock) -> int:
    """Of all packs, at most ``LIST_EVERY_S`` ago."""
    return _packs(repository.store.location, repository.id).stored_bytes(repository, clock)


def storage_of(
    wiring: Wiring, points: Sequence[Point], rows: Sequence[VmRow]
) -> tuple[StorageSample, ...]:
    """What is kept, and now; the oldest first. Raises the store's errors."""
    repository = wiring.repository()
    now = StorageSample(
        taken=wiring.clock.now(),
        stored_bytes=stored_bytes(repository, wiring.clock),
        protected_bytes=sum(row.disk_bytes for row in rows),
        points_bytes=sum(disk.size_bytes for point in points for disk in point.manifest.disks),
        points=len(points),
    )
    if wiring.settings.as_of is not None:
        return (now,)
    return samples_with(Path(wiring.settings.state_dir), repository.id, now)


def samples_with(
    state_dir: Path, repository_id: str, now: StorageSample
) -> tuple[StorageSample, ...]:
    """Those that are kept, and ``now``, which is kept as the one of its day. What lies in the
    future is left out, and kept as far as there is room: a clock that was set back for an hour must
    not cost the history. A crash leaves the file as it was."""
    path = state_dir / f"storage-{repository_id}.json"
    known = _read(path)
    kept = [one for one in known if now.taken - _OLDEST <= one.taken <= now.taken + _FUTURE]
    before = [sample for sample in kept if sample.taken.date() < now.taken.date()]
    samples = (*before[-(MAX_SAMPLES - 1) :], now)
    ahead = [one for one in known if one.taken > now.taken + _FUTURE]
    first_of_its_day = len(before) == len(kept)
    if first_of_its_day or msgspec.structs.replace(kept[-1], taken=now.taken) != now:
        with contextlib.suppress(OSError):  # read-only, full, or not ours to write
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, msgspec.json.encode((*samples, *ahead)[:MAX_SAMPLES]))
    return samples


def _read(path: Path) -> list[StorageSample]:
    """The oldest first; nothing where the file is damaged, too large or not there."""
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_FILE_BYTES else b""
        samples = _decoder.decode(data)
    except (OSError, msgspec.MsgspecError):
        return []
    aware = [sample for sample in samples if sample.taken.tzinfo is not None]
    return sorted(aware, key=lambda sample: sample.taken)
