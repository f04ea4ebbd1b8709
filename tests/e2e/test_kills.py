"""The kill harness: in the short form, one kill at every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.appliance import make_appliance
from tests.guests import MakeGuest
from tests.kills import WAYS, Harness, Row, Way, harness

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def kills(
    make_module_guest: MakeGuest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    directory = tmp_path_factory.mktemp("kills")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    with harness(make_module_guest("kills"), appliance, seed=0) as made:
        yield made


def test_a_kill_at_any_step_loses_no_record_and_leaves_nothing(kills: Harness) -> None:
    """The first way at all its steps, each other one at those that only it has."""
    rows: list[Row] = []
    for way in WAYS:
        rows += kills.run(way, times=1, but={row.step for row in rows})
    assert [(row.way, row.step, row.problems) for row in rows if row.problems] == []
    assert len(rows) >= 40


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
def test_a_backup_that_is_killed_at_any_time_is_followed_by_one_that_is_right(
    kills: Harness, way: Way
) -> None:
    rows = kills.run(way, times=2)
    assert [(row.step, row.problems) for row in rows if row.problems] == []
