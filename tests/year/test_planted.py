"""Faults planted in the engine are found by the judge of the year: each in a life of ten weeks."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drvm.daemon import engine, owed
from drvm.daemon.owed import Record
from drvm.daemon.slots import Slots
from drvm.daemon.task import Task
from drvm.runs.model import Run
from drvm.schedule import cron, timing
from drvm.schedule.timing import Retry, Timing
from tests.year.judge import Judge
from tests.year.troubles import DAY_S, FEW, plan_troubles
from tests.year.world import World

pytestmark = pytest.mark.long

DAYS = 70
SPRING = dt.datetime(2026, 3, 8, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """Silent, and without fires that another test has reckoned."""
    logging.disable(logging.CRITICAL)
    timing._fires.clear()
    timing._reckoned.cache_clear()
    yield
    timing._fires.clear()
    timing._reckoned.cache_clear()
    logging.disable(logging.NOTSET)


def kinds_of_faults() -> set[str]:
    """A third of the fleet is enough."""
    world = World(7)
    world.members = dict(list(world.members.items())[::3])
    plan_troubles(world, frozenset(), FEW, DAYS)
    world.start()
    world.events.run(DAYS * DAY_S)
    return {line.partition(":")[0] for line in Judge(world).faults()}


def test_without_a_fault_none_is_found() -> None:
    assert kinds_of_faults() == set()


def no_limits(patch: pytest.MonkeyPatch) -> None:
    def fits(self: Slots, task: Task) -> bool:
        self._taken.clear()
        return real(self, task)

    real = Slots.fits
    patch.setattr(Slots, "fits", fits)


def two_on_one_machine(patch: pytest.MonkeyPatch) -> None:
    def fits(self: Slots, task: Task) -> bool:
        self._busy.clear()
        return real(self, task)

    real = Slots.fits
    patch.setattr(Slots, "fits", fits)
    patch.setattr(Slots, "remove", _remove_without_machines)


def _remove_without_machines(self: Slots, task: Task) -> None:
    self._keys.discard(task.key)
    for key in task.uses:
        self._used[key] -= 1
        self._taken.discard(key)


def slots_leak(patch: pytest.MonkeyPatch) -> None:
    real, turn = Slots.remove, iter(range(10**9))

    def remove(self: Slots, task: Task) -> None:
        if next(turn) % 100:
            real(self, task)

    patch.setattr(Slots, "remove", remove)
    patch.setattr(engine.Engine, "adopt", _adopt_without_new_slots(engine.Engine.adopt))


def _adopt_without_new_slots(real: Callable[..., None]) -> Callable[..., None]:
    def adopt(self: engine.Engine, plan: Any) -> None:
        before = self._slots
        real(self, plan)
        if before._limits:
            self._slots = before

    return adopt


def blackouts_forgotten_by_who_is_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Timing, "clear", lambda self, moment: moment)


def tries_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retry, "wait_s", lambda self, attempt: 60.0)


def own_runs_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What the source says of a while ago is believed."""

    def after(self: Record, run: Run, now_s: float) -> Record:
        return Record() if run.vm == "berlin-0" else real(self, run, now_s)

    real = Record.after
    patch.setattr(Record, "after", after)


def restarts_forget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "recall", lambda history, keys, clock: {key: Record() for key in keys})


def the_future_is_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(owed, "CLOCK_TOLERANCE", dt.timedelta(days=10_000))


def jumps_go_unnoticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "JUMP_S", 1e12)


def spring_skips_a_fire(patch: pytest.MonkeyPatch) -> None:
    def next_fire(expression: str, zone: str, after: dt.datetime) -> dt.datetime:
        fire = real(expression, zone, after)
        skipped = zone == "America/New_York" and fire.date() == SPRING.date()
        return real(expression, zone, fire) if skipped else fire

    real = cron.next_fire
    patch.setattr(cron, "next_fire", next_fire)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (no_limits, "broken"),
        (two_on_one_machine, "broken"),
        (slots_leak, "lost"),
        (blackouts_forgotten_by_who_is_late, "broken"),
        (tries_without_end, "tried"),
        (own_runs_forgotten, "doubled"),
        (restarts_forget, "late"),
        (the_future_is_believed, "stopped"),
        (jumps_go_unnoticed, "stopped"),
        (spring_skips_a_fire, "lost"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_fault_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert kind in kinds_of_faults()
