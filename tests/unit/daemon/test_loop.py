"""The service on real threads: it runs what is due, reloads, and ends within its time."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, ConfigError, DrillFailed, HostUnreachable
from drvm.core.progress import Progress
from drvm.daemon import loop
from drvm.daemon.loop import Service, Setup
from drvm.daemon.systemd import Systemd
from drvm.daemon.task import Chore, Outcome, Plan, Task
from drvm.runs.log import RunLog
from drvm.schedule.timing import NO_RETRY, Retry, Timing

LIMIT_S = 30.0
CLOCK = SystemClock()
Work = Callable[[Progress], Outcome]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question to the source and a look several times a second."""
    monkeypatch.setattr(loop, "ASK_EVERY_S", 0.2)
    monkeypatch.setattr(loop, "LOOK_EVERY_S", 0.2)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[RunLog]:
    with RunLog(tmp_path / "runs.db", CLOCK) as log:
        yield log


class Started:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.late: tuple[str, ...] | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.late = self.service.run()

    def end(self) -> tuple[str, ...] | None:
        self.service.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        return self.late


@pytest.fixture
def start(history: RunLog) -> Iterator[Callable[..., Started]]:
    """Starts a service in a thread; stops it, and proves that no thread of it is left."""
    before = set(threading.enumerate())
    started: list[Started] = []

    def run(setup: Setup, reload: Callable[[], Setup] | None = None) -> Started:
        made = Started(Service(setup, history, CLOCK, Systemd({}, CLOCK), reload))
        made.thread.start()
        started.append(made)
        return made

    yield run
    for made in started:
        if made.late is None:
            made.end()
        assert not set(threading.enumerate()) - before


def owed_at_once(work: Work, name: str = "u1", retry: Retry = NO_RETRY) -> Task:
    """A machine without any point."""
    timing = Timing("0 0 1 1 *")
    return Task("backup a", "backup", timing, work, vm=name, vm_uuid=name, retry=retry)


def test_what_is_owed_begins_once_and_is_in_the_record(
    start: Callable[..., Started], history: RunLog
) -> None:
    done = threading.Semaphore(0)

    def work(progress: Progress) -> Outcome:
        progress.stage("reading", 10)
        progress.advance(10)
        done.release()
        return Outcome(result="p1", stored_bytes=5)

    started = start(Setup(lambda: Plan([owed_at_once(work)])))
    assert done.acquire(timeout=LIMIT_S)
    assert not done.acquire(timeout=1.0)
    assert started.end() == ()
    (run,) = history.recent(5)
    assert (run.state, run.result, run.stored_bytes, run.done_bytes) == ("done", "p1", 5, 10)


def test_what_fails_in_any_way_is_tried_again_and_harms_no_other(
    start: Callable[..., Started], history: RunLog
) -> None:
    good, tries = threading.Event(), threading.Semaphore(0)

    def fails(error: BaseException) -> Work:
        def work(_: Progress) -> Outcome:
            tries.release()
            raise error

        return work

    errors = [CaptureError("gone", hint="look"), ZeroDivisionError(), SystemExit(3)]
    retry = Retry(1, 0.1)
    tasks = [owed_at_once(fails(error), f"u{n}", retry) for n, error in enumerate(errors)]

    def well(_: Progress) -> Outcome:
        good.set()
        return Outcome()

    started = start(Setup(lambda: Plan([*tasks, owed_at_once(well, "w")])))
    for _ in range(6):
        assert tries.acquire(timeout=LIMIT_S)
    assert good.wait(LIMIT_S) and not tries.acquire(timeout=0.5)
    assert started.end() == ()
    failed = [run for run in history.recent(20) if run.vm != "w"]
    assert {run.state for run in failed} == {"failed"}
    assert sorted(run.attempt for run in failed) == [1, 1, 1, 2, 2, 2]


