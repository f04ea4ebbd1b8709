"""The contract of stores that keep versions and locks, which the fake of unit tests keeps too."""

from __future__ import annotations

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from drvm.core.errors import ObjectExists, ObjectMissing, StoreRefused
from drvm.store import base
from drvm.store.history import LockRule, VersionedStore
from drvm.store.s3 import S3Store
from tests.buckets import open_bucket
from tests.fakes.versioned_store import VersionedMemory

DAY = dt.timedelta(days=1)
RULE = LockRule("governance", 1, ("packs/",))


@pytest.fixture(scope="module", params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest) -> VersionedStore:
    if request.param == "memory":
        return VersionedMemory(lock=RULE)
    server = request.getfixturevalue("locked_bucket")
    return open_bucket(server, f"history/{uuid.uuid4()}", RULE)


@pytest.fixture
def folder() -> str:
    return uuid.uuid4().hex


def only_version(store: VersionedStore, name: str) -> str:
    (version,) = store.history.list(name)
    return version.id


def soon() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def test_versions_are_listed_the_oldest_first_and_each_can_be_read(
    store: VersionedStore, folder: str
) -> None:
    name = f"{folder}/a"
    for content in (b"first", b"second", b"third"):
        store.put(name, content)
    store.put(f"{folder}/b", b"first")
    *mine, other = store.history.list(f"{folder}/")
    assert [store.get(name, version=version.id) for version in mine] == [
        b"first",
        b"second",
        b"third",
    ]
    assert store.get(name, offset=1, length=2, version=mine[0].id) == b"ir"
    assert store.get_tail(name, 2, version=mine[1].id) == b"nd"
    assert [version.size_bytes for version in mine] == [5, 6, 5]
    assert other.name == f"{folder}/b" and other.etag == mine[0].etag != mine[2].etag
    assert not any(version.marker for version in mine)


def test_a_delete_hides_and_a_delete_of_a_version_is_for_ever(
    store: VersionedStore, folder: str
) -> None:
    name = f"{folder}/a"
    store.put(name, b"first")
    store.delete(name)
    assert [info.name for info in store.list(f"{folder}/")] == []
    with pytest.raises(ObjectMissing):
        store.get(name)
    version, marker = sorted(store.history.list(name), key=lambda version: version.marker)
    assert (version.marker, marker.marker) == (False, True)
    assert store.get(name, version=version.id) == b"first"
    store.history.delete(name, marker.id)
    assert store.get(name) == b"first"
    store.history.delete(name, version.id)
    store.history.delete(name, version.id)
    assert list(store.history.list(name)) == []
    with pytest.raises(ObjectMissing):
        store.get(name, version=version.id)


def test_a_hidden_name_can_be_created_again_and_a_visible_one_not(
    store: VersionedStore, folder: str
) -> None:
    name = f"{folder}/a"
    store.put_if_absent(name, b"first")
    with pytest.raises(ObjectExists):
        store.put_if_absent(name, b"second")
    store.delete(name)
    store.put_if_absent(name, b"second")
    contents = [v for v in store.history.list(name) if not v.marker]
    assert [store.get(name, version=v.id) for v in contents] == [b"first", b"second"]


def test_what_the_rule_names_is_locked_when_it_is_put(store: VersionedStore) -> None:
    name = f"packs/{uuid.uuid4().hex}"
    before = soon()
    store.put(name, b"x" * 1_000_000)
    version = only_version(store, name)
    until = store.history.retained_until(name, version)
    assert until is not None and before + DAY <= until <= soon() + DAY
    with pytest.raises(StoreRefused):
        store.history.delete(name, version)
    assert store.get_tail(name, 5) == b"xxxxx"


def test_a_lock_can_be_taken_and_lengthened_but_not_shortened(
    store: VersionedStore, folder: str
) -> None:
    name = f"{folder}/a"
    store.put(name, b"x")
    version = only_version(store, name)
    assert store.history.retained_until(name, version) is None
    for days in (2, 3):
        store.history.retain(name, version, "governance", soon() + days * DAY)
    with pytest.raises(StoreRefused):
        store.history.retain(name, version, "governance", soon() + DAY)
    until = store.history.retained_until(name, version)
    assert until is not None and until > soon() + 2 * DAY
    with pytest.raises(StoreRefused):
        store.history.delete(name, version)


def test_versions_of_many_names_are_in_order(store: VersionedStore, folder: str) -> None:
    for number in range(4):
        for content in (b"first", b"second"):
            store.put(f"{folder}/{number}", content)
    found = list(store.history.list(f"{folder}/"))
    assert [v.name for v in found] == [f"{folder}/{n}" for n in range(4) for _ in range(2)]
    assert [v.size_bytes for v in found] == [5, 6] * 4


def test_a_name_without_versions_has_no_lock_to_ask_for(store: VersionedStore) -> None:
    with pytest.raises(ObjectMissing):
        store.history.retained_until("packs/none", "671549150995d0d9a8b730e0b93a53bc")


@pytest.mark.long
@pytest.mark.parametrize("between", ["-", "+", ".", "/", "", "./"])
def test_no_name_is_hidden_behind_a_thousand_others(
    store: VersionedStore, folder: str, between: str
) -> None:
    """Whoever may write to a bucket could else hide manifests from a collector."""
    mine = [f"{folder}/{number}00.{number}" for number in range(5)]
    for name in mine:
        store.put(name, b"")
    hiding = mine[2] if between else mine[2].partition(".")[0] + "/"
    with ThreadPoolExecutor(8) as threads:
        names = [f"{hiding}{between}{number:04}" for number in range(1010)]
        list(threads.map(lambda name: _put_any(store, name), names))
    assert {*mine} <= {version.name for version in store.history.list(f"{folder}/")}


def _put_any(store: VersionedStore, name: str) -> None:
    """Also a name that no object of drvm can have."""
    if isinstance(store, S3Store):
        named = store._bucket.at(name)
        store._bucket.client.put_object(**named, Body=b"")
    elif base.is_name(name):
        store.put(name, b"")
