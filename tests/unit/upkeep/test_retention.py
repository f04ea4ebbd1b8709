"""Retention as rules on values: what each rule keeps, and what no rule may ever do."""

import dataclasses
import datetime as dt
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drvm.upkeep.retention import NO_RULES, Candidate, Decision, Now, Rules, decide

NOW = dt.datetime(2026, 11, 23, 4, tzinfo=dt.UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"


def point(
    created: dt.datetime | str,
    *,
    name: str | None = None,
    host: str = "kvm1",
    vm: str = "web1",
    stored: dt.datetime | None = None,
    sound: bool = True,
) -> Candidate:
    moment = dt.datetime.fromisoformat(created) if isinstance(created, str) else created
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    identity = name or f"{moment:%Y-%m-%dT%H:%M:%S}"
    stored = stored or moment
    return Candidate(identity, vm, UUID, host, moment, moment, stored, stored, sound)


def nightly(days: int, host: str = "kvm1") -> list[Candidate]:
    """The last so many nights at 03:00, the oldest first."""
    last = NOW - HOUR
    return [point(last - DAY * n, name=f"{host}-{n}", host=host) for n in reversed(range(days))]


def run(
    points: list[Candidate],
    rules: Rules = NO_RULES,
    pins: dict[str, str] | None = None,
    now: Now | None = None,
) -> dict[str, Decision]:
    decisions = decide(points, lambda _: rules, pins or {}, now or Now(NOW, NOW))
    return {decision.point.id: decision for decision in decisions}


def kept(decisions: dict[str, Decision]) -> list[str]:
    return [identity for identity, decision in decisions.items() if decision.kept]


def test_where_nobody_can_tell_the_rules_nothing_goes_and_that_is_said() -> None:
    decisions = run(nightly(4), Rules(last=1, doubt="its host is away"))
    assert all(decision.kept and decision.doubt for decision in decisions.values())
    assert decisions["kvm1-3"].reasons == ("its host is away",)


def test_a_point_that_counts_for_nothing_does_not_choose_the_rules() -> None:
    future = point(NOW + DAY, name="future", stored=NOW)
    asked: list[str] = []

    def rules(newest: Candidate) -> Rules:
        asked.append(newest.id)
        return NO_RULES

    decide([*nightly(3), future], rules, {}, Now(NOW, NOW))
    assert asked == ["kvm1-0"]


def test_without_rules_nothing_is_ever_removed() -> None:
    decisions = run(nightly(400))
    assert len(kept(decisions)) == 400
    assert decisions["kvm1-399"].reasons == ("no rules",)


def test_last_keeps_the_newest_points() -> None:
    decisions = run(nightly(5), Rules(last=2))
    assert kept(decisions) == ["kvm1-1", "kvm1-0"]
    assert decisions["kvm1-1"].reasons == ("last 2",)
    assert decisions["kvm1-0"].reasons == ("the last good point", "last 1")
    assert decisions["kvm1-4"].reasons == ("no rule keeps it",)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (Rules(hourly=2), {"2026-11-22T23:50:00", "2026-11-23T01:30:00"}),
        (Rules(daily=2), {"2026-11-22T23:50:00", "2026-11-23T01:30:00"}),
        (Rules(weekly=2), {"2026-11-22T23:50:00", "2026-11-23T01:30:00"}),
        (Rules(weekly=3), {"2026-11-11T03:00:00", "2026-11-22T23:50:00", "2026-11-23T01:30:00"}),
        (Rules(monthly=2), {"2026-10-31T22:30:00", "2026-11-23T01:30:00"}),
        (Rules(yearly=2), {"2025-12-31T22:30:00", "2026-11-23T01:30:00"}),
        (Rules(within_s=86400), {"2026-11-22T08:00:00", "2026-11-22T23:50:00"}),
    ],
)
def test_each_rule_keeps_the_newest_point_of_its_buckets(rules: Rules, wanted: set[str]) -> None:
    moments = [
        *("2025-12-31T22:30", "2026-10-31T22:30", "2026-11-10T03:00", "2026-11-11T03:00"),
        *("2026-11-22T08:00", "2026-11-22T23:50", "2026-11-23T01:30"),
    ]
    assert set(kept(run([point(m) for m in moments], rules))) == wanted | {"2026-11-23T01:30:00"}


def test_buckets_are_those_of_the_time_zone() -> None:
    points = [point("2026-11-21T22:30"), point("2026-11-21T23:30"), point("2026-11-22T01:00")]
    assert len(kept(run(points, Rules(daily=9)))) == 2
    berlin = run(points, Rules(daily=9, time_zone="Europe/Berlin"))
    assert kept(berlin) == ["2026-11-21T22:30:00", "2026-11-22T01:00:00"]
    assert berlin["2026-11-22T01:00:00"].reasons == ("the last good point", "daily 2026-11-22")


def test_the_hour_that_autumn_repeats_is_two_hours() -> None:
    points = [point("2026-10-25T00:30"), point("2026-10-25T01:30"), point("2026-10-25T05:00")]
    assert len(kept(run(points, Rules(hourly=9, time_zone="Europe/Berlin")))) == 3


