"""Drills of one host never take the same room twice, and room of a killed one is free."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import Interrupted, PreflightFailed
from drvm.core.progress import NoProgress
from drvm.drill import taken, turns
from drvm.drill.plan import DrillPlan
from drvm.drill.room import RESERVE_BYTES, Room
from drvm.drill.turns import turn
from tests.unit.drill.conftest import Stage

DATA = 65536
MEMORY = 256 << 20


class Told(NoProgress):
    def __init__(self) -> None:
        self.titles: list[str] = []

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self.titles.append(title)


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of /run/drvm."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setattr(taken, "shared_directory", lambda: directory)
    return directory


def room(drills: float, *, memory: float = 100) -> Room:
    """For so many drills of the stage's machine."""
    free = RESERVE_BYTES + int(drills * DATA)
    return Room(free_bytes=free, memory_bytes=int(memory * MEMORY), closed=())


@contextlib.contextmanager
def turn_of(
    stage: Stage, plan: DrillPlan, there: Room, clock: Any = None, progress: Any = None
) -> Iterator[None]:
    host: Any = stage.host
    clock = clock or stage.clock
    with turn(host, [plan], clock, progress or NoProgress(), lambda _: there):
        yield


@pytest.mark.parametrize("there", [room(1.5), room(9, memory=1.5)])
def test_who_does_not_fit_beside_another_drill_waits_until_that_has_ended(
    stage: Stage, there: Room
) -> None:
    clock = SystemClock()
    told, order = Told(), []
    first, second = stage.plan(), stage.plan()

    def other() -> None:
        with turn_of(stage, second, there, clock, told):
            order.append("second")

    with turn_of(stage, first, there, clock):
        thread = threading.Thread(target=other)
        thread.start()
        while not told.titles:
            clock.sleep(0.01)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert told.titles == ["waiting for the room that other drills have"]


def test_two_that_fit_run_at_once(stage: Stage) -> None:
    with turn_of(stage, stage.plan(), room(2)), turn_of(stage, stage.plan(), room(2)):
        assert stage.clock.passed_s == 0


def test_what_another_has_written_already_is_not_counted_twice(stage: Stage) -> None:
    first = stage.plan()
    with turn_of(stage, first, room(2)):
        first.directory.mkdir()
        (first.directory / "vda.raw").write_bytes(b"x" * DATA)
        with turn_of(stage, stage.plan(), room(1)):
            pass


def test_a_drill_is_planned_as_if_it_had_only_to_wait_for_the_others(stage: Stage) -> None:
    first = stage.plan()
    with turn_of(stage, first, room(1, memory=1)):
        first.directory.mkdir()
        (first.directory / "vda.raw").write_bytes(b"x" * DATA)
        stage.room = room(0, memory=0)  # all of it is the first one's
        assert stage.plan().data_bytes == DATA
    with pytest.raises(PreflightFailed):
        stage.plan()


def test_without_room_and_without_others_a_drill_is_refused_at_once(stage: Stage) -> None:
    with pytest.raises(PreflightFailed), turn_of(stage, stage.plan(), room(0.5)):
        pass
    assert stage.clock.passed_s == 0


def test_the_wait_has_an_end(stage: Stage) -> None:
    one, other = stage.plan(), stage.plan()
    with (
        turn_of(stage, one, room(1)),
        pytest.raises(PreflightFailed) as caught,
        turn_of(stage, other, room(1)),
    ):
        pass
    assert stage.clock.passed_s >= turns.PATIENCE_S
    assert caught.value.hint == "others had it for 2 h"


def test_the_wait_ends_where_an_end_is_wanted(stage: Stage) -> None:
    class Ending(NoProgress):
        def advance(self, done_bytes: int) -> None:
            raise Interrupted("the daemon ends")

    one, other = stage.plan(), stage.plan()
    with (
        turn_of(stage, one, room(1)),
        pytest.raises(Interrupted),
        turn_of(stage, other, room(1), None, Ending()),
    ):
        pass


def test_a_drill_elsewhere_takes_nothing_of_this_one(stage: Stage) -> None:
    here, there = room(1, memory=1), room(1, memory=1)
    with turn_of(stage, stage.plan(), here), turn_of(stage, stage.plan_there(), there):
        assert stage.clock.passed_s == 0


def test_who_does_not_fit_does_not_wait_for_drills_elsewhere(stage: Stage) -> None:
    here = stage.plan()
    with turn_of(stage, stage.plan_there(), room(1)):
        stage.host.uri, stage.host.remote = here.uri, False
        with pytest.raises(PreflightFailed), turn_of(stage, here, room(0.5)):
            pass
    assert stage.clock.passed_s == 0


def test_a_kill_frees_the_room(stage: Stage, run_directory: Path) -> None:
    plan = stage.plan()
    child = os.fork()
    if child == 0:
        with turn_of(stage, plan, room(1)):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)
    assert len([*run_directory.glob("drills/*.json")]) == 1
    with turn_of(stage, stage.plan(), room(1)):
        assert stage.clock.passed_s == 0
    assert [*run_directory.glob("drills/*.json")] == []


def test_two_that_look_at_the_same_moment_do_not_both_take_the_last_room(stage: Stage) -> None:
    at_once: list[int] = []
    running: set[str] = set()
    start = threading.Barrier(4)

    def drill(plan: DrillPlan) -> None:
        start.wait()
        with turn_of(stage, plan, room(2), FastClock()):
            running.add(plan.id)
            at_once.append(len(running))
            SystemClock().sleep(0.05)
            running.discard(plan.id)

    threads = [threading.Thread(target=drill, args=(stage.plan(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(at_once) == 4
    assert max(at_once) <= 2


@pytest.mark.parametrize("written", [0, 10])
def test_a_note_that_can_not_be_written_leaves_none_and_holds_no_room(
    stage: Stage, run_directory: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """As ``/run`` is full."""
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:written]))
        with pytest.raises(OSError, match="No space left"), turn_of(stage, stage.plan(), room(1)):
            pass
    assert [*run_directory.glob("drills/*.json")] == []
    with turn_of(stage, stage.plan(), room(1)):
        assert stage.clock.passed_s == 0


class FastClock(SystemClock):
    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.01))
