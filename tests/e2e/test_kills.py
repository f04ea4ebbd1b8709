"""The short form of the kill harness: every step of every way of taking points, once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.appliance import make_appliance
from tests.guests import MakeGuest
from tests.kills import WAYS, Harness, Way, harness

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def kills(
    make_module_guest: MakeGuest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    directory = tmp_path_factory.mktemp("kills")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    with harness(make_module_guest("kills"), appliance, seed=0) as made:
        yield made


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.long] if way.stands else []) for way in WAYS],
    ids=[way.name for way in WAYS],
)
def test_a_kill_at_any_step_loses_no_record_and_leaves_nothing(kills: Harness, way: Way) -> None:
    rows = kills.run(way, times=1)
    assert len(rows) >= 15
    assert [(row.step, row.problems) for row in rows if row.problems] == []
