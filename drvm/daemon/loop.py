"""The daemon's life: start, wake the engine when something is due, reload, stop within its time.

APScheduler holds the threads and wakes. Which run begins is the engine's decision, in the thread of
``Service.run``: its life is what systemd's watchdog watches. The source is asked in a thread of its
own, since hosts and stores may take minutes to say nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from drvm.core.clock import Clock, rfc3339
from drvm.core.errors import DrvmError, Interrupted
from drvm.core.progress import Progress
from drvm.daemon.engine import MAX_RUNNING, Engine, History
from drvm.daemon.running import Told
from drvm.daemon.systemd import Systemd
from drvm.daemon.task import ANSWERED, Chore, Source, Task
from drvm.runs.model import Run

log = logging.getLogger("drvm.daemon")

LOOK_EVERY_S = 10.0
ASK_EVERY_S = 60.0
TELL_EVERY_S = 5.0
"""How often the record is told where the runs are, for ``drvm status``: never by what copies."""
STOP_S = 22.0
"""systemd, and whoever stops the daemon by hand, is promised 30 s; the dashboard and those who tell
people get some of them (``drvm/cli/commands/daemon.py``)."""
ALIVE_S = 60.0
"""The loop turns every few seconds."""

_CHORES_AT_ONCE = 4
_LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""Due whatever the clock does meanwhile."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a config makes of the daemon."""

    source: Source
    chores: Sequence[Chore] = ()