def test_time_alone_removes_nothing() -> None:
    rules = Rules(last=1, daily=3, within_s=86400)
    later = NOW + DAY * 4000
    assert kept(run(nightly(9), rules)) == kept(run(nightly(9), rules, now=Now(later, later)))


def test_pinned_points_are_kept_with_their_notes() -> None:
    decisions = run(nightly(9), Rules(last=1), {"kvm1-5": "before the upgrade", "kvm1-7": ""})
    assert kept(decisions) == ["kvm1-7", "kvm1-5", "kvm1-0"]
    assert decisions["kvm1-5"].reasons == ("pinned: before the upgrade",)
    assert decisions["kvm1-7"].reasons == ("pinned",)


def test_points_of_other_hosts_names_and_machines_push_nobody_out() -> None:
    mine, rules = nightly(6), Rules(last=3)
    alone = set(kept(run(mine, rules)))
    foreign = nightly(6, host="kvm2")
    renamed = [point(NOW - HOUR, name=f"r{n}", vm="web2") for n in range(6)]
    other = [dataclasses.replace(p, id=f"o{p.id}", vm_uuid=OTHER) for p in mine]
    together = kept(run([*mine, *foreign, *renamed, *other], rules))
    assert alone == {identity for identity in together if identity.startswith("kvm1-")}


def test_points_dated_in_the_future_count_for_nothing_and_stay() -> None:
    mine = nightly(3)
    ahead = [point(NOW + DAY * n, name=f"f{n}", stored=NOW - HOUR) for n in range(1, 9)]
    decisions = run([*mine, *ahead], Rules(last=3))
    assert len(kept(decisions)) == 11
    assert decisions["f1"].reasons == ("dated in the future: it counts for nothing",)


def test_a_point_that_was_dated_in_the_future_when_it_was_stored_counts_for_nothing_later() -> None:
    mine = nightly(3)
    ahead = [point(NOW + DAY * n, name=f"f{n}", stored=NOW - HOUR) for n in range(1, 9)]
    later = NOW + DAY * 100
    assert len(kept(run([*mine, *ahead], Rules(last=3), now=Now(later, later)))) == 11


def test_a_finish_in_the_future_is_one_too() -> None:
    odd = dataclasses.replace(point(NOW - HOUR * 2, name="odd"), finished=NOW + DAY)
    assert set(kept(run([*nightly(2), odd], Rules(last=1)))) == {"kvm1-0", "odd"}


@pytest.mark.parametrize("away", [-10 * 365 * DAY, -DAY, -HOUR, HOUR, DAY, 10 * 365 * DAY])
def test_where_the_clocks_are_apart_nothing_is_removed(away: dt.timedelta) -> None:
    decisions = run(nightly(9), Rules(last=1), now=Now(NOW + away, NOW))
    assert len(kept(decisions)) == 9
    word = "ahead of" if away > dt.timedelta() else "behind"
    assert any(f"{word} the store's" in reason for reason in decisions["kvm1-8"].reasons)


def test_what_is_not_whole_counts_for_nothing_and_stays() -> None:
    broken = [point(NOW - HOUR / 2, name="broken", sound=False)]
    decisions = run([*nightly(3), *broken], Rules(last=1))
    assert kept(decisions) == ["kvm1-0", "broken"]
    assert decisions["broken"].reasons == ("not whole: it counts for nothing",)


def test_the_last_point_by_the_stores_time_stays_whatever_it_is_dated() -> None:
    fallen = point("1970-01-01T00:00", name="fallen", stored=NOW - HOUR / 2)
    assert kept(run([*nightly(3), fallen], Rules(last=1))) == ["fallen", "kvm1-0"]


def test_a_point_that_was_written_again_is_no_later_point() -> None:
    again = [dataclasses.replace(p, stored=NOW - HOUR / 2) for p in nightly(3)[:1]]
    assert kept(run([*again, *nightly(3)[1:]], Rules(last=1))) == ["kvm1-0"]


def test_a_point_dated_in_the_future_counts_for_nothing_also_after_it_was_written_anew() -> None:
    """Its date has passed by then, and is still not the day that it shows."""
    ahead = dataclasses.replace(
        point(NOW - DAY + HOUR, name="ahead", stored=NOW - 20 * DAY), stored=NOW - HOUR
    )
    decisions = run([*nightly(10), ahead], Rules(daily=3))
    assert decisions["ahead"].reasons == ("dated in the future: it counts for nothing",)
    assert kept(decisions) == ["kvm1-2", "kvm1-1", "ahead", "kvm1-0"]


def test_a_point_that_took_several_attempts_counts() -> None:
    """What its final names was finished long after its first attempt was given up."""
    slow = dataclasses.replace(
        point(NOW - 5 * HOUR, name="slow"), finished=NOW - HOUR, stored=NOW - HOUR
    )
    assert "dated" not in " ".join(run([slow], Rules(last=1))["slow"].reasons)


