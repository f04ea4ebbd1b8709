"""A disk of any size comes back whatever it is compared with and however it is described."""

import itertools
import os
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, LEAF_BYTES
from drvm.core.errors import DamageFound
from drvm.core.progress import NoProgress
from drvm.repository import disk_writer, pack
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.diskmap import DiskMap
from drvm.repository.layout import pack_object
from drvm.repository.reader import read_disk
from tests.unit.repository.conftest import Vault, new_vault
from tests.unit.repository.test_round_trip import SMALL, noise

ONE = BLOCK_BYTES


@dataclass(frozen=True)
class Sparse:
    """A disk of which most is zeroes: ``blocks`` maps a block to its 4096 bytes."""

    size_bytes: int
    blocks: dict[int, bytes]

    def piece(self, block: int) -> bytes:
        """The bytes of a block, cut at the disk's end."""
        content = self.blocks.get(block, bytes(ONE))
        return content[: self.size_bytes - block * ONE]


def give(disk: DiskWriter, new: Sparse, old: Sparse | None, hints: list[int]) -> None:
    """Give ``new``, with UNCHANGED where ``hints`` say so and it is true."""
    edges = sorted({*new.blocks, *(b + 1 for b in new.blocks), *hints, *range(9)})
    edges += range(0, -(-new.size_bytes // ONE), LEAF_BLOCKS)
    last = -(-new.size_bytes // ONE)
    edges = sorted({edge for edge in edges if 0 < edge < last} | {0, last})
    for first, stop in itertools.pairwise(edges):
        length = min(stop * ONE, new.size_bytes) - first * ONE
        content = new.piece(first) if first in new.blocks else bytes(0)
        same = (
            old is not None
            and first * ONE + length <= old.size_bytes
            and all(new.piece(b) == old.piece(b)[: len(new.piece(b))] for b in {first, stop - 1})
            and not any(first < b < stop for b in old.blocks)
        )
        if same and first in hints and disk.unchanged(length):
            continue
        if first in new.blocks:
            disk.data(content)
        else:
            disk.zero(length)


def write(
    vault: Vault, new: Sparse, old: Sparse | None, parent: DiskMap | None, hints: list[int]
) -> DiskMap:
    vault.repository.refresh()
    with vault.repository.session(level=1) as session:
        give(session.disk(new.size_bytes, parent), new, old, hints)
        (root,) = session.finish().roots
    return DiskMap(vault.repository.packs.blob, root, new.size_bytes)


def content(vault: Vault, disk_map: DiskMap) -> dict[int, bytes]:
    found = {}
    for offset, data in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        for at in range(0, len(data), ONE):
            found[(offset + at) // ONE] = bytes(data[at : at + ONE])
    return found


sizes = st.one_of(
    st.integers(0, 5 * ONE),
    st.builds(
        lambda leaves, delta: max(0, leaves * LEAF_BYTES + delta),
        st.integers(1, 3),
        st.sampled_from([-ONE - 1, -ONE, -512, 0, 1, 512, ONE, 3 * ONE - 100]),
    ),
)


@st.composite
def disks(draw: st.DrawFn) -> Sparse:
    size = draw(sizes)
    last = -(-size // ONE)
    edges = [0, 1, LEAF_BLOCKS - 1, LEAF_BLOCKS, 2 * LEAF_BLOCKS - 1, last - 2, last - 1]
    places = draw(st.sets(st.sampled_from(edges), max_size=5))
    kinds = st.integers(1, 4)
    blocks = {place: noise(ONE, draw(kinds)) for place in places if 0 <= place < last}
    return Sparse(size, blocks)


@settings(deadline=None, max_examples=60)
@given(st.lists(disks(), min_size=1, max_size=4), st.data())
def test_disks_that_grow_and_shrink_come_back(versions, data):
    vault, old, parent = new_vault(), None, None
    for new in versions:
        last = -(-new.size_bytes // ONE)
        possible = [0, 1, 2, LEAF_BLOCKS - 1, LEAF_BLOCKS, 2 * LEAF_BLOCKS, max(0, last - 1)]
        hints = sorted(data.draw(st.sets(st.sampled_from(possible))))
        parent = write(vault, new, old, parent, hints)
        assert content(vault, parent) == {b: new.piece(b) for b in new.blocks if any(new.piece(b))}
        old = new


@pytest.fixture
def small_packs(monkeypatch):
    """Packs of a few frames, so that a small disk needs many."""
    monkeypatch.setattr(pack, "PACK_MAX_BYTES", pack._TABLES_RESERVE_BYTES + 30_000)
    monkeypatch.setattr(pack, "PACK_MAX_BLOCKS", 70)
    return monkeypatch


def data_packs(vault: Vault) -> int:
    return len(vault.repository._index.known())


@pytest.mark.parametrize("pending_bytes", [0, 60, 1 << 20])
def test_disks_over_many_packs_come_back_and_share_blocks_across_them(small_packs, pending_bytes):
    small_packs.setattr(disk_writer, "_PENDING_MAX_BYTES", pending_bytes)
    vault = new_vault()
    shared = noise(300 * ONE, 1)
    texts = b"".join(noise(40, n) * 102 + bytes(16) for n in range(400))
    parts = [shared, bytes(7 * ONE), texts, shared[: 50 * ONE], noise(33 * ONE, 2)]
    whole = b"".join(parts)
    disks = [whole, whole[: LEAF_BYTES // 4096], shared[::-1], whole[ONE * 3 :]]
    point = vault.save(disks, step=37 * ONE)
    assert data_packs(vault) > 10
    assert point.manifest.disks[1].new_bytes == point.manifest.disks[3].new_bytes == 0
    assert vault.reopen().load(point) == disks


def test_leaves_that_wait_for_packs_of_a_later_leaf_come_back(small_packs):
    vault = new_vault()
    disk = Sparse(
        5 * LEAF_BYTES,
        {leaf * LEAF_BLOCKS + n: noise(ONE, leaf * 40 + n) for leaf in range(5) for n in range(40)},
    )
    parent = write(vault, disk, None, None, [])
    assert data_packs(vault) > 3
    changed = Sparse(disk.size_bytes, disk.blocks | {LEAF_BLOCKS + 1: noise(ONE, 999)})
    again = write(vault, changed, disk, parent, list(range(0, 5 * LEAF_BLOCKS, LEAF_BLOCKS)))
    assert content(vault, parent) == disk.blocks
    assert content(vault, again) == changed.blocks


def test_packs_fill_to_the_block_and_no_further(small_packs):
    """The ids of the last frame of a full pack, and of the first of the next, find their place."""
    vault = new_vault()
    for blocks in (69, 70, 71, 140, 141):
        content = b"".join(noise(8, blocks * 1000 + n) * 512 for n in range(blocks))
        assert vault.load(vault.save([content])) == [content]
    for name in vault.repository._index.known():
        ids, ordinals = vault.repository.packs.ids(name)
        assert len(ids) == len(np.unique(ordinals)) <= 70


@pytest.mark.parametrize(
    ("size", "give_it"),
    [
        (SMALL, lambda disk: disk.zero(100)),
        (SMALL, lambda disk: disk.unchanged(100)),
        (SMALL, lambda disk: disk.data(bytes(100))),
        (SMALL, lambda disk: disk.zero(-ONE)),
        (SMALL, lambda disk: disk.zero(SMALL + 1)),
        (SMALL, lambda disk: disk.unchanged(SMALL + ONE)),
        (SMALL + 100, lambda disk: disk.data(bytes(SMALL + ONE))),
        (SMALL + 100, lambda disk: disk.zero(SMALL + ONE)),
        (2 * LEAF_BYTES, lambda disk: disk.unchanged(LEAF_BYTES + ONE)),
    ],
)
def test_a_range_that_is_not_whole_blocks_of_the_disk_is_refused_untouched(vault, size, give_it):
    parent = vault.save([noise(SMALL)])
    parent_map = vault.repository.disk_map(parent.manifest.disks[0])
    with vault.repository.session(level=1) as session:
        disk = session.disk(size, parent_map)
        with pytest.raises(ValueError, match=r"disk|leaf"):
            give_it(disk)
        assert disk.position_bytes == 0


def meta_packs(vault: Vault) -> list[bytes]:
    point = vault.repository.points().points[-1]
    return [
        name
        for name in vault.repository.need(point.manifest)
        if vault.repository.packs.open(name).footer.kind == "meta"
    ]


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "empty"])
@pytest.mark.parametrize("hinted", [False, True])
def test_a_parent_whose_map_is_damaged_is_no_parent_and_the_backup_heals(vault, damage, hinted):
    content = noise(SMALL)
    parent = vault.save([content])
    (name,) = meta_packs(vault)
    whole = vault.store.get(pack_object(name))
    stored = {
        "flipped": b"\x00" * 300 + whole[300:],
        "cut": whole[-400:],
        "empty": b"",
        "missing": None,
    }[damage]
    vault.store.delete(pack_object(name))
    if stored is not None:
        vault.store.put(pack_object(name), stored)
    vault = vault.reopen()
    with pytest.raises(DamageFound):
        vault.load(parent)
    if not hinted:
        again = vault.save([content], parent)
        assert vault.load(again) == [content]
        return
    vault.repository.refresh()
    with vault.repository.session(level=1) as session:
        disk = session.disk(SMALL, vault.repository.disk_map(parent.manifest.disks[0]))
        assert not disk.unchanged(ONE)
        assert not disk.unchanged(SMALL)
        disk.data(content)
        (root,) = session.finish().roots
    healed = DiskMap(vault.repository.packs.blob, root, SMALL)
    assert name not in healed.packs()


def test_a_pack_whose_tables_are_damaged_is_not_relied_on_again(vault):
    content = noise(SMALL)
    parent = vault.save([content])
    (name,) = vault.repository._index.known()
    whole = vault.store.get(pack_object(name))
    vault.store.put(pack_object(name), whole[:-216] + os.urandom(72) + whole[-144:])
    vault = vault.reopen()
    vault.repository.catalog.rebuild(NoProgress())
    again = vault.save([content], parent)
    assert again.manifest.disks[0].new_bytes == SMALL
    assert name not in vault.repository.need(again.manifest)
    assert vault.load(again) == [content]


def test_a_condemned_pack_is_not_relied_on_in_the_first_place(vault):
    content = noise(SMALL)
    parent = vault.save([content])
    (name,) = vault.repository._index.known()
    vault.store.put(f"condemned/{name.hex()}", b"")
    again = vault.save([content], parent)
    assert name not in vault.repository.need(again.manifest)
    assert vault.load(again) == [content]
