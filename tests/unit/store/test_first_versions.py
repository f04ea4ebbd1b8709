"""A bucket with versions reads as its writers left it, whatever somebody else did since."""

from __future__ import annotations

import datetime as dt

import pytest

from drvm.core.errors import ObjectExists, ObjectMissing, StoreRefused, TamperingFound
from drvm.store.first_versions import FirstVersions, alarms_of, first_versions, retained_until
from drvm.store.history import LockRule, Version
from drvm.store.memory import MemoryStore
from tests.fakes.clock import FakeClock
from tests.fakes.versioned_store import Kept, VersionedMemory

LOOSE = ("probe/",)


@pytest.fixture
def bucket() -> VersionedMemory:
    return VersionedMemory(FakeClock())


@pytest.fixture
def store(bucket: VersionedMemory) -> FirstVersions:
    made = FirstVersions(bucket, loose=LOOSE)
    made.put("packs/a", b"ours")
    made.put_if_absent("final/a", b"ok")
    return made


def names(store: FirstVersions, prefix: str = "") -> list[str]:
    return [info.name for info in store.list(prefix)]


def test_what_is_overwritten_reads_as_before_and_raises_an_alarm(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    bucket.put("packs/a", b"longer lies")
    assert [(info.name, info.size_bytes) for info in store.list("packs/")] == [("packs/a", 4)]
    assert store.get("packs/a") == b"ours"
    assert store.get("packs/a", offset=1, length=2) == b"ur"
    assert store.get_tail("packs/a", 3) == b"urs"
    assert store.head("packs/a").size_bytes == 4
    assert alarms_of(store) == (
        "packs: somebody changed 1, read as they were: packs/a (overwritten)",
    )


def test_what_is_deleted_is_still_there_and_raises_an_alarm(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    bucket.delete("final/a")
    fresh = FirstVersions(bucket, loose=LOOSE)
    assert fresh.get("final/a") == b"ok"
    assert "final/a (deleted)" in alarms_of(fresh)[0]
    assert names(fresh) == ["final/a", "packs/a"]


def test_many_alarms_are_a_line_for_each_kind(bucket: VersionedMemory) -> None:
    store = FirstVersions(bucket)
    for number in range(5):
        store.put(f"final/{number}", b"ok")
        bucket.put(f"final/{number}", b"aborted")
    store.put("packs/a", b"")
    bucket.delete("packs/a")
    list(store.list(""))
    final, packs = alarms_of(store)
    assert final.startswith("final: somebody changed 5, read as they were: final/0 ")
    assert final.endswith(" and 2 more")
    assert packs.startswith("packs: somebody changed 1,")


def test_an_alarm_ends_when_the_later_versions_are_gone(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    bucket.put("packs/a", b"lies")
    list(store.list("packs/"))
    later = bucket.kept["packs/a"][-1].version
    bucket.history.delete("packs/a", later.id)
    assert names(store, "packs/") == ["packs/a"]
    assert alarms_of(store) == ()


def test_a_request_that_arrived_twice_is_no_alarm(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    bucket.put("packs/a", b"ours")
    list(store.list(""))
    assert alarms_of(store) == ()
    store.delete("packs/a")
    assert bucket.kept.keys() == {"final/a"}


def test_what_drvm_deletes_is_gone_with_all_its_versions(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    store.delete("final/a")
    assert "final/a" not in bucket.kept
    with pytest.raises(ObjectMissing):
        store.get("final/a")
    store.delete("final/a")
    store.put_if_absent("final/a", b"new")
    assert store.get("final/a") == b"new"


def test_what_somebody_touched_is_not_deleted(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    bucket.delete("final/a")
    with pytest.raises(TamperingFound, match="deleted by somebody") as caught:
        store.delete("final/a")
    assert (caught.value.exit_code, "S3.md" in caught.value.hint) == (4, True)
    assert store.get("final/a") == b"ok"


def test_a_name_that_somebody_deleted_can_not_be_created_anew(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    bucket.delete("final/a")
    with pytest.raises(ObjectExists):
        store.put_if_absent("final/a", b"another decision")
    assert store.get("final/a") == b"ok"


def in_parts(name: str, data: bytes, begun: dt.datetime) -> Kept:
    """S3 dates what was uploaded in parts by when that was begun, however much later it ended."""
    etag = f"{'ab' * 16}-1"
    return Kept(Version(name, "in parts", len(data), begun, etag), data)


def test_what_was_begun_in_parts_before_an_object_came_is_not_the_object(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    """The name of a final is told by its manifest before the final is there."""
    ours = bucket.kept["final/a"][0].version
    early = in_parts("final/a", b"aborted", ours.modified - dt.timedelta(seconds=1))
    bucket.kept["final/a"].insert(0, early)
    fresh = FirstVersions(bucket, loose=LOOSE)
    assert fresh.get("final/a") == b"ok"
    assert "final/a (overwritten)" in alarms_of(fresh)[0]
    (later,) = fresh.later("final/")
    assert later.versions == (early.version,)
    assert fresh.undo(later) and fresh.get("final/a") == b"ok"


def test_what_has_only_versions_in_parts_is_the_first_of_them(
    bucket: VersionedMemory, store: FirstVersions
) -> None:
    """Other tools copy a repository as they like."""
    now = bucket.clock.now()
    bucket.kept["packs/b"] = [in_parts("packs/b", b"copied", now)]
    bucket.kept["packs/c"] = [in_parts("packs/c", bytes(9 << 20), now)]
    bucket.put("packs/c", b"lies")
    assert store.get("packs/b") == b"copied"
    assert store.head("packs/c").size_bytes == 9 << 20


def test_loose_names_come_and_go(bucket: VersionedMemory, store: FirstVersions) -> None:
    store.put("probe/x", b"1")
    store.put("probe/x", b"2")
    assert (store.get("probe/x"), store.get_tail("probe/x", 1)) == (b"2", b"2")
    assert names(store, "probe/") == ["probe/x"]
    store.delete("probe/x")
    assert names(store, "probe/") == []
    assert alarms_of(store) == ()
    assert "probe/x" not in bucket.kept


def test_the_repository_is_read_as_it_was(bucket: VersionedMemory, store: FirstVersions) -> None:
    clock = bucket.clock
    assert isinstance(clock, FakeClock)
    then = clock.now() + dt.timedelta(hours=1)
    clock.sleep(7200)
    store.put("packs/later", b"x")
    store.put("keys/later", b"x")
    bucket.put("packs/a", b"lies")
    bucket.put("keys/later", b"lies")
    past = FirstVersions(bucket, loose=LOOSE, as_of=then, always=("keys/",))
    assert names(past) == ["final/a", "keys/later", "packs/a"]
    assert past.get("packs/a") == b"ours"
    assert alarms_of(past) == ()
    with pytest.raises(ObjectMissing):
        past.get("packs/later")
    for write in (past.put, past.put_if_absent):
        with pytest.raises(StoreRefused, match="as it was at"):
            write("packs/b", b"x")
    with pytest.raises(StoreRefused, match="as it was at"):
        past.delete("packs/a")


def test_a_locked_object_can_not_be_deleted_until_its_lock_ends() -> None:
    clock = FakeClock()
    bucket = VersionedMemory(clock, LockRule("governance", 2, ("packs/",)))
    store = FirstVersions(bucket)
    store.put("packs/a", b"x")
    store.put("index/a", b"x")
    until = retained_until(store, "packs/a")
    assert until == clock.now().replace(microsecond=0) + dt.timedelta(days=2)
    assert retained_until(store, "index/a") is None
    assert retained_until(store, "packs/none") is None
    with pytest.raises(StoreRefused):
        store.delete("packs/a")
    store.retain("packs/a", "governance", until + dt.timedelta(days=1))
    clock.sleep(2 * 86400 + 60)
    with pytest.raises(StoreRefused):
        store.delete("packs/a")
    clock.sleep(86400)
    store.delete("packs/a")
    assert names(store) == ["index/a"]


def test_reading_asks_for_the_versions_of_names_that_begin_alike_once(
    bucket: VersionedMemory,
) -> None:
    for name in ("packs/ab1", "packs/ab2", "packs/ac1", "drvm.json"):
        bucket.put(name, b"ours")
    asked = []
    listing = bucket.history.list
    bucket.history.list = lambda prefix: asked.append(prefix) or listing(prefix)  # type: ignore
    store = FirstVersions(bucket)
    for name in ("packs/ab1", "packs/ab2", "packs/ab1", "drvm.json"):
        assert store.get(name, offset=1, length=2) == b"ur"
    assert asked == ["packs/ab", "drvm.json"]
    with pytest.raises(ObjectMissing):
        store.get("packs/ab3")
    assert asked == ["packs/ab", "drvm.json", "packs/ab"]
    store.head("packs/ab1")
    assert len(asked) == 4


def test_a_store_without_versions_is_itself_and_has_no_past() -> None:
    plain = MemoryStore()
    assert first_versions(plain) is plain
    assert alarms_of(plain) == ()
    assert retained_until(plain, "packs/a") is None
    with pytest.raises(StoreRefused, match="keeps no versions"):
        first_versions(plain, as_of=dt.datetime.now(dt.UTC))
