"""The loop runs what is due, survives what fails, and stops what runs."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from drvm.core.errors import CaptureError, Interrupted
from drvm.core.progress import Progress
from drvm.daemon import service
from drvm.daemon.service import Job, Service, Stoppable

LIMIT_S = 30.0


class EverySoOften(service.CronsimTrigger):
    """Fires a few times a second, whatever the expression says."""

    def get_next_fire_time(
        self, previous_fire_time: dt.datetime | None, now: dt.datetime
    ) -> dt.datetime:
        return (previous_fire_time or now) + dt.timedelta(milliseconds=50)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CronsimTrigger", EverySoOften)


@pytest.fixture
def running() -> Iterator[Callable[..., Service]]:
    """Starts a service in a thread; stops it, and proves that it ended."""
    started: list[tuple[Service, threading.Thread]] = []

    def run(
        *work: Callable[[Progress], None],
        max_parallel: int = 2,
        aside: tuple[Callable[[Progress], None], ...] = (),
    ) -> Service:
        jobs = [
            Job(f"job {n}", "* * * * *", "UTC", each, aside=each in aside)
            for n, each in enumerate((*work, *aside))
        ]
        made = Service(jobs, max_parallel=max_parallel)
        thread = threading.Thread(target=made.run)
        thread.start()
        started.append((made, thread))
        return made

    yield run
    for made, thread in started:
        made.stop()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_a_job_that_fails_runs_again_and_does_not_stop_the_others(running, caplog) -> None:
    failed, others = threading.Semaphore(0), threading.Semaphore(0)

    def fails(_: Progress) -> None:
        failed.release()
        raise CaptureError("the guest is not there", hint="look for it")

    def works(_: Progress) -> None:
        others.release()

    with caplog.at_level(logging.INFO, logger="drvm.daemon"):
        running(fails, works)
        for _ in range(3):
            assert failed.acquire(timeout=LIMIT_S)
            assert others.acquire(timeout=LIMIT_S)
    assert "the guest is not there (hint: look for it)" in caplog.text


def test_a_job_aside_never_waits_for_others(running) -> None:
    busy, ended, aside = threading.Event(), threading.Event(), threading.Semaphore(0)

    def works_long(_: Progress) -> None:
        busy.set()
        ended.wait(LIMIT_S)

    def looks(_: Progress) -> None:
        if busy.is_set():
            aside.release()

    running(works_long, max_parallel=1, aside=(looks,))
    assert aside.acquire(timeout=LIMIT_S)
    ended.set()


def test_a_bug_in_a_job_is_logged_and_does_not_end_the_daemon(running, caplog) -> None:
    runs = threading.Semaphore(0)

    def broken(_: Progress) -> None:
        runs.release()
        raise ZeroDivisionError

    with caplog.at_level(logging.INFO, logger="drvm.daemon"):
        running(broken)
        assert runs.acquire(timeout=LIMIT_S)
        assert runs.acquire(timeout=LIMIT_S)
    assert "this is a bug" in caplog.text


def test_one_job_never_runs_twice_at_once(running) -> None:
    inside, most, rounds = 0, 0, threading.Semaphore(0)
    lock = threading.Lock()

    def slow(_: Progress) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.2)
        with lock:
            inside -= 1
        rounds.release()

    running(slow, max_parallel=4)
    for _ in range(3):
        assert rounds.acquire(timeout=LIMIT_S)
    assert most == 1


def test_a_stop_reaches_running_work_and_is_waited_for(running) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    def long(progress: Progress) -> None:
        begun.set()
        try:
            while True:
                progress.advance(1)
                threading.Event().wait(0.01)
        finally:
            cleaned.set()

    made = running(long)
    assert begun.wait(LIMIT_S)
    made.stop()
    assert cleaned.wait(LIMIT_S)


def test_a_stop_raises_at_the_next_step_and_not_before() -> None:
    stop = threading.Event()
    progress = Stoppable(stop)
    progress.advance(1)
    stop.set()
    progress.stage("releasing")  # a clean-up must be able to say where it is
    with pytest.raises(Interrupted):
        progress.advance(1)
