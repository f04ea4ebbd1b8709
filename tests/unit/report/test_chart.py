import re
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from drvm.report.chart import (
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    drill_marks,
    phase_bars,
    points_strip,
    rto_history,
)
from tests.unit.report.results import make_drill

Make = Callable[..., Any]
SECONDS = st.floats(0, 1e7)


@given(st.lists(st.none() | SECONDS, min_size=2, max_size=40), st.none() | SECONDS)
def test_every_dot_and_the_target_lie_inside_the_drawing(
    times: list[float | None], target: float | None
) -> None:
    drills = [make_drill(rto_seconds=time, rto_target_seconds=target) for time in times]
    history = rto_history(drills)
    assert history is not None and history.count == min(len(times), MAX_POINTS)
    dots = re.findall(r"M([\d.]+) ([\d.]+)(h0|l)", history.good + history.slow + history.none)
    assert len(dots) == history.count
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y, _ in dots)
    through = sum(time is not None for time in times[:MAX_POINTS])
    assert len(history.line.split()) == sum(kind == "h0" for *_, kind in dots) == through
    assert history.target_y is None or 0 <= history.target_y <= HEIGHT


def test_the_oldest_drill_is_on_the_left(drill: Make) -> None:
    drills = [drill(rto_seconds=500.0, passed=False), drill(rto_seconds=None), drill()]
    history = rto_history(drills)
    assert history is not None
    assert (history.line, history.good) == ("5,23.3 155,15.7", "M5 23.3h0")
    assert (history.none, history.slow) == ("M77 2l6 6m0-6l-6 6", "M155 15.7h0")


def test_marks_stand_in_the_order_of_their_drills(drill: Make) -> None:
    marks = drill_marks([drill(), drill(passed=False), drill()])
    assert (marks.good, marks.bad) == ("M6 6h0M30 6h0", "M14 2l8 8m0-8l-8 8")
    assert marks.width == 36


def test_a_day_is_a_bar_as_high_as_it_has_points() -> None:
    strip = points_strip((0, 1, 24))
    assert strip is not None
    assert (strip.none, strip.kept) == ("M1.5 16v-2", "M5.5 16v-7M9.5 16v-16")
    assert (strip.days, strip.days_with, strip.points, strip.width) == (3, 2, 25, 11)


@given(st.dictionaries(st.sampled_from(["plan", "data", "boot", "checks", "pull"]), SECONDS))
def test_phases_fill_the_bar_one_after_the_other(phases: dict[str, float]) -> None:
    bars = phase_bars(make_drill(phases=phases))
    assert {bar.name for bar in bars} == set(phases)
    assert all(0 <= bar.start <= 100 and 0 < bar.width <= 100 for bar in bars)
    assert [bar.start for bar in bars] == sorted(bar.start for bar in bars)
