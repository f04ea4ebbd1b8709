"""The rate of a stage is that of its last minute, and what is left follows from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drvm.core.progress import Meter
from tests.fakes.clock import FakeClock


def moved(meter: Meter, clock: FakeClock, steps: int, bytes_each: int) -> None:
    for _ in range(steps):
        clock.sleep(1)
        meter.advance(bytes_each)


def test_a_steady_stage_is_as_fast_as_it_is():
    clock = FakeClock()
    meter = Meter(clock, 1000)
    moved(meter, clock, 40, 10)
    assert meter.bytes_per_s() == 10
    assert meter.left_s() == 60


def test_a_stage_that_has_become_slow_is_believed_after_a_minute():
    clock = FakeClock()
    meter = Meter(clock, 100_000)
    moved(meter, clock, 300, 100)
    moved(meter, clock, 70, 1)
    assert meter.bytes_per_s() == 1


def test_nothing_is_said_of_what_does_not_move():
    meter = Meter(FakeClock(), 100)
    assert meter.bytes_per_s() == 0
    assert meter.left_s() is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 40)), max_size=60))
def test_neither_rate_nor_time_left_is_ever_negative(steps):
    clock = FakeClock()
    meter = Meter(clock, 1 << 30)
    for seconds, done_bytes in steps:
        clock.sleep(seconds)
        meter.advance(done_bytes)
        assert meter.bytes_per_s() >= 0
        assert (meter.left_s() or 0) >= 0