def test_a_run_that_found_something_bad_failed_and_is_not_tried_again(
    start: Callable[..., Started], history: RunLog
) -> None:
    tries = threading.Semaphore(0)

    def work(_: Progress) -> Outcome:
        tries.release()
        return Outcome("d1", failure=DrillFailed("no answer", hint="drvm report"))

    started = start(Setup(lambda: Plan([owed_at_once(work, retry=Retry(1, 0.1))])))
    assert tries.acquire(timeout=LIMIT_S) and not tries.acquire(timeout=1.0)
    assert started.end() == ()
    (run,) = history.recent(5)
    told = (run.state, run.result, run.message, run.hint)
    assert told == ("failed", "d1", "no answer", "drvm report")


def test_a_stop_reaches_running_work_which_is_stopped_and_not_failed(
    start: Callable[..., Started], history: RunLog
) -> None:
    begun = threading.Event()

    def long(progress: Progress) -> Outcome:
        begun.set()
        while True:
            progress.advance(1)
            threading.Event().wait(0.01)

    started = start(Setup(lambda: Plan([owed_at_once(long)])))
    assert begun.wait(LIMIT_S)
    assert [run.vm for run in started.service.running()] == ["u1"]
    assert started.end() == ()
    assert [run.state for run in history.latest()] == ["stopped"] and history.running() == ()


