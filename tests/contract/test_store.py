"""The contract of every store. A new store is one more parameter of the fixture ``store``."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.clock import SystemClock
from drvm.core.errors import ObjectExists, ObjectMissing, ObjectTruncated, StoreError
from drvm.store.base import MAX_OBJECT_BYTES, Store, is_name
from drvm.store.directory import DirectoryStore
from drvm.store.first_versions import FirstVersions, first_versions
from drvm.store.memory import MemoryStore
from drvm.store.probe import probe
from drvm.store.s3 import S3Store
from tests.buckets import open_bucket
from tests.fakes.versioned_store import VersionedMemory

LOOSE = ("probe/",)
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,40}(/[A-Za-z0-9._-]{1,40}){0,3}", fullmatch=True).filter(
    is_name
)


@pytest.fixture(
    scope="module",
    params=[
        "memory",
        "directory",
        "first-versions",
        pytest.param("s3", marks=pytest.mark.s3),
        pytest.param("s3-first-versions", marks=pytest.mark.s3),
    ],
)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore()
    elif request.param == "directory":
        made = DirectoryStore(tmp_path_factory.mktemp("store"))
    elif request.param == "first-versions":
        made = FirstVersions(VersionedMemory(), loose=LOOSE)
    elif request.param == "s3":
        made = open_s3(request.getfixturevalue("seaweedfs"))
    else:
        server = request.getfixturevalue("locked_bucket")
        made = first_versions(open_s3(server), loose=LOOSE)
        assert isinstance(made, FirstVersions)
    yield made
    made.close()


def open_s3(server: Any) -> S3Store:
    return open_bucket(server, f"contract/{uuid.uuid4()}")


@pytest.fixture
def folder() -> str:
    """A part of the store that nothing else uses."""
    return uuid.uuid4().hex


def names(store: Store, prefix: str) -> list[str]:
    return [info.name for info in store.list(prefix)]


def test_an_object_reads_as_it_was_put(store: Store, folder: str) -> None:
    store.put(f"{folder}/a", b"first")
    assert store.get(f"{folder}/a") == b"first"


def test_put_replaces_the_whole_object_unless_first_versions_are_read(
    store: Store, folder: str
) -> None:
    first = b"a longer first version"
    store.put(f"{folder}/a", first)
    store.put(f"{folder}/a", b"second")
    kept = first if isinstance(store, FirstVersions) else b"second"
    assert store.get(f"{folder}/a") == kept


def test_an_empty_object_is_an_object(store: Store, folder: str) -> None:
    name = f"{folder}/empty"
    store.put(name, b"")
    assert store.get(name) == b""
    assert store.get(name, offset=0, length=0) == b""
    assert store.get_tail(name, 10) == b""
    assert store.head(name).size_bytes == 0


def test_an_object_as_large_as_a_pack_reads_as_it_was_put(store: Store, folder: str) -> None:
    data = bytes(range(251)) * (33 * 1024 * 1024 // 251)
    store.put_if_absent(f"{folder}/pack", data)
    assert store.get(f"{folder}/pack") == data
    assert (
        store.get(f"{folder}/pack", offset=20_000_001, length=5_000_000)
        == (data[20_000_001:25_000_001])
    )


@pytest.mark.parametrize("missing", ["nothing", "deep/er/nothing"])
def test_what_is_not_there_is_missing(store: Store, folder: str, missing: str) -> None:
    name = f"{folder}/{missing}"
    with pytest.raises(ObjectMissing):
        store.get(name)
    with pytest.raises(ObjectMissing):
        store.get(name, offset=3, length=4)
    with pytest.raises(ObjectMissing):
        store.get_tail(name, 4)
    with pytest.raises(ObjectMissing):
        store.get_tail(name, 0)
    with pytest.raises(ObjectMissing):
        store.head(name)


def test_the_directory_of_an_object_is_no_object(store: Store, folder: str) -> None:
    store.put(f"{folder}/a", b"x")
    with pytest.raises(ObjectMissing):
        store.head(folder)
    with pytest.raises(ObjectMissing):
        store.get(folder)


def test_what_lies_below_an_object_is_missing(store: Store, folder: str) -> None:
    store.put(f"{folder}/a", b"x")
    with pytest.raises(ObjectMissing):
        store.get(f"{folder}/a/b")
    assert names(store, f"{folder}/a/") == []
    store.delete(f"{folder}/a/b")


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=300), first=st.integers(0, 300), second=st.integers(0, 300))
def test_a_range_of_an_object_is_that_slice_of_it(
    store: Store, data: bytes, first: int, second: int
) -> None:
    name = f"slices/{uuid.uuid4().hex}"
    store.put(name, data)
    start, end = sorted((first % (len(data) + 1), second % (len(data) + 1)))
    assert store.get(name, offset=start, length=end - start) == data[start:end]
    assert store.get(name, offset=start) == data[start:]
    assert store.get_tail(name, second) == data[max(0, len(data) - second) :]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 11), (9, 2), (10, 1), (11, 0), (11, None), (500, 5), (500, None)]
)
def test_a_range_that_leaves_the_object_is_an_error(
    store: Store, folder: str, offset: int, length: int | None
) -> None:
    store.put(f"{folder}/ten", b"0123456789")
    with pytest.raises(ObjectTruncated, match="has 10 bytes"):
        store.get(f"{folder}/ten", offset=offset, length=length)


def test_head_tells_size_and_time_of_the_last_write(store: Store, folder: str) -> None:
    before = dt.datetime.now(dt.UTC)
    store.put(f"{folder}/a", b"12345")
    info = store.head(f"{folder}/a")
    assert (info.name, info.size_bytes) == (f"{folder}/a", 5)
    assert info.modified.utcoffset() == dt.timedelta(0)
    assert abs(info.modified - before) < dt.timedelta(minutes=1)


def test_put_if_absent_creates_once_and_never_replaces(store: Store, folder: str) -> None:
    store.put_if_absent(f"{folder}/once", b"first")
    with pytest.raises(ObjectExists):
        store.put_if_absent(f"{folder}/once", b"second")
    assert store.get(f"{folder}/once") == b"first"


def test_one_of_racing_creators_wins_and_the_object_is_its(store: Store, folder: str) -> None:
    name = f"{folder}/race"
    start = threading.Barrier(4)

    def create(nonce: bytes) -> bytes | None:
        start.wait()
        try:
            store.put_if_absent(name, nonce)
        except ObjectExists:
            return None
        return nonce

    with ThreadPoolExecutor(4) as threads:
        won = [nonce for nonce in threads.map(create, [b"a", b"b", b"c", b"d"]) if nonce]
    assert won == [store.get(name)]


def test_a_deleted_name_can_be_created_again(store: Store, folder: str) -> None:
    store.put_if_absent(f"{folder}/a", b"first")
    store.delete(f"{folder}/a")
    store.put_if_absent(f"{folder}/a", b"second")
    assert store.get(f"{folder}/a") == b"second"


def test_delete_removes_and_does_not_mind_absence(store: Store, folder: str) -> None:
    store.put(f"{folder}/a", b"x")
    store.put(f"{folder}/b", b"y")
    store.delete(f"{folder}/a")
    store.delete(f"{folder}/a")
    store.delete(f"{folder}/never/was")
    with pytest.raises(ObjectMissing):
        store.get(f"{folder}/a")
    assert names(store, f"{folder}/") == [f"{folder}/b"]


def test_list_tells_sizes_and_times_as_head_does(store: Store, folder: str) -> None:
    store.put(f"{folder}/a", b"12345")
    (info,) = store.list(f"{folder}/")
    head = store.head(f"{folder}/a")
    assert (info.name, info.size_bytes) == (head.name, head.size_bytes)
    assert abs(info.modified - head.modified) < dt.timedelta(seconds=1)  # stores cut off here


def test_list_is_ordered_by_name_also_around_slashes(store: Store, folder: str) -> None:
    expected = [
        f"{folder}/{name}" for name in ["B", "a-b", "a-c/z", "a.b", "a/x", "a/y/z", "a0", "b"]
    ]
    for name in reversed(expected):
        store.put(name, b"")
    assert expected == sorted(expected)
    assert names(store, f"{folder}/") == expected


def test_a_prefix_is_a_beginning_of_names_not_a_directory(store: Store, folder: str) -> None:
    for name in ["final/3f.1", "final/3f.2", "final/4a.1", "final3", "finalx/3f"]:
        store.put(f"{folder}/{name}", b"")
    assert names(store, f"{folder}/final/3f") == [f"{folder}/final/3f.1", f"{folder}/final/3f.2"]
    assert names(store, f"{folder}/final/") == [
        f"{folder}/final/{name}" for name in ("3f.1", "3f.2", "4a.1")
    ]
    assert len(names(store, f"{folder}/final")) == 5
    assert names(store, f"{folder}/nothing/") == []
    assert set(names(store, folder)) <= set(names(store, ""))


def test_list_is_complete_beyond_one_page(store: Store, folder: str) -> None:
    expected = [f"{folder}/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, b""), expected))
    assert names(store, f"{folder}/") == expected


@settings(max_examples=25, deadline=None)
@given(name=NAMES)
def test_every_name_comes_back_from_the_list(store: Store, name: str) -> None:
    name = f"{uuid.uuid4().hex}/{name}"
    store.put(name, b"x")
    assert names(store, name) == [name]
    assert store.get(name) == b"x"


@pytest.mark.parametrize("name", ["", "/", "a//b", "../a", "a/..", "a/.", "/a", "a/", "ä", "a b"])
def test_a_name_that_is_none_is_never_sent(store: Store, name: str) -> None:
    for call in (store.get, store.head, store.delete):
        with pytest.raises(ValueError, match="not the name"):
            call(name)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(ValueError, match="not the name"):
            write(name, b"")
    with pytest.raises(ValueError, match="not the name"):
        store.get_tail(name, 1)


def test_a_prefix_that_no_name_has_is_an_error_at_once(store: Store) -> None:
    with pytest.raises(ValueError, match="beginning"):
        store.list("../")


def test_more_than_the_largest_object_is_refused_before_it_is_sent(
    store: Store, folder: str
) -> None:
    with pytest.raises(StoreError, match="more than"):
        store.put(f"{folder}/large", bytes(MAX_OBJECT_BYTES + 1))
    assert names(store, f"{folder}/") == []


def test_the_probe_finds_nothing_wrong_and_leaves_nothing(store: Store) -> None:
    report = probe(store, SystemClock())
    assert [finding for finding in report.findings if not finding.ok] == []
    assert names(store, "probe/") == []
