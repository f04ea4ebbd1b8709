"""Which point a backup continues: found without reading the others, whatever clocks say."""

import datetime as dt

import pytest
from msgspec.structs import replace

from drvm.core.clock import rfc3339
from drvm.core.ids import new_point_id
from drvm.repository import points
from drvm.repository.layout import POINTS, final_object, point_object
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.store.base import MAX_OBJECT_BYTES
from tests.unit.repository.conftest import PASSPHRASE, VM
from tests.unit.repository.faults import FaultyStore

HOUR = dt.timedelta(hours=1)
T0 = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
MANIFEST = Manifest(
    id="0" * 16,
    vm="web1",
    vm_uuid=VM,
    created=rfc3339(T0),
    finished=rfc3339(T0),
    consistency="crash",
    engine="test",
    host="here",
    drvm_version="0",
    parent=None,
)


class Points:
    """Points without disks, dated as somebody says."""

    def __init__(self) -> None:
        self.store = FaultyStore()
        self._repository = Repository.create(self.store, PASSPHRASE)

    def add(self, created: dt.datetime, stored: dt.datetime | None = None) -> points.Point:
        """By its writer's clock, and a quarter of an hour later by the store's."""
        manifest = replace(MANIFEST, id=new_point_id(), created=rfc3339(created))
        point = self._repository.commit(manifest)
        self.put(point, self.store.get(name(point)), stored or created + HOUR / 4)
        return point

    def put(self, point: points.Point, data: bytes, stored: dt.datetime) -> None:
        self.store.objects[name(point)] = (data, stored)

    def abort(self, point: points.Point) -> None:
        self.store.delete(final_object(point.id, point.generation))
        sealed, sealer = self.store.get(name(point)), self._repository._sealer
        points._decide(self.store, sealer, point.id, point.generation, "aborted", sealed)

    def newest(self, now: dt.datetime = T0 + 1000 * HOUR) -> points.Point | None:
        self.store.calls.clear()
        return self._repository.newest_point(VM, now)

    def read(self) -> int:
        return sum(call.startswith(f"get {POINTS}") for call in self.store.calls)


def name(point: points.Point) -> str:
    return point_object(VM, point.id, point.generation)


@pytest.fixture
def made() -> Points:
    return Points()


def test_the_newest_point_is_found_by_reading_it_alone(made):
    added = [made.add(T0 + n * HOUR) for n in (3, 0, 4, 1, 2)]
    assert made.newest() == added[2]
    assert made.read() == 1


def test_a_machine_without_points_has_no_newest_one(made):
    assert made.newest() is None


@pytest.mark.parametrize("how", ["pending", "aborted", "damaged", "too large"])
def test_the_newest_point_is_a_good_one(made, how):
    good, bad = made.add(T0), made.add(T0 + HOUR)
    if how == "pending":
        made.store.delete(final_object(bad.id, bad.generation))
    elif how == "aborted":
        made.abort(bad)
    else:
        made.put(bad, bytes(8 if how == "damaged" else MAX_OBJECT_BYTES + 1), T0 + HOUR)
    assert made.newest() == good


def test_a_final_too_large_to_be_one_is_not_read(made):
    good, bad = made.add(T0), made.add(T0 + HOUR)
    final = final_object(bad.id, bad.generation)
    made.store.objects[final] = (bytes(MAX_OBJECT_BYTES + 1), T0)
    assert made.newest() == good
    assert f"get {final}" not in made.store.calls


def test_an_old_point_that_was_written_again_is_not_the_newest(made):
    """As by a collector: a new generation of the same instant."""
    new = made.add(T0 + 9 * HOUR)
    for n in range(3):
        made.add(T0 + n * HOUR, stored=T0 + (10 + n) * HOUR)
    assert made.newest() == new
    assert made.read() == 4


def test_a_point_that_a_jumped_clock_dated_into_the_future_is_as_old_as_the_store_says(made):
    jumped = made.add(T0 + 50_000 * HOUR, stored=T0)
    assert made.newest() == jumped
    assert made.add(T0 + HOUR) == made.newest()


def test_a_point_that_the_store_dated_into_the_future_too_serves_where_there_is_no_other(made):
    jumped = made.add(T0 + 50_000 * HOUR)
    assert made.newest() == jumped
    assert made.add(T0) == made.newest()


def test_a_store_whose_clock_is_hours_ahead_tells_the_order_all_the_same(made):
    added = [made.add(T0 + n * HOUR, stored=T0 + (n + 9) * HOUR) for n in range(4)]
    assert made.newest(now=T0 + 3 * HOUR) == added[3]


def test_points_that_were_stored_in_one_second_are_told_apart_by_their_manifests(made):
    """S3 knows whole seconds."""
    added = [made.add(T0 + n * HOUR / 7200, stored=T0) for n in (1, 3, 0, 2)]
    assert made.newest() == added[1]
