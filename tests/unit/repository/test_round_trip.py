"""What is stored comes back byte for byte, and what is known is not stored again."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.repository.diskmap import DiskMap
from drvm.repository.reader import read_disk
from tests.unit.repository.conftest import new_vault

SMALL = 40 * BLOCK_BYTES


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


disk_contents = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=0, max_size=12
).map(
    lambda parts: b"".join(
        (bytes(BLOCK_BYTES) if kind == 0 else noise(BLOCK_BYTES, kind)) * count
        for kind, count in parts
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(disk_contents, st.integers(0, 4095)), min_size=1, max_size=4))
def test_every_version_of_every_disk_comes_back(versions):
    vault, parent, stored = new_vault(), None, []
    for content, cut in versions:
        disks = [content[: len(content) - cut] if cut < len(content) else content, content[::-1]]
        parent = vault.save(disks, parent, step=3 * BLOCK_BYTES)
        stored.append((parent, disks))
    fresh = vault.reopen()
    for point, disks in stored:
        assert fresh.load(point) == disks


def test_a_second_point_stores_only_what_changed(vault):
    content = bytearray(noise(SMALL))
    first = vault.save([content])
    content[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] = noise(BLOCK_BYTES, 9)
    second = vault.save([content], first)
    assert first.manifest.disks[0].new_bytes == SMALL
    assert second.manifest.disks[0].new_bytes == BLOCK_BYTES
    assert vault.load(second) == [bytes(content)]


def test_blocks_of_another_vm_and_of_a_later_process_are_found_again(vault):
    vault.save([noise(SMALL)])
    again = vault.reopen().save([noise(SMALL)])
    assert again.manifest.disks[0].new_bytes == 0


def test_an_unchanged_disk_shares_the_whole_map_with_its_parent(vault):
    first = vault.save([noise(SMALL)])
    second = vault.save([noise(SMALL)], first)
    assert second.manifest.disks[0].root == first.manifest.disks[0].root


def test_a_disk_of_zeroes_has_no_map_and_stores_nothing(vault):
    point = vault.save([bytes(LEAF_BYTES + 12345)])
    assert point.manifest.disks[0].root is None
    assert point.manifest.disks[0].stored_bytes == 0
    assert vault.load(point) == [bytes(LEAF_BYTES + 12345)]


def test_disks_of_one_point_share_packs_and_blocks(vault):
    point = vault.save([noise(SMALL), noise(SMALL)])
    assert point.manifest.disks[1].new_bytes == 0
    assert len(vault.repository.need(point.manifest)) == 2  # one of data, one of metadata


def test_a_disk_larger_than_a_leaf_with_an_uneven_end_comes_back(vault):
    content = bytearray(LEAF_BYTES * 2 + 777)
    for at in (0, LEAF_BYTES - BLOCK_BYTES, LEAF_BYTES, LEAF_BYTES * 2 + 100):
        content[at : at + 600] = noise(600, at)
    point = vault.save([bytes(content)], step=1 << 22)
    assert vault.load(point) == [bytes(content)]


def test_zero_and_unchanged_ranges_need_no_data(vault):
    content = noise(SMALL)
    parent = vault.save([content])
    parent_map = vault.repository.disk_map(parent.manifest.disks[0])
    with vault.repository.session(level=1) as session:
        disk = session.disk(SMALL, parent_map)
        assert disk.unchanged(10 * BLOCK_BYTES)
        disk.zero(10 * BLOCK_BYTES)
        disk.data(content[20 * BLOCK_BYTES : 21 * BLOCK_BYTES])
        assert disk.unchanged(SMALL - 21 * BLOCK_BYTES)
        written = session.finish()
    restored = bytearray(SMALL)
    disk_map = DiskMap(vault.repository.packs.blob, written.roots[0], SMALL)
    for offset, data in read_disk(disk_map, vault.repository.packs, vault.repository.hasher):
        restored[offset : offset + len(data)] = data
    gap = slice(10 * BLOCK_BYTES, 20 * BLOCK_BYTES)
    assert restored == content[: gap.start] + bytes(10 * BLOCK_BYTES) + content[gap.stop :]


def test_unchanged_is_refused_where_the_parents_packs_must_not_be_relied_on(vault):
    parent = vault.save([noise(SMALL)])
    parent_map = vault.repository.disk_map(parent.manifest.disks[0])
    with vault.repository.session(level=1, banned=frozenset(parent_map.packs())) as session:
        disk = session.disk(SMALL, parent_map)
        assert not disk.unchanged(BLOCK_BYTES)
        assert disk.position_bytes == 0


def test_a_range_that_leaves_the_disk_is_refused(vault):
    with vault.repository.session(level=1) as session:
        disk = session.disk(SMALL, None)
        with pytest.raises(ValueError, match="leaves the disk"):
            disk.data(noise(SMALL + BLOCK_BYTES))


def test_a_disk_that_was_not_given_whole_is_refused(vault):
    with vault.repository.session(level=1) as session:
        session.disk(SMALL, None).data(noise(BLOCK_BYTES))
        with pytest.raises(ValueError, match="the disk ends at"):
            session.finish()
