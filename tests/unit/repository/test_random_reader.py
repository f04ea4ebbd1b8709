"""Any range of a disk can be read at any time, and a block comes back verified or not at all."""

import threading

import pytest

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.errors import DamageFound, StoreUnreachable
from drvm.repository.frame_cache import FrameCache
from drvm.repository.index.tables import IdTables
from drvm.repository.random_reader import RandomReader
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_reader import digest, leaf, mapped
from tests.unit.repository.test_round_trip import noise

CONTENT = noise(50 * BLOCK_BYTES) + bytes(LEAF_BYTES) + noise(40 * BLOCK_BYTES + 100, 1)


def reader_of(vault: Vault, disk_map=None, cache_bytes: int = 1 << 20) -> RandomReader:
    if disk_map is None:
        (point,) = vault.repository.points().points
        disk_map = vault.repository.disk_map(point.manifest.disks[0])
    tables = IdTables(None, bytes(32), vault.repository.packs.ids, 1 << 24)
    tools = disk_map, vault.repository.packs, vault.repository.hasher, tables
    return RandomReader(*tools, cache_bytes=cache_bytes)


@pytest.fixture
def stored() -> Vault:
    vault = new_vault(FaultyStore())
    vault.save([CONTENT], step=1 << 24)
    vault.store.calls.clear()
    return vault


def test_frames_and_leaves_at_hand_are_not_asked_for_again(stored):
    reader = reader_of(stored)
    assert reader.size_bytes == len(CONTENT)
    assert reader.read(5, 9000) == CONTENT[5:9005]
    asked = len(stored.store.calls)
    assert reader.read(4096, 20_000) == CONTENT[4096:24_096]
    assert len(stored.store.calls) == asked


def test_a_range_outside_of_the_disk_is_refused(stored):
    reader = reader_of(stored)
    assert reader.read(len(CONTENT), 0) == b""
    for offset, length in ((-1, 1), (0, -1), (len(CONTENT) - 5, 6)):
        with pytest.raises(ValueError, match="bytes at"):
            reader.read(offset, length)


def test_several_threads_read_at_once(stored):
    reader, failures = reader_of(stored, cache_bytes=200_000), []

    def look(start: int) -> None:
        for offset in range(start, len(CONTENT) - 70_000, 5_000_000):
            if reader.read(offset, 70_000) != CONTENT[offset : offset + 70_000]:
                failures.append(offset)

    threads = [threading.Thread(target=look, args=(at * 30_000,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_map_that_lies_is_found_before_a_byte_is_given_away(vault):
    content = noise(3 * BLOCK_BYTES)
    vault.save([content])
    told = digest(vault, content)
    assert reader_of(vault, mapped(vault, leaf(vault, 0, 1, 2), told)).read(0, 12288) == content
    for order in ((1, 0, 2), (0, 1, 1), (0, 1, 3), (0, 1, 32), (0, 1, (1 << 31) - 1)):
        with pytest.raises(DamageFound):
            reader_of(vault, mapped(vault, leaf(vault, *order), told)).read(0, 10)


def test_a_block_that_is_not_what_the_packs_table_says_is_damage(stored, monkeypatch):
    """Only a writer that holds a key can make such a pack."""
    reader = reader_of(stored)
    frames = stored.repository.packs.frames
    swapped = lambda name, numbers: (bytes(len(p)) for p in frames(name, numbers))  # noqa: E731
    monkeypatch.setattr(stored.repository.packs, "frames", swapped)
    with pytest.raises(DamageFound, match="holds other blocks"):
        reader.read(0, 10)


def test_a_store_that_fails_can_be_asked_again(stored):
    reader = reader_of(stored)

    def fails(verb: str, name: str) -> None:
        raise StoreUnreachable("no answer")

    stored.store.before = fails
    with pytest.raises(StoreUnreachable):
        reader.read(0, 10)
    stored.store.before = lambda verb, name: None
    assert reader.read(0, 10) == CONTENT[:10]


def test_a_cache_of_frames_keeps_what_was_used_last_within_its_bytes():
    cache = FrameCache(10)
    cache.put(b"a", 1, b"1234")
    cache.put(b"a", 2, b"1234")
    cache.put(b"a", 1, b"4321")
    assert (cache.get(b"a", 1), cache.get(b"a", 2)) == (b"4321", b"1234")
    assert cache.get(b"a", 1)
    cache.put(b"b", 1, b"123")
    assert (cache.get(b"a", 2), cache.get(b"a", 1), cache.get(b"b", 1)) == (None, b"4321", b"123")
    cache.drop(b"a", 1)
    cache.put(b"c", 1, b"1234567")
    assert (cache.get(b"b", 1), cache.get(b"c", 1)) == (b"123", b"1234567")
    cache.put(b"d", 1, b"longer than there is room")
    assert [cache.get(name, 1) for name in (b"b", b"c", b"d")] == [None, None, None]


def test_a_pack_that_is_gone_is_damage(stored):
    reader = reader_of(stored)
    for name in list(stored.store.objects):
        pack = bytes.fromhex(name.split("/")[1]) if name.startswith("packs/") else b""
        if pack and stored.repository.packs.open(pack).footer.kind == "data":
            del stored.store.objects[name]
    with pytest.raises(DamageFound, match="missing"):
        reader.read(0, 10)
