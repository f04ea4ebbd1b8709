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


def lived(world: World, busy_changes: frozenset[str]) -> Judge:
    plan_troubles(world, busy_changes)
    world.start()
    world.events.run(DAYS * DAY_S)
    return Judge(world)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))]
)
def test_a_year_of_a_fleet(seed: int) -> None:
    world = World(seed)
    retention = Retention(world)
    judge = lived(world, frozenset(CHANGES[seed % 2 :: 2]))
    assert judge.faults() == []
    assert retention.wrong == []
    count = states(world)
    assert count["done"] > 140_000 and count["failed"] > 1000
    assert count["lost"] > 5 and count["stopped"] > 20
    assert {key for key, most in world.most.items() if most == LIMITS[key]} == {
        *("store", "drills", "upkeep"),
        *HOSTS,
    }
    assert retention.removed > 5000 and retention.compared > 100