def test_the_record_is_told_where_a_run_is(
    start: Callable[..., Started], history: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TELL_EVERY_S", 0.1)
    free = threading.Event()

    def slow(progress: Progress) -> Outcome:
        progress.stage("reading vda", 100)
        progress.advance(40)
        free.wait(LIMIT_S)
        return Outcome()

    start(Setup(lambda: Plan([owed_at_once(slow)])))
    deadline_s = CLOCK.monotonic_s() + LIMIT_S
    while CLOCK.monotonic_s() < deadline_s and not any(r.done_bytes for r in history.running()):
        CLOCK.sleep(0.05)
    (run,) = history.running()
    free.set()
    assert (run.stage, run.done_bytes, run.total_bytes) == ("reading vda", 40, 100)


def test_what_does_not_stop_is_named_and_not_waited_for(
    start: Callable[..., Started], history: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STOP_S", 0.5)
    before = set(threading.enumerate())
    begun, free = threading.Event(), threading.Event()

    def deaf(_: Progress) -> Outcome:
        begun.set()
        free.wait(LIMIT_S)
        return Outcome()

    started = start(Setup(lambda: Plan([owed_at_once(deaf)])))
    assert begun.wait(LIMIT_S)
    try:
        assert started.end() == ("backup a u1",) and started.service.hangs
        assert [run.state for run in history.latest()] == ["stopped"] and history.running() == ()
    finally:
        free.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(LIMIT_S)


def test_a_look_that_hangs_is_not_waited_for_and_is_no_run_that_did_not_end(
    start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STOP_S", 0.5)
    before = set(threading.enumerate())
    begun, free = threading.Event(), threading.Event()

    def look() -> Plan:
        begun.set()
        free.wait(LIMIT_S)
        return Plan([])

    started = start(Setup(look))
    assert begun.wait(LIMIT_S)
    try:
        assert started.end() == () and started.service.hangs
    finally:
        free.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(LIMIT_S)


def test_a_source_that_fails_leaves_what_it_said_before(
    start: Callable[..., Started], caplog: pytest.LogCaptureFixture
) -> None:
    ran, asked = threading.Event(), threading.Semaphore(0)
    answers: list[Plan] = []

    def work(_: Progress) -> Outcome:
        ran.set()
        return Outcome()

    def source() -> Plan:
        asked.release()
        if not answers:
            raise HostUnreachable("no route", hint="is it on?")
        return answers[-1]

    caplog.set_level(logging.INFO, "drvm")
    start(Setup(source))
    assert asked.acquire(timeout=LIMIT_S) and asked.acquire(timeout=LIMIT_S)
    answers.append(Plan([owed_at_once(work)]))
    assert ran.wait(LIMIT_S)
    told = [r.getMessage() for r in caplog.records if "what there is to do" in r.getMessage()]
    assert "no route (hint: is it on?)" in told[0]
    assert told[1] == "what there is to do is known again", "each once"


def test_a_reload_takes_the_new_setup_and_a_bad_config_changes_nothing(
    start: Callable[..., Started], caplog: pytest.LogCaptureFixture
) -> None:
    ran: dict[str, threading.Event] = {name: threading.Event() for name in ("old", "new")}

    def setup(name: str) -> Setup:
        def work(_: Progress) -> None:
            ran[name].set()

        return Setup(lambda: Plan([]), [Chore(name, 0.1, work)])

    answers: list[Setup] = []

    def reload() -> Setup:
        if not answers:
            raise ConfigError("2 mistakes", problems=["line 3: no", "line 5: no"])
        return answers[0]

    started = start(setup("old"), reload)
    assert ran["old"].wait(LIMIT_S)
    started.service.reload_soon()
    ran["old"].clear()
    assert ran["old"].wait(LIMIT_S)
    answers.append(setup("new"))
    started.service.reload_soon()
    assert ran["new"].wait(LIMIT_S)
    assert "2 mistakes; line 3: no; line 5: no" in caplog.text
    ran["old"].clear()
    assert not ran["old"].wait(0.5)


def test_a_reload_in_the_middle_of_a_look_is_looked_at_when_that_ends(
    start: Callable[..., Started],
) -> None:
    begun, free, seen = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Plan:
        begun.set()
        free.wait(LIMIT_S)
        return Plan([])

    def new() -> Plan:
        seen.set()
        return Plan([])

    read = threading.Event()

    def reload() -> Setup:
        read.set()
        return Setup(new)

    started = start(Setup(slow), reload)
    assert begun.wait(LIMIT_S)
    started.service.reload_soon()
    assert read.wait(LIMIT_S)
    CLOCK.sleep(0.5)  # the scheduler has dropped the question
    free.set()
    assert seen.wait(LIMIT_S / 2)
    assert started.end() == ()


def test_a_chore_that_fails_is_done_again(start: Callable[..., Started]) -> None:
    times = threading.Semaphore(0)

    def fails(_: Progress) -> None:
        times.release()
        raise CaptureError("no") if times._value % 2 else ZeroDivisionError()

    start(Setup(lambda: Plan([]), [Chore("alarms", 0.1, fails)]))
    for _ in range(3):
        assert times.acquire(timeout=LIMIT_S)


def test_what_is_asked_for_begins_now_and_only_once(
    start: Callable[..., Started], history: RunLog
) -> None:
    ran = threading.Semaphore(0)

    def work(_: Progress) -> Outcome:
        ran.release()
        return Outcome()

    started = start(Setup(lambda: Plan([])))
    identity = started.service.ask(owed_at_once(work))
    assert ran.acquire(timeout=LIMIT_S) and not ran.acquire(timeout=0.5)
    started.end()
    assert [(run.id, run.due) for run in history.recent(5)] == [(identity, None)]


def test_signals_stop_and_reload_in_the_main_thread(history: RunLog) -> None:
    reloads: list[int] = []

    def chore(_: Progress) -> None:
        number = signal.SIGTERM if reloads else signal.SIGHUP
        os.kill(os.getpid(), number)

    def reload() -> Setup:
        reloads.append(1)
        return setup

    setup = Setup(lambda: Plan([]), [Chore("signals", 0.2, chore)])
    before = signal.getsignal(signal.SIGTERM)
    assert Service(setup, history, CLOCK, Systemd({}, CLOCK), reload).run() == ()
    assert reloads and signal.getsignal(signal.SIGTERM) is before


def test_a_worker_that_cannot_be_had_is_a_failed_run_and_not_a_running_one(
    start: Callable[..., Started], history: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Service, "_begin", refuse)
    started = start(Setup(lambda: Plan([owed_at_once(lambda _: Outcome())])))
    deadline_s = CLOCK.monotonic_s() + LIMIT_S
    while not history.recent(1) and CLOCK.monotonic_s() < deadline_s:
        CLOCK.sleep(0.05)
    assert [run.state for run in history.recent(5)] == ["failed"]
    assert started.service.running() == ()


def test_the_log_of_apscheduler_is_quiet(
    start: Callable[..., Started], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "drvm")
    started = start(Setup(lambda: Plan([owed_at_once(lambda _: Outcome())])))
    threading.Event().wait(1.0)
    started.end()
    assert "apscheduler" not in {record.name.split(".")[0] for record in caplog.records}
