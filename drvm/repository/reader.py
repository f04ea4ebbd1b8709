"""Reading a disk back: in pack order, every frame of a window once, every block verified."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, BlockHasher, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.chunker.runs import ZERO
from drvm.core.errors import DamageFound
from drvm.repository.diskmap import DiskMap
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.packs import PackReader

WINDOW_LEAVES = 64
"""4 GiB of a disk are put in pack order at a time: bounds memory, whatever the disk's size."""

_FETCHERS = 4
_IN_FLIGHT = 4
_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Window:
    """The stored blocks of some leaves, sorted by pack and ordinal; an entry per block.

    ``block``: in the disk, counted from the window's start; ``pack``: index into ``packs``.
    """

    packs: list[bytes]
    pack: _I64
    ordinal: _I64
    block: _I64
    digests: dict[int, bytes]


def read_disk(
    disk_map: DiskMap, packs: PackReader, hasher: BlockHasher
) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset in bytes, bytes) for every stored part of the disk, in any order.

    What is not yielded is zeroes. The last part is cut at the disk's size. Raises
    ``DamageFound`` at a frame that does not authenticate, and at the end of each window if the
    blocks of a leaf are not the ones its digest stands for: so nothing of a disk may be used
    before the iteration has ended.
    """
    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch") as pool:
        for first in range(0, disk_map.leaves, WINDOW_LEAVES):
            count = min(WINDOW_LEAVES, disk_map.leaves - first)
            yield from _read_window(disk_map, packs, hasher, pool, first, count)


def stored_bytes(disk_map: DiskMap) -> int:
    """How many bytes ``read_disk`` will yield, but for the cut at the end: for progress."""
    total = 0
    for index in range(disk_map.leaves):
        leaf = disk_map.leaf(index)
        if leaf is not None:
            total += int((leaf.pack != ZERO).sum()) * BLOCK_BYTES
    return total


def _read_window(
    disk_map: DiskMap,
    packs: PackReader,
    hasher: BlockHasher,
    pool: ThreadPoolExecutor,
    first_leaf: int,
    leaf_count: int,
) -> Iterator[tuple[int, memoryview]]:
    window = _load(disk_map, first_leaf, leaf_count)
    base = first_leaf * LEAF_BLOCKS
    ids = zero_ids(sum(disk_map.leaf_blocks(first_leaf + n) for n in range(leaf_count)))
    frame = window.ordinal // FRAME_BLOCKS
    for pack, number, plain in _fetch(window, packs, pool):
        start, stop = np.searchsorted(window.pack, (pack, pack + 1))
        low, high = start + np.searchsorted(frame[start:stop], (number, number + 1))
        slot = window.ordinal[low:high] % FRAME_BLOCKS
        block = window.block[low:high]
        if int(slot.max()) * BLOCK_BYTES >= len(plain):
            raise DamageFound("a disk map names a block beyond the end of its frame")
        ids[block] = hasher.ids(plain)[slot]
        yield from _parts(memoryview(plain), slot, base + block, disk_map.size_bytes)
    for leaf, digest in window.digests.items():
        at = (leaf - first_leaf) * LEAF_BLOCKS
        if hasher.leaf_digest(ids[at : at + disk_map.leaf_blocks(leaf)])[:DIGEST_BYTES] != digest:
            raise DamageFound(f"leaf {leaf} of a disk is not what its disk map stands for")


def _load(disk_map: DiskMap, first_leaf: int, leaf_count: int) -> _Window:
    names: dict[bytes, int] = {}
    columns: list[tuple[_I64, _I64, _I64]] = []
    digests: dict[int, bytes] = {}
    for index in range(first_leaf, first_leaf + leaf_count):
        leaf, child = disk_map.leaf(index), disk_map.leaf_child(index)
        if leaf is None or child is None:
            continue
        digests[index] = child.digest
        local = np.array([names.setdefault(n, len(names)) for n in leaf.packs], dtype=np.int64)
        stored = np.flatnonzero(leaf.pack != ZERO)
        at = (index - first_leaf) * LEAF_BLOCKS
        columns.append((local[leaf.pack[stored]], leaf.ordinal[stored], stored + at))
    empty = np.zeros(0, dtype=np.int64)
    pack, ordinal, block = (
        np.concatenate([column[n] for column in columns] or [empty]) for n in range(3)
    )
    order = np.lexsort((ordinal, pack))
    return _Window(list(names), pack[order], ordinal[order], block[order], digests)


def _fetch(
    window: _Window, packs: PackReader, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, int, bytes]]:
    """(pack, frame number, plain bytes), a few ranges ahead of whoever takes them."""
    under_way: deque[tuple[int, Future[list[tuple[int, bytes]]]]] = deque()
    try:
        for pack in np.unique(window.pack).tolist():
            name = window.packs[pack]
            first, stop = np.searchsorted(window.pack, (pack, pack + 1))
            numbers = window.ordinal[first:stop] // FRAME_BLOCKS
            for group in packs.ranges(name, numbers):
                under_way.append((pack, pool.submit(packs.frames, name, group)))
                if len(under_way) > _IN_FLIGHT:
                    yield from _taken(*under_way.popleft())
        while under_way:
            yield from _taken(*under_way.popleft())
    finally:
        for _, future in under_way:
            future.cancel()


def _taken(pack: int, future: Future[list[tuple[int, bytes]]]) -> Iterator[tuple[int, int, bytes]]:
    for number, plain in future.result():
        yield pack, number, plain


def _parts(
    plain: memoryview, slot: _I64, block: _I64, size_bytes: int
) -> Iterator[tuple[int, memoryview]]:
    """Join blocks that lie side by side both in the frame and on the disk."""
    breaks = np.flatnonzero((np.diff(slot) != 1) | (np.diff(block) != 1)) + 1
    for part in np.split(np.arange(len(slot)), breaks):
        start = int(slot[part[0]]) * BLOCK_BYTES
        offset = int(block[part[0]]) * BLOCK_BYTES
        length = min(len(part) * BLOCK_BYTES, size_bytes - offset)
        yield offset, plain[start : start + length]
