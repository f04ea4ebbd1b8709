"""One job, now, in the foreground: for people and for timers of their own.

The engine's limits, retries and blackouts are not asked; the locks and leases of machines hold.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, Interrupted
from drvm.core.ids import new_point_id
from drvm.core.progress import Progress
from drvm.daemon.running import Told, carry_out
from drvm.daemon.task import Outcome, Task
from drvm.runs.log import RunLog
from drvm.runs.model import Run

TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A run, and what it failed of."""

    run: Run
    error: DrvmError | None


def run_alone(
    tasks: Sequence[Task], history: RunLog, clock: Clock, progress: Progress
) -> Iterator[Ended]:
    """One after the other; each is in the record while it runs, and when it has ended. One that
    fails does not keep the others from being run; an interruption does."""
    for task in sorted(tasks, key=lambda task: (task.order, task.vm)):
        ended = _run(task, history, clock, progress)
        yield ended
        if isinstance(ended.error, Interrupted):
            return


def _run(task: Task, history: RunLog, clock: Clock, progress: Progress) -> Ended:
    run = Run(
        id=new_point_id(),
        job=task.job,
        kind=task.kind,
        vm=task.vm,
        vm_uuid=task.vm_uuid,
        host=task.host,
        due=None,
        started=clock.now(),
    )
    errors: list[DrvmError] = []
    stop = threading.Event()

    def work(told: Progress) -> Outcome:
        try:
            outcome = task.run(told)
            if outcome.failure is not None:
                errors.append(outcome.failure)
            return outcome
        except KeyboardInterrupt:
            stop.set()
            errors.append(Interrupted("ended by SIGINT"))
            raise errors[0] from None
        except DrvmError as error:
            if isinstance(error, Interrupted):
                stop.set()
            errors.append(error)
            raise

    told = _Shown(run, history, clock, progress, stop)
    history.begin(run)
    ended = carry_out(dataclasses.replace(task, run=work), run, told, clock)
    history.finish(ended)
    return Ended(ended, errors[0] if errors else None)


class _Shown(Told):
    """On the terminal too, and now and then in the record, which others look at."""

    def __init__(
        self, run: Run, history: RunLog, clock: Clock, progress: Progress, stop: threading.Event
    ) -> None:
        super().__init__(stop)
        self._run, self._history, self._clock, self._progress = run, history, clock, progress
        self._told_s = clock.monotonic_s()

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        super().stage(title, total_bytes)
        self._progress.stage(title, total_bytes)
        self._tell()

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        self._progress.advance(done_bytes)
        now_s = self._clock.monotonic_s()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            self._tell()

    def _tell(self) -> None:
        now = self.of(self._run)
        self._history.progress(now.id, now.stage, now.done_bytes, now.total_bytes)
