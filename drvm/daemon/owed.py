"""What a task is owed: by its schedule, the repository, and what became of its runs here. Pure.

A fire is answered by any good run, or good point, that is younger. So after a downtime one run
answers all fires that were missed, and a restart neither loses nor doubles one.

Clocks may be wrong. What is dated in the future answers nothing: such a task counts as good since
the moment at which that was seen, and goes on with its next fire. The fire that the last good run
answered is not answered again if the clock went back by less than three hours: that is cron's own
rule (cron(8)).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass

from drvm.core.clock import CLOCK_TOLERANCE
from drvm.daemon.task import Task
from drvm.runs.model import Run

SHORT_JUMP = dt.timedelta(hours=3)
POSTPONED_S = 300.0
"""How often it is looked whether who was at work on a machine has done."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a task on this host. ``good``: the begin of its last good run, which
    answered ``good_due``. ``tries`` of the fire ``failed_due`` failed, the last one at
    ``failed_at_s`` by the clock that never jumps. ``seen``: from when on fires count where nothing
    else says so. ``not_before_s``: by the same clock, as somebody else was at work on it."""

    good: dt.datetime | None = None
    good_due: dt.datetime | None = None
    failed_due: dt.datetime | None = None
    tries: int = 0
    failed_at_s: float = 0.0
    seen: dt.datetime | None = None
    not_before_s: float = 0.0

    def after(self, run: Run, now_s: float) -> Record:
        """``run`` has ended. One that was stopped counts as if it had never begun, and is not begun
        again at once. One that failed by what it found (it has a result) has done its work."""
        if run.state in ("done", "warned") or (run.state == "failed" and run.result):
            due = run.due or self.good_due
            return Record(good=run.started, good_due=due)
        if run.state in ("failed", "lost") and run.due is not None:
            return dataclasses.replace(
                self, failed_due=run.due, tries=run.attempt, failed_at_s=now_s
            )
        if run.state == "stopped":
            return dataclasses.replace(self, not_before_s=now_s + POSTPONED_S)
        return self


def recalled(run: Run | None, good: dt.datetime | None, now: dt.datetime, now_s: float) -> Record:
    """From the run that ended last, and the begin of the last good one. A wait goes on over a
    restart; a stopped try begins anew at once."""
    record = Record(good=good)
    if run is None or run.ended is None:
        return record
    ago_s = max(0.0, (now - run.ended).total_seconds())
    if run.state == "stopped" and run.attempt > 1:
        run = dataclasses.replace(run, state="failed", attempt=run.attempt - 1)
        ago_s = float("inf")
    if run.state == "stopped":
        return record
    return record.after(run, now_s - ago_s)


@dataclass(frozen=True, slots=True)
class Owed:
    """A run that answers ``due``, from ``begin`` on, the ``attempt``-th one (from 1)."""

    due: dt.datetime
    begin: dt.datetime
    attempt: int


def good_since(task: Task, record: Record, now: dt.datetime) -> dt.datetime | None:
    """Younger fires are unanswered; ``None``: all are, for a machine without any point. Raises
    ``LookupError`` where nothing tells: ``seen`` is to be ``now``."""
    latest = now + CLOCK_TOLERANCE
    known = [moment for moment in (task.last_good, record.good) if moment is not None]
    believed = [moment for moment in known if moment <= latest]
    if believed and (len(believed) == len(known) or record.good in believed):
        return max(believed)
    if not known and task.kind == "backup":
        return None
    if record.seen is None or record.seen > latest:
        raise LookupError
    return max(*believed, record.seen) if believed else record.seen


def owed(task: Task, record: Record, now: dt.datetime, now_s: float) -> Owed | None:
    """The run that is owed now, or else the next one; ``None``: never. Raises ``LookupError`` as
    ``good_since`` does."""
    found = _owed(task, record, now, now_s)
    left_s = record.not_before_s - now_s
    if found is None or left_s <= 0:
        return found
    begin = task.timing.clear(now + dt.timedelta(seconds=left_s))
    return None if begin is None else dataclasses.replace(found, begin=max(found.begin, begin))


def _owed(task: Task, record: Record, now: dt.datetime, now_s: float) -> Owed | None:
    timing, subject = task.timing, f"{task.job}\0{task.vm_uuid}"
    good = good_since(task, record, now)
    last = timing.last_fire(now)
    if last is not None and (good is None or good < last) and not _answered(record, last, now):
        if record.failed_due == last:
            wait_s = task.retry.wait_s(record.tries)
            if wait_s is not None:
                left_s = max(0.0, record.failed_at_s + wait_s - now_s)
                begin = timing.clear(now + dt.timedelta(seconds=left_s))
                if begin is not None and begin < timing.next_fire(last):
                    return Owed(last, begin, record.tries + 1)
        else:
            failed = record.failed_due
            settled = [moment for moment in (good, failed) if moment is not None and moment < last]
            first = timing.next_fire(max(settled)) if settled else last
            begin = timing.begin(first, subject)
            if begin is not None and begin <= now:
                clear = timing.clear(now)  # who is late may have come into a blackout
                begin = begin if clear == now else clear
            return None if begin is None else Owed(last, begin, 1)
    following = timing.next_fire(now if last is None else last)
    begin = timing.begin(following, subject)
    return None if begin is None else Owed(following, begin, 1)


def _answered(record: Record, last: dt.datetime, now: dt.datetime) -> bool:
    good = record.good
    return record.good_due == last and good is not None and now < good < now + SHORT_JUMP
