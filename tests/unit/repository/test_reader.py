"""Disks are read in pack order, each frame once, and nothing that was not stored comes back."""

import datetime as dt
import os
import signal
import threading

import numpy as np
import pytest

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, LEAF_BYTES
from drvm.chunker.runs import Leaf
from drvm.core.errors import DamageFound, HostError, StoreUnreachable
from drvm.repository import pack, reader
from drvm.repository.blobs import BlobWriter
from drvm.repository.diskmap import DiskMap, DiskMapWriter
from drvm.repository.layout import pack_object
from drvm.repository.reader import read_disk, write_disk
from drvm.repository.repository import Repository
from drvm.repository.window import mapped_bytes, stored_bytes
from tests.unit.repository.conftest import PASSPHRASE, Vault, new_vault
from tests.unit.repository.faults import FaultyStore, within
from tests.unit.repository.test_round_trip import SMALL, noise


def mapped(vault: Vault, leaf: Leaf, digest: bytes) -> DiskMap:
    """What a key holder can write: a disk of one leaf that says what he likes."""
    blobs = BlobWriter(
        vault.repository._sealer, lambda p: vault.store.put(pack_object(p.name), p.data)
    )
    size = len(leaf.pack) * BLOCK_BYTES
    writer = DiskMapWriter(blobs, size, None)
    writer.put(0, leaf, digest)
    root = writer.finish()
    blobs.finish()
    return DiskMap(vault.repository.packs.blob, blobs.ref(root), size)


def read_all(vault: Vault, disk_map: DiskMap) -> None:
    write_disk(disk_map, vault.repository.packs, vault.repository.hasher, lambda at, data: None)


def leaf(vault: Vault, *ordinals: int) -> Leaf:
    (name,) = vault.repository._index.known()
    return Leaf((name,), np.zeros(len(ordinals), np.int64), np.array(ordinals, np.int64))


def digest(vault: Vault, content: bytes) -> bytes:
    hasher = vault.repository.hasher
    return hasher.leaf_digest(hasher.ids(content))[:16]


def test_the_right_frames_in_the_wrong_places_are_found_by_the_leafs_digest(vault):
    content = noise(3 * BLOCK_BYTES)
    vault.save([content])
    read_all(vault, mapped(vault, leaf(vault, 0, 1, 2), digest(vault, content)))
    for order in ((1, 0, 2), (0, 1, 1), (2, 2, 2)):
        with pytest.raises(DamageFound, match="leaf 0"):
            read_all(vault, mapped(vault, leaf(vault, *order), digest(vault, content)))


@pytest.mark.parametrize("ordinal", [3, 31])
def test_a_block_beyond_the_end_of_its_frame_is_damage(vault, ordinal):
    vault.save([noise(3 * BLOCK_BYTES)])
    with pytest.raises(DamageFound, match="beyond the end"):
        read_all(vault, mapped(vault, leaf(vault, ordinal), bytes(16)))


def test_a_block_beyond_the_end_of_a_frame_that_was_kept_is_damage_too(vault):
    vault.save([noise(3 * BLOCK_BYTES)])
    hasher = vault.repository.hasher
    first, second = leaf(vault, *[0] * LEAF_BLOCKS), leaf(vault, 0, 3)
    blobs = BlobWriter(
        vault.repository._sealer, lambda p: vault.store.put(pack_object(p.name), p.data)
    )
    size = LEAF_BYTES + 2 * BLOCK_BYTES
    writer = DiskMapWriter(blobs, size, None)
    block = hasher.ids(noise(3 * BLOCK_BYTES))[0]
    for index, told, ids in ((0, first, [block] * LEAF_BLOCKS), (1, second, [block, block * 0])):
        digest = hasher.leaf_digest(np.array(ids))[:16]
        writer.put(index, told, digest)
    root = writer.finish()
    blobs.finish()
    lying = DiskMap(vault.repository.packs.blob, blobs.ref(root), size)
    with pytest.raises(DamageFound, match="beyond the end"):
        for _ in read_disk(lying, vault.repository.packs, hasher):
            pass


