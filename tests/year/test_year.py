"""A year of 210 machines: nothing lost, nothing doubled, within the limits, whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.year.fleet import HOSTS, LIMITS
from tests.year.judge import Judge, states
from tests.year.retention import Retention
from tests.year.troubles import CHANGES, DAY_S, DAYS, plan_troubles
from tests.year.world import World


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """A million lines otherwise."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lived(world: World, busy_changes: frozenset[str], days: int = DAYS) -> Judge:
    plan_troubles(world, busy_changes)
    world.start()
    world.events.run(days * DAY_S)
    return Judge(world)


def faults(judge: Judge, world: World) -> list[str]:
    """All that must not be, with a word for its kind. And it was a year worth judging."""
    fires, lost = judge.lost()
    owed, late = judge.not_caught_up()
    assert fires > 200 * world.clock.true_s / DAY_S and owed > 0
    found = {
        "broken": world.violations,
        "doubled": judge.doubled(),
        "lost": lost,
        "late": late,
        "stopped": judge.stopped_for_good(),
        "tried": judge.tried_too_often(),
    }
    return [f"{kind}: {line}" for kind, lines in found.items() for line in lines]


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))]
)
def test_a_year_of_a_fleet(seed: int) -> None:
    world = World(seed)
    retention = Retention(world)
    judge = lived(world, frozenset(CHANGES[seed % 2 :: 2]))
    assert faults(judge, world) == []
    assert retention.wrong == []
    count = states(world)
    assert count["done"] > 140_000 and count["failed"] > 1000
    assert count["lost"] > 5 and count["stopped"] > 20
    assert {key for key, most in world.most.items() if most == LIMITS[key]} == {
        *("store", "drills", "upkeep"),
        *HOSTS,
    }
    assert retention.removed > 5000 and retention.compared > 100
