"""The kill harness of restores: at every step of a form, or at times spread over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.process import Processes
from tests.guests import MakeGuest
from tests.restore_kills import NAMES, TIMES, prepared

pytestmark = [pytest.mark.guest, pytest.mark.long]


@pytest.mark.parametrize("name", NAMES)
def test_a_kill_at_any_time_leaves_nothing_that_runs_or_is_not_whole(
    name: str, make_guest: MakeGuest, tmp_path: Path, processes: Processes
) -> None:
    with prepared(name, make_guest, tmp_path, processes) as (harness, form):
        rows = harness.run(form)
    assert [(row.at, row.problems) for row in rows if row.problems] == []
    assert len(rows) >= TIMES
