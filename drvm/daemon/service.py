"""The daemon's loop: start, run jobs when they are due, and stop cleanly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from drvm.core.errors import DrvmError, Interrupted
from drvm.core.progress import Progress
from drvm.daemon.trigger import CronsimTrigger

log = logging.getLogger("drvm.daemon")

WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Job:
    """``run`` gets a progress that ends it when the daemon is to stop. ``time_zone`` is an IANA
    name. ``aside``: it never waits for others, and only what it says itself is logged."""

    name: str
    schedule: str
    time_zone: str
    run: Callable[[Progress], None]
    aside: bool = False


class Stoppable:
    """A progress through which a stop reaches running work: the next ``advance`` raises
    ``Interrupted``, and so every ``with`` and ``finally`` puts the guest back."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        log.info("%s", title)

    def advance(self, done_bytes: int) -> None:
        if self._stop.is_set():
            raise Interrupted("the daemon is stopping")


class Service:
    """Runs jobs by their schedules, at most ``max_parallel`` at once, each at most once; those
    ``aside`` one after the other besides.

    A run that is late is made up for once, however many were missed meanwhile. A job that fails
    is logged, and runs again at its next time.
    """

    def __init__(self, jobs: Sequence[Job], *, max_parallel: int) -> None:
        self._jobs = tuple(jobs)
        self._max_parallel = max_parallel
        self._stop = threading.Event()

    def run(self) -> None:
        """Until ``KeyboardInterrupt`` or ``Interrupted`` is raised in this thread (a signal), or
        ``stop`` is called by another. Returns when all running jobs have ended."""
        scheduler = BackgroundScheduler(
            timezone="UTC",
            executors={
                "default": ThreadPoolExecutor(self._max_parallel),
                "aside": ThreadPoolExecutor(1),
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for job in self._jobs:
            trigger = CronsimTrigger(job.schedule, job.time_zone)
            executor = "aside" if job.aside else "default"
            scheduler.add_job(self._run_job, trigger, args=(job,), name=job.name, executor=executor)
        scheduler.start()
        try:
            for entry in scheduler.get_jobs():
                log.info("%s: next at %s", entry.name, entry.next_run_time.isoformat())
            while not self._stop.wait(WAIT_S):
                pass
        finally:
            self._stop.set()
            log.info("stopping")
            scheduler.shutdown(wait=True)

    def stop(self) -> None:
        self._stop.set()

    def _run_job(self, job: Job) -> None:
        """Nothing that a job raises reaches the scheduler's threads."""
        usual = logging.DEBUG if job.aside else logging.INFO
        log.log(usual, "%s: started", job.name)
        try:
            job.run(Stoppable(self._stop))
        except Interrupted as error:
            log.warning("%s: ended early: %s", job.name, error.message)
        except DrvmError as error:
            hint = f" (hint: {error.hint})" if error.hint else ""
            log.error("%s: %s%s", job.name, error.message, hint)
        except Exception:
            log.exception("%s: this is a bug", job.name)
        else:
            log.log(usual, "%s: done", job.name)
