"""The engine decides what begins when; it neither waits nor works.

Somebody calls ``look`` at the moment that the last one named, whenever ``wake`` is called, and at
least twice a minute. Runs, and ``adopt``, come from other threads. Under the lock nothing is called
that may wait: no repository, no record of runs, no run.

What a crash leaves: runs that the record has as running, which it then calls lost, and guests that
every job's own recovery puts back. What is owed follows from the repository.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import logging
import threading
from collections.abc import Callable

from drvm.core.clock import Clock
from drvm.core.errors import UsageError
from drvm.core.ids import new_point_id
from drvm.daemon.memory import History, keep_seen, recall
from drvm.daemon.owed import Owed, Record, owed
from drvm.daemon.queue import Queue
from drvm.daemon.running import Told, carry_out
from drvm.daemon.slots import MAX_RUNNING, Slots
from drvm.daemon.task import Key, Plan, Task
from drvm.runs.model import Run

log = logging.getLogger("drvm.daemon")

__all__ = ["MAX_RUNNING", "Engine", "History"]

MAX_ASKED = 100
JUMP_S = 5.0
"""Wall clock and monotonic clock may drift apart so far between two looks."""
PATIENCE_S = 86400.0
"""So long a task is put off because others are at work on its machine; then that is a failure."""
UNCLAIMED_S = 120.0
"""A run that no worker took up by then never begins: there was no thread for it."""


@dataclasses.dataclass(slots=True)
class _Running:
    task: Task
    run: Run
    told: Told
    since_s: float
    claimed: bool = False


class Engine:
    """``begin`` gives work to a worker's thread at once, or raises. ``wake``: a look is wanted."""

    def __init__(
        self,
        history: History,
        clock: Clock,
        begin: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._history, self._clock = history, clock
        self._begin, self._wake = begin, wake
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._tasks: dict[Key, Task] = {}
        self._slots = Slots({})
        self._records: dict[Key, Record] = {}
        self._unkept: dict[Key, dt.datetime | None] = {}
        self._put_off: dict[Key, tuple[dt.datetime | None, float]] = {}
        self._queue = Queue()
        self._asked: dict[str, tuple[Task, Run]] = {}
        self._running: dict[str, _Running] = {}
        self._wall, self._steady_s = clock.now(), clock.monotonic_s()
        self.jumps = 0
        """How often the clock jumped: whoever waits for a moment must reckon anew."""

    def adopt(self, plan: Plan) -> None:
        """From now on this is to be done. What runs goes on, also what is not in it any more."""
        tasks: dict[Key, Task] = {}
        for task in plan.tasks:
            tasks.setdefault(task.key, task)
        known = self._records.keys()
        fresh = recall(self._history, [key for key in tasks if key not in known], self._clock)
        with self._lock:
            for key in self._tasks.keys() - tasks.keys():
                self._queue.drop(key)
            for key, task in tasks.items():
                if _differs(self._tasks.get(key), task):
                    self._queue.reconsider(key)
            self._tasks = tasks
            self._slots = Slots(dict(plan.limits), [run.task for run in self._running.values()])
            for key, record in fresh.items():
                self._records.setdefault(key, record)
            busy = {running.task.key for running in self._running.values()}
            for key in self._records.keys() - tasks.keys() - busy:
                del self._records[key]
                self._put_off.pop(key, None)
            unkept, self._unkept = self._unkept, {}
        keep_seen(self._history, unkept)
        self._wake()

    def look(self) -> dt.datetime | None:
        """Begin what is to begin. When something will be next; ``None``: nothing in sight."""
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        with self._lock:
            jump_s = (now - self._wall).total_seconds() - (now_s - self._steady_s)
            self._wall, self._steady_s = now, now_s
            if self._stop.is_set():
                return None
            if abs(jump_s) > JUMP_S:
                log.warning("the clock jumped by %.0f s", jump_s)
                self.jumps += 1
                self._queue.reconsider_all(self._tasks)
            unclaimed = self._give_up_unclaimed(now_s)
            for key in self._queue.take_reconsidered():
                self._place(key, now, now_s)
            self._queue.advance(now)
            chosen = self._choose(now, now_s)
            soonest = self._queue.soonest()
        for run in unclaimed:
            self._history.finish(run)
        for running in chosen:
            self._hand_over(running)
        return soonest

    def ask(self, task: Task) -> str:
        """Somebody wants it now: it begins as soon as limits and other runs of its machines allow,
        before all others. Returns the id of its run. Raises ``UsageError``."""
        with self._lock:
            for asked, run in self._asked.values():
                if asked.key == task.key:
                    return run.id
            if len(self._asked) >= MAX_ASKED:
                raise UsageError(
                    f"{MAX_ASKED} runs that were asked for wait already", hint="wait for them"
                )
            run = self._new_run(task, None, 1)
            self._asked[run.id] = (task, run)
        self._wake()
        return run.id

    def running(self) -> tuple[Run, ...]:
        """What runs now, and where it is."""
        with self._lock:
            found = [(running.told, running.run) for running in self._running.values()]
        return tuple(told.of(run) for told, run in found)

    def waiting(self) -> int:
        """How many runs could begin, but for limits and other runs."""
        with self._lock:
            return len(self._asked) + len(self._queue.waiting(self._wall))

    def stop(self) -> None:
        """No run begins any more, and those that run are told."""
        self._stop.set()
        self._wake()

    def abandon(self) -> tuple[Run, ...]:
        """What has not come back, for the process leaves now: the record has it as stopped."""
        with self._lock:
            late = self._claimed()
        ended = [
            dataclasses.replace(
                running.told.of(running.run),
                state="stopped",
                ended=self._clock.now(),
                message="it did not stop in time, and drvm ended",
            )
            for running in late
        ]
        for run in ended:
            self._history.finish(run)
        return tuple(ended)

    def _claimed(self) -> list[_Running]:
        return [running for running in self._running.values() if running.claimed]

    def _place(self, key: Key, now: dt.datetime, now_s: float) -> Owed | None:
        """Into the queue, at its moment. A run that cannot be reckoned must not stop the others."""
        task = self._tasks.get(key)
        if task is None:
            return None
        try:
            found = self._owed(task, now, now_s)
        except Exception:
            log.exception("%s %s: when it is due can't be told: this is a bug", *key)
            found = None
        if found is None:
            self._queue.drop(key)
        else:
            self._queue.put(key, task.order, found.begin, now)
        return found

    def _owed(self, task: Task, now: dt.datetime, now_s: float) -> Owed | None:
        record = self._records.setdefault(task.key, Record())
        try:
            return owed(task, record, now, now_s)
        except LookupError:
            record = dataclasses.replace(record, seen=now)
            self._records[task.key] = record
            self._unkept[task.key] = now
            return owed(task, record, now, now_s)

    def _choose(self, now: dt.datetime, now_s: float) -> list[_Running]:
        slots, chosen = self._slots, []
        for identity, (task, run) in list(self._asked.items()):
            if slots.fits(task):
                slots.add(task)
                del self._asked[identity]
                run = dataclasses.replace(run, started=now)
                chosen.append(_Running(task, run, Told(self._stop), now_s))
        for key in () if slots.full else self._queue.waiting(now):
            task = self._tasks[key]
            if not slots.fits(task):
                continue
            found = self._place(key, now, now_s)
            if found is None or found.begin > now:
                continue  # a blackout has begun meanwhile, or it is not owed any more
            slots.add(task)
            self._queue.drop(key)
            run = self._new_run(task, found.due, found.attempt)
            chosen.append(_Running(task, run, Told(self._stop), now_s))
        for running in chosen:
            self._running[running.run.id] = running
        return chosen

    def _new_run(self, task: Task, due: dt.datetime | None, attempt: int) -> Run:
        return Run(
            id=new_point_id(),
            job=task.job,
            kind=task.kind,
            vm=task.vm,
            vm_uuid=task.vm_uuid,
            host=task.host,
            due=due,
            started=self._clock.now(),
            attempt=attempt,
        )

    def _hand_over(self, running: _Running) -> None:
        try:
            self._begin(functools.partial(self._work, running))
        except Exception as error:
            log.exception("no worker takes up %s", running.run.job)
            with self._lock:
                if running.claimed or not self._take_out(running):
                    return
            run = self._unbegun(running, str(error))
            self._history.finish(run)
            self._ended(running, run)

    def _give_up_unclaimed(self, now_s: float) -> list[Run]:
        found = []
        for running in list(self._running.values()):
            if not running.claimed and now_s - running.since_s > UNCLAIMED_S:
                self._take_out(running)
                run = self._unbegun(running, "no thread took it up")
                self._note(running, run, now_s)
                log.error("%s %s: %s", run.job, run.vm, run.message)
                found.append(run)
        return found

    def _unbegun(self, running: _Running, why: str) -> Run:
        return dataclasses.replace(
            running.run, state="failed", ended=self._clock.now(), message=f"not begun: {why}"
        )

    def _work(self, running: _Running) -> None:
        """In a worker's thread."""
        with self._lock:
            given_up = self._stop.is_set() or running.run.id not in self._running
            running.claimed = not given_up
            if given_up:
                self._take_out(running)
        if given_up:
            return
        ended = None
        try:
            self._history.begin(running.run)
            ended = carry_out(running.task, running.run, running.told, self._clock)
            ended = self._patient(running.task, ended)
            self._history.finish(ended)
        finally:
            if ended is None:
                ended = dataclasses.replace(running.run, state="failed", message="this is a bug")
            self._ended(running, ended)

    def _patient(self, task: Task, run: Run) -> Run:
        """Put off for a day without any new good point, of whomever: people must know."""
        with self._lock:
            if run.state in ("done", "warned"):
                self._put_off.pop(task.key, None)
            if run.state != "stopped" or self._stop.is_set():
                return run
            now_s = self._clock.monotonic_s()
            good, since_s = self._put_off.get(task.key, (task.last_good, now_s))
            if good != task.last_good:
                good, since_s = task.last_good, now_s
            self._put_off[task.key] = (good, since_s)
        if now_s - since_s < PATIENCE_S:
            return run
        log.error("%s %s: put off for a day: %s", run.job, run.vm, run.message)
        return dataclasses.replace(run, state="failed", message=f"put off for a day: {run.message}")

    def _ended(self, running: _Running, run: Run) -> None:
        with self._lock:
            self._take_out(running)
            self._note(running, run, self._clock.monotonic_s())
        self._wake()

    def _take_out(self, running: _Running) -> bool:
        """Whether it was still in."""
        found = self._running.pop(running.run.id, None) is not None
        if found:
            self._slots.remove(running.task)
        return found

    def _note(self, running: _Running, run: Run, now_s: float) -> None:
        key = running.task.key
        record = self._records.get(key, Record())
        self._records[key] = record.after(run, now_s)
        if record.seen is not None and self._records[key].seen is None:
            self._unkept[key] = None
        self._queue.reconsider(key)


def _differs(old: Task | None, new: Task) -> bool:
    """Whether it may be owed at another moment now."""
    if old is None or old is new:
        return old is None
    return (
        old.last_good != new.last_good
        or old.timing != new.timing
        or old.retry != new.retry
        or old.order != new.order
    )
