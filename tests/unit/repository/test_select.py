"""What people write for a point: the latest, one at a time, or a prefix; never a guess."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from drvm.core.clock import rfc3339
from drvm.core.errors import UnknownPoint, UsageError
from drvm.repository.points import Point
from drvm.repository.select import select
from tests.unit.repository.conftest import VM
from tests.unit.repository.test_manifest import MANIFEST

OTHER = VM.replace("1", "9")


def point(
    hour: int, name: str = "web1", uuid: str = VM, point_id: str | None = None, minute: int = 0
) -> Point:
    moment = rfc3339(dt.datetime(2026, 11, 23, hour, minute, tzinfo=dt.UTC))
    chosen = point_id or f"{hour:02x}{minute:02x}" + "ab" * 6
    return Point(replace(MANIFEST, id=chosen, vm=name, vm_uuid=uuid, created=moment), "0" * 16)


POINTS = [point(1), point(2, "db", OTHER), point(3), point(4, "db", OTHER)]


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("web1", 3),
        ("web1@latest", 3),
        (VM, 3),
        (f"{VM}@latest", 3),
        ("db@2026-11-23T03:59", 2),
        ("db@2026-11-23T04:00", 4),
        ("db@2026-11-23T05:30+02:00", 2),
        ("db@2026-11-23T06:00+02:00", 4),
        ("web1@2026-11-24", 3),
        ("0300", 3),
        ("0300abababababab", 3),
    ],
)
def test_what_is_meant_is_found(text, hour):
    assert select(POINTS, text).manifest.created.startswith(f"2026-11-23T{hour:02}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("web2", "no point or VM"),
        ("", "no point or VM"),
        ("@", "no point or VM"),
        ("@latest", "no point of a VM"),
        ("030", "no point or VM"),
        ("0300ABAB", "no point or VM"),
        ("0300%", "no point or VM"),
        ("ffff", "no point or VM"),
        ("web2@latest", "no point of a VM"),
        ("web1@2026-11-22", "as old as"),
    ],
)
def test_what_is_not_there_is_said_with_what_there_is(text, reason):
    with pytest.raises(UnknownPoint, match=reason) as failure:
        select(POINTS, text)
    assert failure.value.hint


@pytest.mark.parametrize(
    "moment",
    ["2026-13-01", "2026-11-23T25:00", "2026-11-23 nonsense", "0001-01-01T00:00+23:59"],
)
def test_what_is_no_time_is_a_mistake_of_usage(moment):
    with pytest.raises(UsageError, match="not a time"):
        select(POINTS, f"web1@{moment}")


def test_a_name_of_two_machines_is_not_guessed():
    points = [point(1), point(2, "web1", OTHER)]
    with pytest.raises(UsageError, match="different VMs") as failure:
        select(points, "web1")
    assert VM in failure.value.hint
    assert OTHER in failure.value.hint
    assert select(points, OTHER) == points[1]


def test_a_prefix_of_two_points_is_not_guessed():
    points = [point(1, point_id="abcd" + "0" * 12), point(2, point_id="abcd" + "1" * 12)]
    with pytest.raises(UnknownPoint, match="several"):
        select(points, "abcd")
    assert select(points, "abcd1") == points[1]


def test_a_name_with_an_at_sign_or_of_hex_digits_is_still_a_name():
    points = [point(1, "web@home"), point(2, "cafe", OTHER), point(3, point_id="cafe" + "0" * 12)]
    assert select(points, "web@home") == points[0]
    assert select(points, "web@home@latest") == points[0]
    assert select(points, "cafe") == points[1]


def test_an_empty_repository_says_what_to_do():
    with pytest.raises(UnknownPoint) as failure:
        select([], "web1")
    assert "drvm backup" in failure.value.hint


@given(st.text(max_size=60))
def test_any_text_is_answered(text):
    try:
        assert select(POINTS, text) in POINTS
    except UsageError as error:
        assert str(error).isprintable()


@given(st.integers(0, 23), st.integers(0, 59))
def test_a_time_finds_the_latest_point_not_after_it(hour, minute):
    before = [p for p in (POINTS[0], POINTS[2]) if int(p.manifest.created[11:13]) <= hour]
    text = f"web1@2026-11-23T{hour:02}:{minute:02}"
    if before:
        assert select(POINTS, text) == before[-1]
    else:
        with pytest.raises(UnknownPoint):
            select(POINTS, text)
