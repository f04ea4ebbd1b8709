"""One run under way: its progress, which a stop reaches, and what becomes of it."""

from __future__ import annotations

import dataclasses
import logging
import threading

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, Interrupted, Locked
from drvm.daemon.logs import about
from drvm.daemon.task import Outcome, Task
from drvm.runs.model import Run, State

log = logging.getLogger("drvm.daemon")


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """What ``Run`` says of a progress."""

    stage: str
    done_bytes: int
    total_bytes: int | None


class Told:
    """A run's progress. A stop reaches running work through it: the next ``advance`` raises
    ``Interrupted``, and so every ``with`` and ``finally`` puts the guest back."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._stage = ""
        self._done_bytes = 0
        self._total_bytes: int | None = None

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        with self._lock:
            self._stage, self._done_bytes, self._total_bytes = title, 0, total_bytes
        log.info("%s", title)

    def advance(self, done_bytes: int) -> None:
        if self._stop.is_set():
            raise Interrupted("the daemon is stopping")
        with self._lock:
            self._done_bytes += done_bytes

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def now(self) -> Where:
        with self._lock:
            return Where(self._stage, self._done_bytes, self._total_bytes)

    def of(self, run: Run) -> Run:
        """``run``, where it is now."""
        now = self.now()
        return dataclasses.replace(
            run, stage=now.stage, done_bytes=now.done_bytes, total_bytes=now.total_bytes
        )


def carry_out(task: Task, run: Run, told: Told, clock: Clock) -> Run:
    """``run`` as it ended. Nothing that the task raises goes further: its thread is a worker's."""
    with about(job=task.job, run=run.id, vm=task.vm):
        return _carry_out(task, run, told, clock)


def _carry_out(task: Task, run: Run, told: Told, clock: Clock) -> Run:
    name = f"{task.job}: {task.vm}" if task.vm else task.job
    log.info("%s: started", name)
    state: State = "failed"
    outcome = Outcome()
    try:
        outcome = task.run(told)
        if outcome.failure is None:
            state = "warned" if outcome.warned else "done"
    except Interrupted as error:
        # What ends early by itself must not begin again at once.
        state = "stopped" if told.stopping else "failed"
        outcome = Outcome(message=error.message, hint=error.hint)
        log.warning("%s: ended early: %s", name, error.message)
    except Locked as error:
        # Nothing is wrong: somebody else does it, perhaps for many hours.
        state = "stopped"
        outcome = Outcome(message=error.message, hint=error.hint)
        log.info("%s: not now: %s", name, error.message)
    except DrvmError as error:
        outcome = Outcome(failure=error)
    except BaseException as error:  # also what would end a thread silently
        bug = f"this is a bug: {type(error).__name__}: {error}"
        outcome = Outcome(message=bug, hint="see the daemon's log")
        log.exception("%s: this is a bug", name)
    else:
        warned = f", with a warning: {outcome.message}" if outcome.warned else ""
        log.info("%s: %s%s", name, "ended" if outcome.failure is not None else "done", warned)
    if (failure := outcome.failure) is not None:
        outcome = dataclasses.replace(outcome, message=failure.message, hint=failure.hint)
        log.error("%s: %s", name, failure.with_hint)
    now = told.now()
    return dataclasses.replace(
        run,
        ended=clock.now(),
        state=state,
        message=outcome.message,
        hint=outcome.hint,
        result=outcome.result,
        stored_bytes=outcome.stored_bytes,
        stage=now.stage,
        done_bytes=now.done_bytes,
        total_bytes=now.total_bytes,
    )
