"""What the engine knows of earlier runs, also those of daemons before it: by the record of runs."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Protocol

from drvm.core.clock import Clock, known_moment, rfc3339
from drvm.daemon.owed import Record, recalled
from drvm.daemon.task import Key
from drvm.runs.model import Run

SEEN = "seen "


class History(Protocol):
    """What the engine needs of ``RunLog``; none of it raises."""

    def begin(self, run: Run) -> None: ...
    def progress(
        self, run_id: str, stage: str, done_bytes: int, total_bytes: int | None
    ) -> None: ...
    def finish(self, run: Run) -> None: ...
    def latest(self) -> tuple[Run, ...]: ...
    def last_good(self, job: str, vm_uuid: str = "") -> dt.datetime | None: ...
    def facts(self, prefix: str = "") -> Mapping[str, str]: ...
    def set_fact(self, key: str, value: str | None) -> None: ...


def recall(history: History, keys: Iterable[Key], clock: Clock) -> dict[Key, Record]:
    """For tasks that are new to the engine."""
    wanted = list(keys)
    if not wanted:
        return {}
    now, now_s = clock.now(), clock.monotonic_s()
    latest = {(run.job, run.vm_uuid): run for run in history.latest()}
    seen = history.facts(SEEN)
    found = {}
    for key in wanted:
        record = recalled(latest.get(key), history.last_good(*key), now, now_s)
        found[key] = dataclasses.replace(record, seen=known_moment(seen.get(_fact(key))))
    return found


def keep_seen(history: History, seen: Mapping[Key, dt.datetime | None]) -> None:
    """``None``: not needed any more."""
    for key, moment in seen.items():
        history.set_fact(_fact(key), None if moment is None else rfc3339(moment))


def _fact(key: Key) -> str:
    return f"{SEEN}{key[0]}\n{key[1]}"