def test_a_point_just_stored_is_not_removed_yet() -> None:
    young = [point(NOW - dt.timedelta(minutes=n), name=f"y{n}") for n in (30, 10, 5)]
    decisions = run(young, Rules(last=1))
    assert kept(decisions) == ["y10", "y5"]
    assert decisions["y10"].reasons == ("stored less than 20 min 00 s ago",)


# -- properties -------------------------------------------------------------------------------
counts = st.integers(0, 4)
rules_ = st.builds(
    Rules,
    last=counts,
    hourly=counts,
    daily=counts,
    weekly=counts,
    monthly=counts,
    yearly=counts,
    within_s=st.sampled_from([0.0, 3600.0, 86400.0 * 40]),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Kiritimati"]),
)
near = st.integers(-60 * 24 * 60, 2 * 24 * 60).map(lambda n: NOW + dt.timedelta(minutes=n))
anywhen = near | st.datetimes(
    dt.datetime(1000, 1, 1),
    dt.datetime(9999, 12, 31, 23, 59),
    timezones=st.just(dt.UTC),
)
candidates = st.builds(
    Candidate,
    id=st.uuids().map(str),
    vm=st.sampled_from(["web1", "db1"]),
    vm_uuid=st.sampled_from([UUID, OTHER]),
    host=st.sampled_from(["kvm1", "kvm2"]),
    created=anywhen,
    finished=anywhen,
    first_stored=near,
    stored=near,
    sound=st.booleans(),
)
honest = st.builds(
    lambda identity, moment, host: point(moment, name=str(identity), host=host),
    st.uuids(),
    near.filter(lambda moment: moment <= NOW - HOUR),
    st.sampled_from(["kvm1", "kvm2"]),
)
lots = st.lists(honest | candidates, max_size=25, unique_by=lambda p: p.id)
RULED = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within_s")


def decided(
    points: list[Candidate], rules: Rules, pins: dict[str, str] | None = None
) -> tuple[Decision, ...]:
    return decide(points, lambda _: rules, pins or {}, Now(NOW, NOW))


def removed(decisions: tuple[Decision, ...]) -> set[str]:
    return {decision.point.id for decision in decisions if not decision.kept}


@given(lots, rules_, st.booleans())
def test_every_point_gets_one_decision_with_a_reason(
    points: list[Candidate], rules: Rules, empty: bool
) -> None:
    decisions = decided(points, Rules() if empty else rules)
    assert sorted(d.point.id for d in decisions) == sorted(p.id for p in points)
    assert all(d.reasons and all(d.reasons) for d in decisions)


@given(lots, rules_, st.sampled_from(RULED), st.integers(1, 5))
def test_one_more_rule_never_removes_more(
    points: list[Candidate], rules: Rules, name: str, by: int
) -> None:
    assume(not rules.empty)
    more = dataclasses.replace(rules, **{name: getattr(rules, name) + by})
    assert removed(decided(points, more)) <= removed(decided(points, rules))


@given(lots, rules_, st.data())
def test_a_pin_keeps_its_point_and_removes_none(
    points: list[Candidate], rules: Rules, data: st.DataObject
) -> None:
    pins = {p.id: "x" for p in points if data.draw(st.booleans())}
    assert removed(decided(points, rules, pins)) == removed(decided(points, rules)) - pins.keys()


@given(lots, rules_, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(
    points: list[Candidate], rules: Rules, chance: random.Random
) -> None:
    shuffled = list(points)
    chance.shuffle(shuffled)
    assert decided(shuffled, rules) == decided(points, rules)


@given(lots, rules_)
def test_the_newest_good_point_of_each_machine_and_host_stays(
    points: list[Candidate], rules: Rules
) -> None:
    gone = removed(decided(points, rules))
    for series in {p.series for p in points}:
        mine = [p for p in points if p.series == series]
        sure = [p for p in mine if p.sound and max(p.created, p.finished) <= min(NOW, p.stored)]
        if sure:
            newest = max(p.created for p in sure)
            assert any(p.created >= newest and p.id not in gone for p in sure)
        assert any(p.id not in gone for p in mine)


@given(lots, rules_, candidates)
def test_a_point_that_counts_for_nothing_changes_nothing_for_the_others(
    points: list[Candidate], rules: Rules, odd: Candidate
) -> None:
    for lie in (
        dataclasses.replace(odd, sound=False),
        dataclasses.replace(odd, created=odd.stored + HOUR),
        dataclasses.replace(odd, host="elsewhere"),
    ):
        assert removed(decided([*points, lie], rules)) == removed(decided(points, rules))


def test_a_point_at_the_end_of_the_calendar_has_a_day_of_its_own() -> None:
    first = point(dt.datetime(1, 1, 1, 0, 30, tzinfo=dt.UTC), name="first")
    decisions = run([first, *nightly(3)], Rules(daily=2, time_zone="America/New_York"))
    assert "first" not in kept(decisions)
