"""A record of runs as ``RunLog`` keeps it, in plain dictionaries; and what a death does to it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping

from drvm.runs.model import Run
from tests.year.time import HostClock

Key = tuple[str, str]


class Kept:
    """It outlives daemons."""

    def __init__(self) -> None:
        self.under_way: dict[str, Run] = {}
        self.last: dict[Key, Run] = {}
        self.good: dict[Key, dt.datetime] = {}
        self.told: dict[str, str] = {}
        self.all: list[Run] = []
        self.span_s: dict[str, tuple[float, float]] = {}
        """Of each run, in true time."""


class FakeHistory:
    """One daemon's door to it: closed when that dies."""

    def __init__(self, kept: Kept, clock: HostClock) -> None:
        self._kept, self._clock = kept, clock
        self.open = True
        for run in kept.under_way.values():
            lost = dataclasses.replace(run, state="lost", ended=clock.now())
            kept.last[run.job, run.vm_uuid] = lost
            kept.all.append(lost)
            kept.span_s[run.id] = (kept.span_s[run.id][0], clock.true_s)
        kept.under_way.clear()

    def begin(self, run: Run) -> None:
        if self.open:
            self._kept.under_way[run.id] = run
            self._kept.span_s[run.id] = (self._clock.true_s, self._clock.true_s)

    def progress(
        self, run_id: str, stage: str, done_bytes: int, total_bytes: int | None
    ) -> None: ...

    def finish(self, run: Run) -> None:
        if not self.open:
            return
        self._kept.under_way.pop(run.id, None)
        self._kept.last[run.job, run.vm_uuid] = run
        self._kept.all.append(run)
        began_s, _ = self._kept.span_s[run.id]
        self._kept.span_s[run.id] = (began_s, self._clock.true_s)
        if run.state in ("done", "warned"):
            self._kept.good[run.job, run.vm_uuid] = run.started

    def latest(self) -> tuple[Run, ...]:
        return tuple(self._kept.last.values())

    def last_good(self, job: str, vm_uuid: str = "") -> dt.datetime | None:
        return self._kept.good.get((job, vm_uuid))

    def facts(self, prefix: str = "") -> Mapping[str, str]:
        return {key: text for key, text in self._kept.told.items() if key.startswith(prefix)}

    def set_fact(self, key: str, value: str | None) -> None:
        if not self.open:
            return
        if value is None:
            self._kept.told.pop(key, None)
        else:
            self._kept.told[key] = value
