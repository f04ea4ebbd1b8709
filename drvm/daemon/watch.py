"""Looks once a minute at what is wrong, tells people, and writes the figures for monitoring.

It judges nothing itself but what only the daemon can see: that it can't look, that a run does not
move, that somebody can't be told. A crash between two lines leaves messages that are told twice,
under their ids, and never one that is not told.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from drvm.core.clock import Clock, known_moment
from drvm.core.errors import DrvmError
from drvm.core.text import printable
from drvm.daemon import alarms
from drvm.daemon.alarms import Alarm, Rules
from drvm.daemon.figures import RunRecord, job_figures, way_figures
from drvm.daemon.looked import Life, note_look
from drvm.daemon.task import ANSWERED
from drvm.notify.outbox import Outbox
from drvm.notify.postman import Postman
from drvm.report.attention import Concern, attention, is_made_good
from drvm.report.input import ReportInput
from drvm.report.metrics import Figures, exposition
from drvm.runs.model import Run

log = logging.getLogger("drvm.alarms")

ALARMS = "alarms"
"""Fact of the record of runs: what was raised."""

AWAY_AFTER = dt.timedelta(minutes=5)
STUCK_AFTER_S = 6 * 3600.0
SILENT_AFTER = dt.timedelta(minutes=15)
BLIND_AFTER_S = 300.0
NEW_FOR_S = 900.0
"""For the first point of a VM that has just joined."""
DEAF_AFTER = dt.timedelta(minutes=15)
"""The source of what there is to do answers once a minute, unless the repository is away."""


class Record(RunRecord, Protocol):
    """What it needs of ``RunLog``; none of it raises."""

    @property
    def problem(self) -> str | None: ...


class Watch:
    """``look`` is called each minute, aside from the queue of runs; all else by any thread.
    ``gather`` may take long, and raise. ``host``: how this drvm calls itself."""

    def __init__(
        self,
        gather: Callable[[], ReportInput],
        record: Record,
        clock: Clock,
        host: str,
        textfile: Path | None = None,
        rules: Rules | None = None,
        life: Life | None = None,
    ) -> None:
        self._gather = gather
        self._record = record
        self._clock = clock
        self._host = host
        self._textfile = textfile
        self._rules = rules or Rules()
        self._lock = threading.Lock()
        self._postman: Postman | None = None
        self._started = clock.now()
        self._life = life or Life(started=self._started)
        self._answered_before = record.fact(ANSWERED)
        self._report: ReportInput | None = None
        self._concerns: tuple[Concern, ...] = ()
        self._seen: tuple[Concern, ...] = ()
        self._looked: dt.datetime | None = None
        self._looked_s = clock.monotonic_s()
        self._away_since: dt.datetime | None = None
        self._problem = ""
        self._unwritten = ""
        self._moved: dict[str, tuple[tuple[str, int], float]] = {}
        self._still: set[str] = set()  # runs that no look has seen to move
        self._fresh: dict[str, float] = {}

    def tell_by(self, postman: Postman) -> None:
        self._postman = postman

    def works(self) -> bool:
        """For the dead man's ping: looks come and end, and no run stands still."""
        blind = self._looked is None or self._clock.monotonic_s() - self._looked_s > BLIND_AFTER_S
        deaf = next(self._deaf(self._clock.now()), None)
        return not blind and deaf is None and not list(self._stuck(self._record.running()))

    def look(self, now: dt.datetime) -> None:
        """Raises nothing."""
        with self._lock:
            self._look_around(now)
            running = self._record.running()
            self._note_moves(running)
            self._seen = seen = (*self._patient(), *self._own_concerns(now, running))
            before = alarms.decode(self._record.fact(ALARMS))
            after, messages = alarms.step(
                before, seen, now, self._host, self._rules, self._may_last
            )
            for message in messages:
                level = logging.INFO if message.event == "over" else logging.WARNING
                log.log(level, "%s: %s: %s", message.event, message.kind, message.text)
            if messages and self._postman is not None:
                self._postman.tell(messages)  # before it counts as told
            if after != before:
                self._record.set_fact(ALARMS, alarms.encode(after))
            self._looked, self._looked_s = now, self._clock.monotonic_s()
            self._note_look(now)
            self._write_textfile()

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        with self._lock:
            return self._exposition().decode()

    def _look_around(self, now: dt.datetime) -> None:
        try:
            self._report = self._gather()
            self._concerns = attention(self._report)
            self._away_since, self._problem = None, ""
            return
        except DrvmError as error:
            self._problem = error.message
        except Exception as error:
            log.exception("nobody can say what is wrong: this is a bug")
            self._problem = f"this is a bug: {type(error).__name__}"
        self._away_since = min(self._away_since or now, now)
        self._concerns = ()

    def _patient(self) -> Iterator[Concern]:
        """Without what mostly passes: a VM that has just joined has no point yet and is about to be
        backed up, a libvirtd that is restarted does not answer for some seconds."""
        now_s = self._clock.monotonic_s()
        before, self._fresh = self._fresh, {}
        for concern in self._concerns:
            patience_s = _patience_s(concern)
            if patience_s:
                self._fresh[concern.key] = before.get(concern.key, now_s)
                if now_s - self._fresh[concern.key] < patience_s:
                    continue
            yield concern

    def _may_last(self, alarm: Alarm) -> bool:
        """Where a host does not answer, nobody can say anything of the VMs that are not seen. What
        failed lasts until it is done, also while it is tried again."""
        if alarm.key.startswith(_OWN):
            return self._own_may_last(alarm.key)
        if self._problem or self._report is None:
            return True
        if alarm.key in self._fresh:
            return True
        for run in self._report.runs:
            # what is to be tried again, or was stopped, is not over
            of_run = alarm.key == f"failure {run.job} {run.vm_uuid}".rstrip()
            if of_run and run.state not in ("done", "warned"):
                return not is_made_good(self._report, run)
        if not self._report.unreachable or not alarm.vm_uuid or alarm.key.startswith("held "):
            return False
        row = next((row for row in self._report.vms if row.vm_uuid == alarm.vm_uuid), None)
        return row is None or row.policy is None or row.host == "not seen"

    def _own_may_last(self, key: str) -> bool:
        """One that began with a new config, or process, has not yet waited as long as the one
        before it: what that one raised is not over for it."""
        if key == _AWAY:
            return bool(self._problem)
        if key == _SOURCE:
            return bool(self._problem) or self._record.fact(ANSWERED) == self._answered_before
        return key.removeprefix(_STUCK) in self._still

    def _own_concerns(self, now: dt.datetime, running: Sequence[Run]) -> Iterator[Concern]:
        if self._away_since is not None and now - self._away_since >= AWAY_AFTER:
            yield Concern(
                _AWAY, "failure", "critical", "",
                f"the repository can't be looked at: {self._problem}",
                "drvm doctor; no point can be taken meanwhile, nor restored", self._away_since,
            )  # fmt: skip
        yield from self._deaf(now)
        for run in self._stuck(running):
            yield Concern(
                f"{_STUCK}{run.id}", "failure", "warning", run.vm,
                f"{run.job} has not moved for {STUCK_AFTER_S / 3600:.0f} h: {run.stage}",
                "look at the daemon's log; systemctl restart drvm gives it up and puts the guest"
                " back", run.started, run.vm_uuid,
            )  # fmt: skip
        if problem := self._record.problem:
            yield Concern(
                f"{_OWN} record", "failure", "warning", "", printable(problem, 300),
                "see to state_dir: room, permissions; what jobs did is kept in memory meanwhile",
            )  # fmt: skip
        if self._unwritten:
            yield Concern(
                f"{_OWN} textfile", "failure", "warning", "",
                f"the metrics can't be written: {self._unwritten}", "see daemon.metrics.textfile",
            )  # fmt: skip
        boxes = self._postman.outboxes() if self._postman is not None else {}
        yield from silent_ways(boxes, now)

    def _deaf(self, now: dt.datetime) -> Iterator[Concern]:
        """Nothing new begins: VMs, fires of schedules, what somebody took out of the config."""
        answered = known_moment(self._record.fact(ANSWERED))
        last = max(answered, self._started) if answered is not None else self._started
        if not self._problem and now - last >= DEAF_AFTER:
            yield Concern(
                _SOURCE, "failure", "critical", "",
                f"the daemon has not learnt since {last:%Y-%m-%d %H:%M} UTC what there is to do",
                "its log says what it waits for; systemctl restart drvm", last,
            )  # fmt: skip

    def _note_moves(self, running: Sequence[Run]) -> None:
        now_s = self._clock.monotonic_s()
        before, self._moved = self._moved, {}
        for run in running:
            where = (run.stage, run.done_bytes)
            last = before.get(run.id)
            self._moved[run.id] = last if last is not None and last[0] == where else (where, now_s)
            if last is None:
                self._still.add(run.id)
            elif last[0] != where:
                self._still.discard(run.id)
        self._still &= self._moved.keys()

    def _stuck(self, running: Sequence[Run]) -> Iterator[Run]:
        now_s = self._clock.monotonic_s()
        moved = self._moved
        for run in running:
            if run.id in moved and now_s - moved[run.id][1] >= STUCK_AFTER_S:
                yield run

    def _note_look(self, now: dt.datetime) -> None:
        note_look(self._record, self._life, now, self._problem)

    def _exposition(self) -> bytes:
        boxes = self._postman.outboxes() if self._postman is not None else {}
        figures = Figures(
            report=self._report,
            concerns=self._seen,
            reachable=self._report is not None and not self._problem,
            looked=self._looked,
            jobs=job_figures(self._record, self._clock.now()),
            ways=way_figures(boxes),
        )
        return exposition(figures)

    def _write_textfile(self) -> None:
        if self._textfile is None:
            return
        try:
            write_for_all(self._textfile, self._exposition())
            self._unwritten = ""
        except OSError as error:
            text = f"{(error.strerror or str(error)).lower()}: {self._textfile}"
            if text != self._unwritten:
                log.warning("the metrics can't be written: %s", text)
            self._unwritten = text


_OWN = "daemon"
"""Keys of what the daemon sees of itself begin so."""
_AWAY, _SOURCE, _STUCK = f"{_OWN} away", f"{_OWN} source", f"{_OWN} stuck "


def silent_ways(boxes: Mapping[str, Outbox], now: dt.datetime) -> Iterator[Concern]:
    """``boxes``: by the names of their ways."""
    for name, box in boxes.items():
        if box.failing_since is not None and now - box.failing_since >= SILENT_AFTER:
            yield Concern(
                f"{_OWN} notify {name}", "failure", "warning", "",
                f"nobody can be told by {name}: {box.failure}", "see notify in the config",
                box.failing_since,
            )  # fmt: skip


def _patience_s(concern: Concern) -> float:
    if concern.kind == "rpo" and concern.since is None:
        return NEW_FOR_S
    return AWAY_AFTER.total_seconds() if concern.key.startswith(("host ", "held ")) else 0.0


def write_for_all(path: Path, data: bytes) -> None:
    """Replace ``path`` as a whole, readable by every user, without a sync: it is written anew each
    minute. Raises ``OSError``; a crash leaves at most one hidden file, which the next one takes
    away."""
    temporary = path.with_name(f".{path.name}.drvm-partial")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), 0o644)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
