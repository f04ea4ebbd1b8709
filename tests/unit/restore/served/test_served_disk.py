"""A block comes back verified or not at all, requests don't wait for each other's, and a store that
fails for a while is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import DamageFound, ObjectTruncated, StoreRefused, StoreUnreachable
from drvm.repository.diskmap import DiskMap
from drvm.repository.index.tables import IdTables
from drvm.repository.packs import BlobRef
from drvm.restore.served import frames as frames_module
from drvm.restore.served.disk import Renew, ServedDisk
from drvm.restore.served.frames import Frames
from drvm.restore.served.patience import Patience
from drvm.restore.served.telling import Telling
from tests.fakes.clock import FakeClock
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.faults import FaultyStore, within
from tests.unit.repository.test_reader import digest, leaf, mapped
from tests.unit.repository.test_round_trip import noise

CONTENT = noise(50 * BLOCK_BYTES) + bytes(LEAF_BYTES) + noise(400 * BLOCK_BYTES + 100, 1)

assert cheap_key_derivation  # a fixture, for all tests here


class Served:
    """One disk of a vault, and what it told of the store."""

    def __init__(
        self,
        vault: Vault,
        disk_map: DiskMap | None = None,
        renew: Renew = lambda: None,
        **limits: int,
    ) -> None:
        if disk_map is None:
            (point,) = vault.repository.points().points
            disk_map = vault.repository.disk_map(point.manifest.disks[0])
        repository = vault.repository
        self.clock, self.told = FakeClock(), []
        patience = Patience(self.clock, 60, self.told.append)
        self.frames = Frames(repository.packs, repository.hasher, patience, **limits)
        tables = IdTables(None, bytes(32), repository.packs.ids, 1 << 24)
        self.disk = ServedDisk(
            disk_map, self.frames, repository.hasher, tables, patience, None, renew
        )

    def read(self, offset: int, length: int) -> bytes:
        target = bytearray(b"\xaa" * length)
        self.disk.read_into(offset, memoryview(target))
        return bytes(target)


@pytest.fixture
def stored() -> Vault:
    vault = new_vault(FaultyStore())
    vault.save([CONTENT], step=1 << 24)
    vault.store.calls.clear()
    return vault


def settle(frames: Frames) -> None:
    """Until nothing is done in the background any more."""
    deadline_s = SystemClock().monotonic_s() + 30
    while frames._queued._value < frames_module._QUEUE:
        assert SystemClock().monotonic_s() < deadline_s
        SystemClock().sleep(0.01)


def only_reads(vault: Vault, action: Callable[[], None]) -> None:
    vault.store.before = lambda verb, name: action() if verb == "get" else None


def test_frames_and_their_neighbours_are_not_asked_for_again(stored):
    served = Served(stored)
    assert served.read(5, 9000) == CONTENT[5:9005]
    asked = len(stored.store.calls)
    assert served.read(4096, 190_000) == CONTENT[4096:194_096]
    assert len(stored.store.calls) == asked


def test_a_range_outside_of_the_disk_is_refused(stored):
    served = Served(stored)
    assert served.read(len(CONTENT), 0) == b""
    for offset, length in ((-1, 1), (len(CONTENT) - 5, 6)):
        with pytest.raises(ValueError, match="bytes at"):
            served.read(offset, length)


def test_what_is_kept_is_read_while_the_store_answers_nobody(stored):
    served = Served(stored, around_bytes=0)
    served.read(0, 10)
    go_on, asked = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        assert go_on.wait(30)

    only_reads(stored, hang)
    far = threading.Thread(target=served.read, args=(LEAF_BYTES + 1_000_000, 10))
    far.start()
    assert asked.wait(30)
    within(30, lambda: served.read(100, 4000))
    go_on.set()
    far.join()


def test_several_requests_are_under_way_at_once(stored):
    served = Served(stored, around_bytes=0)
    served.read(0, 1)
    served.read(len(CONTENT) - 1, 1)
    meet = threading.Barrier(3, timeout=30)
    only_reads(stored, meet.wait)
    places = [LEAF_BYTES + at for at in (400_000, 900_000, 1_400_000)]
    threads = [threading.Thread(target=served.read, args=(at, 10)) for at in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meet.broken


def test_who_wants_the_same_waits_for_one_request(stored):
    served = Served(stored)
    served.read(0, 1)
    served.read(len(CONTENT) - 1, 1)
    stored.store.calls.clear()
    together = threading.Barrier(4, timeout=30)

    def read() -> None:
        together.wait()
        served.read(LEAF_BYTES + 500_000, 10)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored.store.calls) == 1


def test_a_disk_that_is_read_on_is_fetched_ahead(stored):
    served = Served(stored, around_bytes=0)
    for at in range(0, 3 * 65_536, 65_536):
        served.read(LEAF_BYTES + 300_000 + at, 65_536)
    settle(served.frames)
    asked = len(stored.store.calls)
    served.read(LEAF_BYTES + 300_000 + 3 * 65_536, 300_000)
    settle(served.frames)
    only_reads(stored, lambda: pytest.fail("asked again"))
    assert asked <= len(stored.store.calls)
    end = LEAF_BYTES + 300_000 + 3 * 65_536
    assert served.read(end, 300_000) == CONTENT[end : end + 300_000]


@pytest.mark.parametrize("error", [StoreUnreachable("no answer"), StoreRefused("expired")])
def test_a_store_that_fails_for_a_while_is_waited_for_and_that_is_told(stored, error):
    served = Served(stored)
    failures = iter([error] * 4)

    def fail() -> None:
        for one in failures:
            raise one

    stored.store.before = lambda verb, name: fail()
    assert served.read(0, 10) == CONTENT[:10]
    assert len(served.told) == 4
    assert "asked again in" in served.told[0]


def test_patience_ends_and_the_disk_can_be_read_again_later(stored):
    served = Served(stored)

    def fails(verb: str, name: str) -> None:
        raise StoreUnreachable("no answer")

    stored.store.before = fails
    with pytest.raises(StoreUnreachable):
        served.read(0, 10)
    assert 50 <= served.clock.monotonic_s() <= 200
    stored.store.before = lambda verb, name: None
    assert served.read(0, 10) == CONTENT[:10]


def test_nobody_waits_for_what_was_not_asked_any_more_when_the_store_failed(stored, monkeypatch):
    monkeypatch.setattr(frames_module, "_FETCHERS", 1)
    monkeypatch.setattr(frames_module, "_AHEAD_BYTES", 1 << 16)
    served = Served(stored, around_bytes=0)
    served.read(0, 1)
    served.read(len(CONTENT) - 1, 1)

    def fails(verb: str, name: str) -> None:
        raise StoreUnreachable("no answer")

    stored.store.before = fails
    with pytest.raises(StoreUnreachable):
        served.read(LEAF_BYTES + 100_000, 1_300_000)
    stored.store.before = lambda verb, name: None
    found: list[bytes] = []
    within(30, lambda: found.append(served.read(LEAF_BYTES, 1_500_000)))
    assert found == [CONTENT[LEAF_BYTES : LEAF_BYTES + 1_500_000]]


def test_what_is_missing_is_damage_at_once(stored):
    served = Served(stored)
    for name in list(stored.store.objects):
        pack = bytes.fromhex(name.split("/")[1]) if name.startswith("packs/") else b""
        if pack and stored.repository.packs.open(pack).footer.kind == "data":
            del stored.store.objects[name]
    with pytest.raises(DamageFound, match="missing"):
        served.read(0, 10)
    assert served.clock.monotonic_s() == 0


def test_a_truncated_answer_is_damage_at_once(stored):
    served = Served(stored)
    served.read(0, 1)

    def cut() -> None:
        raise ObjectTruncated("short")

    only_reads(stored, cut)
    with pytest.raises(DamageFound):
        served.read(LEAF_BYTES + 900_000, 10)
    assert served.clock.monotonic_s() == 0


def test_a_frame_that_was_damaged_on_its_way_is_asked_for_once_more(stored, monkeypatch):
    served = Served(stored)
    packs, wrong = stored.repository.packs, [True]
    right = packs.sealed

    def sealed(name: bytes, first: int, last: int) -> list[bytes]:
        found = right(name, first, last)
        return [bytes(len(one)) for one in found] if wrong and wrong.pop() else found

    monkeypatch.setattr(packs, "sealed", sealed)
    assert served.read(0, 10) == CONTENT[:10]
    wrong[:] = [True] * 100
    with pytest.raises(DamageFound):
        served.read(LEAF_BYTES + 900_000, 10)


def test_a_map_that_lies_is_found_before_a_byte_is_given_away():
    vault = new_vault()
    content = noise(3 * BLOCK_BYTES)
    vault.save([content])
    told = digest(vault, content)
    assert Served(vault, mapped(vault, leaf(vault, 0, 1, 2), told)).read(0, 12288) == content
    for order in ((1, 0, 2), (0, 1, 1), (0, 1, 3), (0, 1, 32), (0, 1, (1 << 31) - 1)):
        with pytest.raises(DamageFound):
            Served(vault, mapped(vault, leaf(vault, *order), told)).read(0, 10)


def test_a_block_that_is_not_what_the_packs_table_says_is_damage(stored, monkeypatch):
    """Only a writer that holds a key can make such a pack."""
    served = Served(stored)
    hasher = stored.repository.hasher
    monkeypatch.setattr(hasher, "ids", lambda data: hasher.scan(bytes(len(data)), None).ids)
    with pytest.raises(DamageFound, match="holds other blocks"):
        served.read(0, 10)


def test_a_point_that_was_written_anew_is_read_from_where_it_is_now(stored):
    (point,) = stored.repository.points().points
    newer = stored.repository.disk_map(point.manifest.disks[0])
    gone = DiskMap(stored.repository.packs.blob, BlobRef(bytes(32), 0), len(CONTENT))
    looked = []

    def renew() -> DiskMap | None:
        looked.append(1)
        return None if len(looked) == 1 else newer

    served = Served(stored, gone, renew)
    with pytest.raises(DamageFound):
        served.read(0, 10)
    assert served.read(0, 10) == CONTENT[:10]
    assert served.disk.extents(0, 10)[0].length == 10
    assert len(looked) == 2


def test_a_log_stays_small_whatever_is_told():
    clock, lines = FakeClock(), []
    tell = Telling(clock, lines.append)
    tell("a")
    tell("a")
    clock.sleep(61)
    tell("a\n\x1b[2J")
    tell("a")
    assert lines == ["a", "a\\x0a\\x1b[2J", "a"]
    for number in range(10_000):
        tell(f"bytes {number}")
    assert len(lines) == 2001
    assert lines[-1] == "no more is told"
