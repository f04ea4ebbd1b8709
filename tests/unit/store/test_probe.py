from __future__ import annotations

import datetime as dt
import re

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import ObjectExists, OutcomeUnknown, StoreRefused
from drvm.store.base import ObjectInfo
from drvm.store.first_versions import first_versions
from drvm.store.history import LockMode, LockRule, Versioning
from drvm.store.memory import MemoryStore
from drvm.store.probe import probe
from tests.fakes.versioned_store import VersionedMemory


class Shifted(SystemClock):
    def __init__(self, seconds: float) -> None:
        self.shift = dt.timedelta(seconds=seconds)

    def now(self) -> dt.datetime:
        return super().now() + self.shift


def failing(store: MemoryStore, clock: SystemClock | None = None) -> dict[str, str]:
    report = probe(store, clock or SystemClock())
    assert report.ok == (not [finding for finding in report.findings if not finding.ok])
    return {finding.name: finding.detail for finding in report.findings if not finding.ok}


def test_a_right_store_passes_and_is_left_empty() -> None:
    store = MemoryStore()
    assert failing(store) == {}
    assert store.objects == {}


def test_a_store_where_all_creators_win_is_found_out() -> None:
    class LastWins(MemoryStore):
        def put_if_absent(self, name: str, data: bytes) -> None:
            self.put(name, data)

    store = LastWins()
    assert list(failing(store)) == ["create-if-absent"]
    finding = probe(store, SystemClock()).finding("create-if-absent")
    assert finding is not None
    assert "one host" in finding.hint


def test_a_store_that_checks_only_later_creators_is_found_out() -> None:
    class Careless(MemoryStore):
        def put_if_absent(self, name: str, data: bytes) -> None:
            if data == b"late" and name in self.objects:
                raise ObjectExists(name)
            self.put(name, data)

    assert list(failing(Careless())) == ["create-if-absent"]


def test_a_winner_whose_answer_was_lost_still_is_the_one_winner() -> None:
    class Deaf(MemoryStore):
        def put_if_absent(self, name: str, data: bytes) -> None:
            super().put_if_absent(name, data)
            raise OutcomeUnknown("the answer was lost")

    assert failing(Deaf()) == {}


def test_a_late_listing_is_found_out() -> None:
    class Late(MemoryStore):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            return iter(list(super().list(prefix))[:-1])

    assert "list" in failing(Late())


def test_a_store_that_ignores_ranges_is_found_out() -> None:
    class Whole(MemoryStore):
        def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
            return super().get(name)

        def get_tail(self, name: str, length: int) -> bytes:
            return super().get(name)

    assert set(failing(Whole())) == {"ranged-read", "tail-read"}


@pytest.mark.parametrize(("shift_s", "word"), [(-3600, "ahead of"), (3600, "behind")])
def test_a_clock_an_hour_off_is_found_out(shift_s: float, word: str) -> None:
    failures = failing(MemoryStore(SystemClock()), Shifted(shift_s))
    assert list(failures) == ["clock"]
    assert re.search(rf"3(600|599) s {word}", failures["clock"])


def test_a_time_cut_off_to_the_second_is_no_drift() -> None:
    class Seconds(MemoryStore):
        def head(self, name: str) -> ObjectInfo:
            info = super().head(name)
            return ObjectInfo(name, info.size_bytes, info.modified.replace(microsecond=0))

    finding = probe(Seconds(), SystemClock()).finding("clock")
    assert finding is not None
    assert finding.detail == "the store's clock is within 1 s of this host's"


def test_where_nothing_can_be_written_the_report_says_only_that_with_the_hint() -> None:
    class Closed(MemoryStore):
        def put(self, name: str, data: bytes) -> None:
            raise StoreRefused("access denied", hint="check the identity")

    report = probe(Closed(), SystemClock())
    (finding,) = report.findings
    assert (finding.name, finding.ok) == ("write", False)
    assert (finding.detail, finding.hint) == ("access denied", "check the identity")


def test_an_identity_that_may_not_delete_is_told_so() -> None:
    class Keeping(MemoryStore):
        def delete(self, name: str) -> None:
            raise StoreRefused("access denied")

    assert list(failing(Keeping())) == ["delete"]


# -- services ---------------------------------------------------------------------------------
LOCK = LockRule("governance", 30, ("packs/",))


def service_failing(bucket: VersionedMemory, lock: LockRule | None = None) -> list[str]:
    report = probe(first_versions(bucket, loose=("probe/",)), SystemClock(), lock)
    return [finding.name for finding in report.findings if not finding.ok]


def test_a_right_service_passes_and_only_what_is_locked_stays() -> None:
    bucket = VersionedMemory()
    assert service_failing(bucket) == []
    assert bucket.kept == {}
    assert service_failing(bucket, LOCK) == []
    (left,) = bucket.kept.values()
    assert left[0].until is not None


def test_a_broken_upload_that_leaves_an_object_is_found_out() -> None:
    bucket = VersionedMemory()
    bucket.trials.put_cut = lambda name, data: bucket.put(name, data[:10])  # type: ignore
    assert service_failing(bucket) == ["cut-upload"]


def test_a_service_that_ignores_checksums_is_found_out() -> None:
    bucket = VersionedMemory()
    bucket.trials.takes_wrong = True
    assert service_failing(bucket) == ["checksum"]


def test_versions_that_can_not_be_told_apart_are_found_out() -> None:
    bucket = VersionedMemory()
    listing = bucket.history.list
    bucket.history.list = lambda prefix: reversed(list(listing(prefix)))  # type: ignore
    assert service_failing(bucket) == ["versions"]


@pytest.mark.parametrize(("state", "wrong"), [("none", []), ("unknown", ["versions"])])
def test_a_bucket_without_versions_is_said_and_one_that_may_not_be_asked_is_wrong(
    state: Versioning, wrong: list[str]
) -> None:
    bucket = VersionedMemory()
    bucket.history.state = state
    assert service_failing(bucket) == wrong
    assert service_failing(bucket, LOCK) == [*wrong, "object-lock"]


@pytest.mark.parametrize("fault", ["forgets", "deletes"])
def test_a_lock_that_does_not_hold_is_found_out(fault: str) -> None:
    bucket = VersionedMemory()
    retain = bucket.history.retain

    def forgets(name: str, version: str, mode: LockMode, until: dt.datetime) -> None:
        retain(name, version, mode, until)
        bucket.find(name, version).until = None

    if fault == "forgets":
        bucket.history.retain = forgets  # type: ignore[method-assign]
    else:
        bucket.history.delete = lambda name, version: None  # type: ignore[method-assign]
    assert "object-lock" in service_failing(bucket, LOCK)


def test_a_directory_has_no_locks() -> None:
    report = probe(MemoryStore(), SystemClock(), LOCK)
    assert [finding.name for finding in report.findings if not finding.ok] == ["object-lock"]
