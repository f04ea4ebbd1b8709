"""Whatever a disk map looks like, any range of the disk comes back, to several threads at once,
and its extents are those of what was stored."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from drvm.chunker.blocks import BLOCK_BYTES
from drvm.core.extents import ExtentKind, cover
from drvm.repository.index.tables import IdTables
from drvm.restore.served.disk import ServedDisk
from drvm.restore.served.frames import Frames
from drvm.restore.served.patience import Patience
from tests.fakes.clock import FakeClock
from tests.unit.repository.test_reading_properties import (
    DISKS,
    HASHER,
    LIMITS,
    Made,
    counting,
    often,
)


def content(disk: Made, offset: int, length: int) -> bytes:
    numbers = range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
    blocks = [disk.content.get(number, b"").ljust(BLOCK_BYTES, b"\0") for number in numbers]
    return b"".join(blocks)[offset % BLOCK_BYTES :][:length]


@often
@given(DISKS, LIMITS, st.sampled_from([0, 100_000]), st.randoms(use_true_random=False))
def test_any_range_of_a_disk_can_be_read_by_several_threads(disk, limits, around, source):
    size = disk.disk_map.size_bytes
    reads = []
    for _ in range(8):
        near = source.choice([*disk.content, 0]) * BLOCK_BYTES - source.randrange(10_000)
        offset = min(max(0, near), size)
        reads.append((offset, source.randrange(min(400_000, size - offset) + 1)))
    with counting(limits) as (packs, _), ThreadPoolExecutor(4) as pool:
        patience = Patience(FakeClock(), 0, str)
        cache = {"sealed_bytes": limits["cache"], "opened_bytes": limits["cache"]}
        frames = Frames(packs, HASHER, patience, around_bytes=around, **cache)
        tables = IdTables(None, bytes(32), packs.ids, 1 << 24)
        served = ServedDisk(disk.disk_map, frames, HASHER, tables, patience)

        def read(offset: int, length: int) -> bytes:
            target = bytearray(b"\xaa" * length)
            served.read_into(offset, memoryview(target))
            return bytes(target)

        for (offset, length), data in zip(
            reads, pool.map(lambda it: read(*it), reads), strict=True
        ):
            assert data == content(disk, offset, length)
        frames.close()


@often
@given(DISKS, st.integers(0, 1 << 32))
def test_extents_are_those_of_what_was_stored(disk, seed):
    served, source = disk_of(disk), random.Random(seed)
    told, at = [], 0
    while at < served.size_bytes:
        some = list(served.extents(at, source.randint(1, served.size_bytes - at)))
        told += some[: source.randint(1, 40)]
        at = told[-1].end
    data = {
        number
        for extent in cover(told, served.size_bytes)
        if extent.kind is ExtentKind.DATA
        for number in range(extent.offset // BLOCK_BYTES, -(-extent.end // BLOCK_BYTES))
    }
    assert data == set(disk.content)


def disk_of(disk: Made) -> ServedDisk:
    with counting({"range": 1 << 24, "many": 1, "gap": 0, "leaves": 1, "cache": 0}) as (packs, _):
        patience = Patience(FakeClock(), 0, str)
        tables = IdTables(None, bytes(32), packs.ids, 1 << 24)
        frames = Frames(packs, HASHER, patience)
        return ServedDisk(disk.disk_map, frames, HASHER, tables, patience)
