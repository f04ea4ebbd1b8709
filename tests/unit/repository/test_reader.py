"""Disks are read in pack order, each frame once, and nothing that was not stored comes back."""

import threading

import numpy as np
import pytest

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, LEAF_BYTES
from drvm.chunker.runs import Leaf, encode_leaf
from drvm.core.errors import DamageFound, StoreUnreachable
from drvm.repository import pack, packs, reader
from drvm.repository.blobs import BlobWriter
from drvm.repository.diskmap import DiskMap, DiskMapWriter
from drvm.repository.layout import pack_object
from drvm.repository.reader import read_disk, stored_bytes
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.faults import FaultyStore
from tests.unit.repository.test_round_trip import SMALL, noise


def mapped(vault: Vault, leaf: Leaf, digest: bytes) -> DiskMap:
    """What a key holder can write: a disk of one leaf that says what he likes."""
    blobs = BlobWriter(
        vault.repository._sealer, lambda p: vault.store.put(pack_object(p.name), p.data)
    )
    size = len(leaf.pack) * BLOCK_BYTES
    writer = DiskMapWriter(blobs, size, None)
    writer.put(0, encode_leaf(leaf), digest, frozenset(leaf.packs))
    root = writer.finish()
    blobs.finish()
    return DiskMap(vault.repository.packs.blob, blobs.ref(root), size)


def read_all(vault: Vault, disk_map: DiskMap) -> None:
    for _ in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        pass


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


@pytest.fixture
def spread(monkeypatch) -> tuple[Vault, bytes]:
    """A disk of some leaves over many packs, read in windows of two leaves."""
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 200_000)
    monkeypatch.setattr(reader, "WINDOW_LEAVES", 2)
    vault = new_vault(FaultyStore())
    content = bytearray(4 * LEAF_BYTES + 5000)
    for number in range(5):
        start = number * LEAF_BYTES
        part = noise(120 * BLOCK_BYTES, number % 3)  # leaves 3 and 4 repeat the first ones
        content[start : start + len(part)] = part[: len(content) - start]
    vault.save([bytes(content)], step=4 << 20)
    vault.store.calls.clear()
    return vault, bytes(content)


@pytest.mark.parametrize(("leaves", "windows"), [(64, 1), (2, 3)])
def test_windows_give_the_whole_disk_and_fetch_each_frame_once(
    spread, monkeypatch, leaves, windows
):
    vault, content = spread
    monkeypatch.setattr(reader, "WINDOW_LEAVES", leaves)
    fetched = []
    frames = packs.PackReader.frames
    monkeypatch.setattr(
        packs.PackReader,
        "frames",
        lambda self, name, numbers: (
            fetched.extend((name, n) for n in numbers) or frames(self, name, numbers)
        ),
    )
    (point,) = vault.repository.points().points
    fetched.clear()
    assert vault.load(point) == [content]
    assert len(vault.repository._index.known()) > 5
    assert max(fetched.count(frame) for frame in fetched) == windows  # repeated in every window
    assert stored_bytes(vault.repository.disk_map(point.manifest.disks[0])) == sum(
        BLOCK_BYTES
        for at in range(0, len(content), BLOCK_BYTES)
        if any(content[at : at + BLOCK_BYTES])
    )


def fetchers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_a_reader_that_stops_early_leaves_no_threads(spread):
    vault, _ = spread
    disk_map = vault.repository.disk_map(vault.repository.points().points[0].manifest.disks[0])
    parts = read_disk(disk_map, vault.repository.packs, vault.repository.hasher)
    next(parts)
    assert fetchers()
    parts.close()
    assert fetchers() == []


@pytest.mark.parametrize("error", [StoreUnreachable("no answer"), KeyboardInterrupt()])
def test_an_error_in_a_fetch_ends_the_reading_and_leaves_no_threads(spread, error):
    vault, _ = spread
    disk_map = vault.repository.disk_map(vault.repository.points().points[0].manifest.disks[0])
    gets = []

    def fails(verb: str, name: str) -> None:
        gets.append(name)
        if len(gets) > 4:
            raise error

    vault.store.before = fails
    with pytest.raises(type(error)):
        read_all(vault, disk_map)
    assert fetchers() == []


def test_the_last_block_is_cut_at_the_end_of_the_disk(vault):
    content = noise(LEAF_BLOCKS + 7)
    point = vault.save([content])
    disk_map = vault.repository.disk_map(point.manifest.disks[0])
    parts = list(read_disk(disk_map, vault.repository.packs, vault.repository.hasher))
    assert sum(len(data) for _, data in parts) == len(content)
