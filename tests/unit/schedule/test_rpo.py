import datetime as dt

from drvm.schedule.rpo import RpoState, rpo_state

NOW = dt.datetime(2026, 11, 23, 6, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def test_a_young_point_meets_its_target() -> None:
    rpo = rpo_state(NOW - 3 * HOUR, 86400, NOW)
    assert (rpo.state, rpo.age_seconds, rpo.target_seconds) == (RpoState.MET, 10800, 86400)


def test_a_point_exactly_at_the_target_meets_it() -> None:
    assert rpo_state(NOW - 24 * HOUR, 86400, NOW).state is RpoState.MET


def test_an_old_point_misses_its_target() -> None:
    assert rpo_state(NOW - 25 * HOUR, 86400, NOW).state is RpoState.MISSED


def test_no_point_at_all_is_never_also_without_a_target() -> None:
    assert rpo_state(None, None, NOW).state is RpoState.NEVER


def test_without_a_target_the_age_is_told() -> None:
    rpo = rpo_state(NOW - HOUR, None, NOW)
    assert (rpo.state, rpo.age_seconds) == (RpoState.NO_TARGET, 3600)


def test_a_point_of_the_future_means_that_a_clock_is_wrong() -> None:
    rpo = rpo_state(NOW + HOUR, 86400, NOW)
    assert (rpo.state, rpo.age_seconds) == (RpoState.UNKNOWN, None)


def test_clocks_may_differ_a_little() -> None:
    assert rpo_state(NOW + dt.timedelta(seconds=30), 86400, NOW).age_seconds == 0