@pytest.mark.parametrize("ordinal", [32, 65536 * 32, (1 << 31) - 1])
def test_a_frame_that_its_pack_does_not_have_is_damage(vault, ordinal):
    vault.save([noise(3 * BLOCK_BYTES)])
    with pytest.raises(DamageFound, match="lacks frames"):
        read_all(vault, mapped(vault, leaf(vault, ordinal), bytes(16)))


def test_blocks_in_a_metadata_pack_are_damage(vault):
    point = vault.save([noise(SMALL)])
    meta = bytes.fromhex(point.manifest.definition.pack)
    lying = Leaf((meta,), np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(DamageFound, match="lacks frames"):
        read_all(vault, mapped(vault, lying, bytes(16)))


@pytest.fixture(scope="module")
def spread_objects() -> tuple[dict[str, tuple[bytes, dt.datetime]], bytes]:
    """A disk of some leaves over many packs: made once, its store copied for every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 200_000)
        vault = new_vault(FaultyStore())
        content = bytearray(4 * LEAF_BYTES + 5000)
        for number in range(5):
            start = number * LEAF_BYTES
            part = noise(120 * BLOCK_BYTES, number % 3)  # leaves 3 and 4 repeat the first ones
            content[start : start + len(part)] = part[: len(content) - start]
        vault.save([bytes(content)], step=4 << 20)
    return vault.store.objects, bytes(content)


@pytest.fixture
def spread(spread_objects) -> tuple[Vault, bytes]:
    objects, content = spread_objects
    store = FaultyStore()
    store.objects = dict(objects)
    return Vault(store, Repository.open(store, PASSPHRASE)), content


def written(vault: Vault, disk_map: DiskMap, window_leaves: int) -> bytes:
    content = bytearray(disk_map.size_bytes)

    def put(offset: int, data: memoryview) -> None:
        assert not any(content[offset : offset + len(data)])  # nothing is written twice
        content[offset : offset + len(data)] = data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "WINDOW_LEAVES", window_leaves)
        write_disk(disk_map, vault.repository.packs, vault.repository.hasher, put)
    return bytes(content)


def read(vault: Vault, disk_map: DiskMap) -> bytes:
    content = bytearray(disk_map.size_bytes)
    end = 0
    for offset, data in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        assert offset >= end
        end = offset + len(data)
        content[offset:end] = data
    return bytes(content)


def only_disk(vault: Vault) -> DiskMap:
    (point,) = vault.repository.points().points
    return vault.repository.disk_map(point.manifest.disks[0])


@pytest.mark.parametrize(("leaves", "windows"), [(64, 1), (2, 3)])
def test_windows_give_the_whole_disk_and_fetch_each_frame_once(
    spread, monkeypatch, leaves, windows
):
    vault, content = spread
    fetched = []
    open_into = pack.OpenPack.open_into

    def counting(self: pack.OpenPack, number: int, sealed: bytes, room: memoryview) -> int:
        fetched.append((self.name, number))
        return open_into(self, number, sealed, room)

    monkeypatch.setattr(pack.OpenPack, "open_into", counting)
    assert written(vault, only_disk(vault), leaves) == content
    assert len({name for name, _ in fetched}) > 5
    assert max(fetched.count(frame) for frame in fetched) == windows  # repeated in every window


def test_a_disk_is_read_in_its_order_too(spread):
    vault, content = spread
    assert read(vault, only_disk(vault)) == content


def test_what_is_not_written_is_told_to_be_zero(spread):
    vault, content = spread
    seen = bytearray(b"?" * len(content))

    def put(offset: int, data: memoryview) -> None:
        seen[offset : offset + len(data)] = data

    def zero(offset: int, length: int) -> None:
        seen[offset : offset + length] = bytes(length)

    disk_map = only_disk(vault)
    write_disk(disk_map, vault.repository.packs, vault.repository.hasher, put, zero=zero)
    assert seen == content


def test_progress_comes_to_what_the_map_says(spread):
    vault, content = spread
    done = []
    disk_map = only_disk(vault)
    tools = disk_map, vault.repository.packs, vault.repository.hasher
    count = write_disk(*tools, lambda at, data: None, progress=done.append)
    assert count == stored_bytes(disk_map)
    assert count == sum(
        BLOCK_BYTES
        for at in range(0, len(content), BLOCK_BYTES)
        if any(content[at : at + BLOCK_BYTES])
    )
    assert sum(done) == mapped_bytes(disk_map)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("restore")]


def test_a_reader_that_stops_early_leaves_no_threads(spread):
    vault, _ = spread
    parts = read_disk(only_disk(vault), vault.repository.packs, vault.repository.hasher)
    next(parts)
    assert threads()
    parts.close()
    assert threads() == []


@pytest.mark.parametrize("error", [StoreUnreachable("no answer"), KeyboardInterrupt()])
@pytest.mark.parametrize("position", [1, 2, 5, 9])
def test_an_error_of_the_store_ends_the_reading_and_leaves_no_threads(spread, error, position):
    vault, _ = spread
    disk_map = only_disk(vault)
    for run in (read, lambda *args: written(*args, 2)):
        gets = []

        def fails(verb: str, name: str, gets: list[str] = gets) -> None:
            gets.append(name)
            if len(gets) >= position:
                raise error

        vault.store.before = fails
        with pytest.raises(type(error)):
            within(30, lambda run=run: run(vault, disk_map))
        assert threads() == []


@pytest.mark.parametrize("error", [HostError("no room"), KeyboardInterrupt()])
@pytest.mark.parametrize("position", [1, 7, 12])
def test_an_error_of_whoever_takes_the_disk_ends_the_reading(spread, error, position):
    vault, _ = spread
    calls = []

    def put(offset: int, data: memoryview) -> None:
        calls.append(offset)
        if len(calls) >= position:
            raise error

    with pytest.raises(type(error)):
        tools = only_disk(vault), vault.repository.packs, vault.repository.hasher
        within(30, lambda: write_disk(*tools, put))
    assert threads() == []


def test_sigint_ends_the_reading_and_leaves_no_threads(spread):
    vault, _ = spread
    tools = only_disk(vault), vault.repository.packs, vault.repository.hasher
    once = threading.Semaphore(1)

    def put(offset: int, data: memoryview) -> None:
        if once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        write_disk(*tools, put)
    assert threads() == []


def test_damage_is_told_with_the_pack_and_what_it_was_on_the_disk(spread):
    vault, _ = spread
    disk_map = only_disk(vault)
    leaf = disk_map.leaf(1)
    name = pack_object(leaf.packs[int(leaf.pack[0])])
    data, modified = vault.store.objects[name]
    pack_bytes = bytearray(data)
    frame = int(leaf.ordinal[0]) // 32
    table = vault.repository.packs.open(bytes.fromhex(name.split("/")[1])).frames
    pack_bytes[int(table.offset[frame]) + 7] ^= 1
    vault.store.objects[name] = bytes(pack_bytes), modified
    with pytest.raises(DamageFound, match=rf"{name[6:]}, frame {frame} .*, {LEAF_BYTES} to"):
        written(vault, disk_map, 64)
    del vault.store.objects[name]
    with pytest.raises(DamageFound, match=f"{name[6:]} is missing .*of the disk"):
        written(vault.reopen(), only_disk(vault.reopen()), 64)
    assert threads() == []


def test_the_last_block_is_cut_at_the_end_of_the_disk(vault):
    content = noise(LEAF_BLOCKS + 7)
    point = vault.save([content])
    disk_map = vault.repository.disk_map(point.manifest.disks[0])
    parts = list(read_disk(disk_map, vault.repository.packs, vault.repository.hasher))
    assert sum(len(data) for _, data in parts) == len(content)
    assert written(vault, disk_map, 1) == content
