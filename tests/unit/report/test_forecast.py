from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.units import GIB
from drvm.report.chart import STORAGE_HEIGHT, STORAGE_WIDTH, points_strip, storage_chart
from drvm.report.forecast import forecast
from drvm.report.input import StorageSample
from tests.unit.report.results import NOW

DAY = dt.timedelta(days=1)


def samples(*stored: int, step: dt.timedelta = DAY) -> list[StorageSample]:
    return [
        StorageSample(
            taken=NOW + number * step, stored_bytes=count, protected_bytes=0, points_bytes=0,
            points=0,
        )
        for number, count in enumerate(stored)
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "days"), [(0, 1), (1, 1), (7, 7), (14, 1), (30, 0.1)])
def test_too_few_or_too_young_samples_make_none(count: int, days: float) -> None:
    assert forecast(samples(*[GIB] * count, step=days * DAY)) is None


def test_a_straight_line_goes_on_as_far_as_it_came() -> None:
    found = forecast(samples(*(100 * GIB + day * GIB for day in range(31))))
    assert found is not None
    assert found.until == NOW + 60 * DAY
    assert (found.expected_bytes, found.low_bytes, found.high_bytes) == (160 * GIB,) * 3
    assert found.bytes_per_day == GIB and found.based_on == 31


def test_a_collection_now_and_then_does_not_bend_it() -> None:
    found = forecast(samples(*(100 * GIB + day * GIB - 30 * GIB * (day > 28) for day in range(31))))
    assert found is not None and 0.9 * GIB < found.bytes_per_day <= GIB


def test_old_samples_do_not_count_and_it_never_falls_below_nothing() -> None:
    falling = samples(*(max(0, 200 - 2 * day) * GIB for day in range(120)))
    found = forecast(falling)
    assert found is not None and found.since >= falling[-1].taken - 90 * DAY
    assert found.low_bytes >= 0 and found.expected_bytes >= 0


@given(st.lists(st.integers(0, 1 << 50), min_size=2, max_size=40))
def test_the_drawing_stays_inside_its_frame(stored: list[int]) -> None:
    known = samples(*stored)
    chart = storage_chart(known, forecast(known))
    assert chart is not None
    for pair in f"{chart.line} {chart.area} {chart.ahead} {chart.cone}".split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= STORAGE_WIDTH and 0 <= y <= STORAGE_HEIGHT


def test_one_sample_makes_no_drawing() -> None:
    assert storage_chart(samples(1), None) is None


def test_a_strip_counts_days_and_points() -> None:
    strip = points_strip((0, 1, 24))
    assert strip is not None
    assert (strip.days, strip.days_with, strip.points) == (3, 2, 25)
    assert strip.kept.count("M") == 2 and strip.none.count("M") == 1
    assert points_strip(()) is None