class Service:
    """``reload`` reads the config anew, for SIGHUP; a ``DrvmError`` leaves everything as it is."""

    def __init__(
        self,
        setup: Setup,
        history: History,
        clock: Clock,
        systemd: Systemd,
        reload: Callable[[], Setup] | None = None,
    ) -> None:
        self._setup, self._history, self._clock = setup, history, clock
        self._systemd, self._reload = systemd, reload
        self._pokes: queue.SimpleQueue[None] = queue.SimpleQueue()  # put: also by a signal handler
        self._stopping = threading.Event()
        self._told_to_stop = self._told_to_reload = False
        self._progress: dict[str, tuple[str, int, int | None]] = {}
        self._turned_s = clock.monotonic_s()
        self._untold = ""
        self._adopting = threading.Lock()
        self.hangs = False
        """Behind ``run``: there are threads that an ordinary exit would wait for, if only of a look
        at a host; the process is to leave by ``os._exit``."""
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            executors={
                "runs": ThreadPoolExecutor(MAX_RUNNING),
                "chores": ThreadPoolExecutor(_CHORES_AT_ONCE),
                "source": ThreadPoolExecutor(1),
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        self.engine = Engine(history, clock, self._begin, self._poke)

    def run(self) -> tuple[str, ...]:
        """Until ``stop``, SIGTERM or SIGINT. Returns the runs that did not end in time: every step
        of every run may end like that."""
        with self._signals():
            self._scheduler.start()
            try:
                self._schedule()
                self._systemd.ready()
                self._loop()
            except (Interrupted, KeyboardInterrupt):
                pass
            finally:
                late = self._end()
        return late

    def stop(self) -> None:
        """From any thread, or a signal handler."""
        self._told_to_stop = True
        self._poke()

    def reload_soon(self) -> None:
        """From any thread, or a signal handler."""
        self._told_to_reload = True
        self._poke()

    def ask(self, task: Task) -> str:
        """``Engine.ask``."""
        return self.engine.ask(task)

    def running(self) -> tuple[Run, ...]:
        return self.engine.running()

    def lives(self) -> bool:
        """Whether the loop turns: what systemd's watchdog knows, for others."""
        return self._clock.monotonic_s() - self._turned_s < ALIVE_S

    def _loop(self) -> None:
        jumps = self.engine.jumps
        while not self._told_to_stop:
            if self._told_to_reload:
                self._told_to_reload = False
                self._read_anew()
                if self._told_to_stop:
                    break
            soonest = self.engine.look()
            if self.engine.jumps != jumps:
                jumps = self.engine.jumps
                self._schedule()  # its moments were those of another time
            if soonest is not None:
                trigger = DateTrigger(soonest)
                self._scheduler.add_job(self._poke, trigger, id="look", executor="chores", **_ANEW)
            self._systemd.alive()
            self._turned_s = self._clock.monotonic_s()
            self._tell_status(soonest)
            self._wait()

    def _wait(self) -> None:
        """For a poke; those that came meanwhile are one."""
        limit_s = min(LOOK_EVERY_S, (self._systemd.watchdog_s or LOOK_EVERY_S) / 2)
        with contextlib.suppress(queue.Empty):
            self._pokes.get(timeout=limit_s)
            while True:
                self._pokes.get_nowait()

    def _poke(self) -> None:
        self._pokes.put(None)

    def _begin(self, work: Callable[[], None]) -> None:
        self._scheduler.add_job(work, DateTrigger(_LONG_AGO), executor="runs")

    def _schedule(self) -> None:
        """The questions to the source and the chores, each now and then every so often."""
        now = self._clock.now()
        asking = IntervalTrigger(seconds=ASK_EVERY_S)
        self._scheduler.add_job(
            self._ask_source, asking, id="source", executor="source", next_run_time=now, **_ANEW
        )
        telling = Chore("progress", TELL_EVERY_S, self._tell_progress)
        wanted = {f"chore {chore.name}": chore for chore in (telling, *self._setup.chores)}
        for job in self._scheduler.get_jobs():
            if job.id.startswith("chore ") and job.id not in wanted:
                job.remove()
        for name, chore in wanted.items():
            self._scheduler.add_job(
                self._do,
                IntervalTrigger(seconds=chore.every_s),
                args=(chore,),
                id=name,
                executor="chores",
                next_run_time=now,
                **_ANEW,
            )

    def _ask_source(self) -> None:
        """Again at once where the config has changed meanwhile: the scheduler drops what is due
        while this still runs."""
        setup = None
        while setup is not self._setup and not self._stopping.is_set():
            setup = self._setup
            self._ask(setup)

    def _ask(self, setup: Setup) -> None:
        try:
            plan = setup.source()
        except DrvmError as error:
            if error.message != self._untold:  # once, however long it lasts
                log.error("what there is to do can't be told: %s", error.with_hint)
            self._untold = error.message
            return
        except Exception:
            log.exception("what there is to do can't be told: this is a bug")
            return
        if self._untold:
            log.info("what there is to do is known again")
        self._untold = ""
        with self._adopting:
            if setup is self._setup:  # else the config has changed meanwhile
                self.engine.adopt(plan)
                self._history.set_fact(ANSWERED, rfc3339(self._clock.now()))

    def _do(self, chore: Chore) -> None:
        try:
            chore.run(Told(self._stopping))
        except Interrupted:
            pass
        except DrvmError as error:
            log.error("%s: %s", chore.name, error.with_hint)
        except Exception:
            log.exception("%s: this is a bug", chore.name)

    def _tell_progress(self, _progress: Progress) -> None:
        before, self._progress = self._progress, {}
        for run in self.engine.running():
            now = (run.stage, run.done_bytes, run.total_bytes)
            self._progress[run.id] = now
            if before.get(run.id) != now:
                self._history.progress(run.id, *now)

    def _read_anew(self) -> None:
        """A config that is not valid changes nothing."""
        if self._reload is None:
            return
        self._systemd.reloading()
        try:
            setup = self._reload()
        except DrvmError as error:
            problems = "; ".join((error.message, *getattr(error, "problems", ())))
            log.error("the config stays as it was: %s", problems)
        except Exception:
            log.exception("the config stays as it was: this is a bug")
        else:
            with self._adopting:
                self._setup = setup
            self._schedule()
            log.info("the config was read anew")
        finally:
            self._systemd.ready()

    def _tell_status(self, soonest: dt.datetime | None) -> None:
        running, waiting = len(self.engine.running()), self.engine.waiting()
        following = f", next at {soonest:%Y-%m-%d %H:%M:%S} UTC" if soonest is not None else ""
        self._systemd.status(f"{running} running, {waiting} waiting{following}")

    def _end(self) -> tuple[str, ...]:
        """No thread is waited for beyond ``STOP_S``."""
        deadline_s = self._clock.monotonic_s() + STOP_S
        log.info("stopping")
        self._systemd.stopping()
        self._stopping.set()
        self.engine.stop()
        ending = threading.Thread(target=self._scheduler.shutdown, name="ending", daemon=True)
        ending.start()
        while ending.is_alive() and self._clock.monotonic_s() < deadline_s:
            self._systemd.alive()
            ending.join(1.0)
        late = [f"{run.job} {run.vm}".strip() for run in self.engine.abandon()]
        for name in late:
            log.error("%s did not end within %.0f s", name, STOP_S)
        self.hangs = ending.is_alive()
        if self.hangs and not late:
            log.warning("a host or store that does not answer is not waited for")
        return tuple(late)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            self.reload_soon() if number == signal.SIGHUP else self.stop()

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_ANEW = {"replace_existing": True}
