"""What the report is told, without a host."""

from __future__ import annotations

import datetime as dt
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from drvm.repository.checks import CIRCLE, Arc, CheckRecord, History, Past, arc_fields
from drvm.wiring.reporting import _checks

NOW = dt.datetime(2026, 11, 23, 6, 0, tzinfo=dt.UTC)
SIXTEENTH = CIRCLE // 16
ARCS = st.tuples(st.integers(0, 15), st.integers(1, 16))


def past(start: int, length: int, damaged: int = 0) -> Past:
    fields: dict[str, Any] = arc_fields(Arc(start * SIXTEENTH, length * SIXTEENTH))
    record = CheckRecord(
        **fields, rotates=True, seconds=1.0, packs=3, read_bytes=3, damaged=damaged,
        created="2026-11-23T06:00:00Z", host="kvm1",
    )  # fmt: skip
    return Past(record, NOW)


@given(ARCS, st.lists(ARCS, max_size=6))
def test_damage_stands_until_every_part_of_its_arc_was_read_again(
    first: tuple[int, int], later: list[tuple[int, int]]
) -> None:
    def parts(arc: tuple[int, int]) -> set[int]:
        return {(arc[0] + step) % 16 for step in range(arc[1])}

    read_again = set().union(*map(parts, later))
    rows = list(_checks(History((past(*first, damaged=1), *(past(*arc) for arc in later)), ())))
    assert rows[0].stands == (not parts(first) <= read_again)
    assert not any(row.stands for row in rows[1:])


def test_what_is_damaged_still_is_told_by_the_run_that_read_it_last() -> None:
    rows = list(_checks(History((past(0, 8, 2), past(0, 8, 1)), ())))
    assert [row.stands for row in rows] == [False, True]
    assert rows[0].share == 0.5
