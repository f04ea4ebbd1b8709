from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from drvm.report.chart import HEIGHT, MAX_POINTS, WIDTH, phase_bars, rto_history
from tests.unit.report.results import make_drill

Make = Callable[..., Any]
SECONDS = st.floats(0, 1e7)


@given(st.lists(st.none() | SECONDS, min_size=2, max_size=40), st.none() | SECONDS)
def test_every_dot_and_the_target_lie_inside_the_drawing(
    times: list[float | None], target: float | None
) -> None:
    drills = [make_drill(rto_seconds=time, rto_target_seconds=target) for time in times]
    history = rto_history(drills)
    assert history is not None and len(history.dots) == min(len(times), MAX_POINTS)
    assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= HEIGHT for dot in history.dots)
    assert history.target_y is None or 0 <= history.target_y <= HEIGHT


def test_the_oldest_drill_is_on_the_left(drill: Make) -> None:
    history = rto_history([drill(rto_seconds=1.0), drill(rto_seconds=2.0)])
    assert history is not None
    assert [dot.rto_seconds for dot in history.dots] == [2.0, 1.0]


@given(st.dictionaries(st.sampled_from(["plan", "data", "boot", "checks", "pull"]), SECONDS))
def test_phases_fill_the_bar_one_after_the_other(phases: dict[str, float]) -> None:
    bars = phase_bars(make_drill(phases=phases))
    assert {bar.name for bar in bars} == set(phases)
    assert all(0 <= bar.start <= 100 and 0 < bar.width <= 100 for bar in bars)
    assert [bar.start for bar in bars] == sorted(bar.start for bar in bars)
