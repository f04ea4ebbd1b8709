from __future__ import annotations

import datetime as dt
import re

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import ObjectExists, OutcomeUnknown, StoreRefused
from drvm.store.base import ObjectInfo
from drvm.store.memory import MemoryStore
from drvm.store.probe import probe


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
