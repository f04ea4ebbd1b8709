"""What of a disk a target lacks that holds something already: to write that, and nothing else.

What the target holds is read and named, window by window. A leaf whose ids have the digest in the
disk map is right as it is. Of the others the ids come from the packs' tables, proven by the same
digest, and only blocks that differ are fetched. Nothing is believed of the target but what was
just read from it, so it may hold anything: another state of the disk, or what a killed restore
left half-written. docs/adr/041-in-place.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, BlockHasher, Ids, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.extents import Extent, ExtentKind, cover
from drvm.core.threads import Threads
from drvm.repository.diskmap import DiskMap
from drvm.repository.index.tables import IdTables
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.pack import make_room
from drvm.repository.window import WINDOW_LEAVES, Flags, Window, load_window

_READERS = 4
_PIECE_BLOCKS = 1024
_UNIT_BLOCKS = 16
"""Holes smaller than this are read with what lies around them."""


class Held(Protocol):
    """What a target holds, as large as the disk."""

    def extents(self) -> Iterator[Extent]:
        """Ordered, without gaps: ZERO where it surely reads as zeroes, else DATA. What has not
        been yielded yet may be written to meanwhile, but only where it was read."""
        ...

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill the whole of ``target``; from several threads."""
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """``window``: what is to be fetched and written, of leaves side by side, and no other block.
    ``ids``: of all their blocks as they shall be, but for those to be fetched. ``zeroes``: what
    must be zeroed, (offset, length) in bytes. ``read_bytes``: what was read of the target."""

    window: Window
    ids: Ids
    zeroes: tuple[tuple[int, int], ...]
    read_bytes: int

    @property
    def differing_bytes(self) -> int:
        return self.window.stored_blocks * BLOCK_BYTES + sum(length for _, length in self.zeroes)


@dataclass(frozen=True, slots=True)
class Differing:
    """Of a whole disk, in bytes: what was read of the target, written to it, and zeroed in it."""

    read_bytes: int
    written_bytes: int
    zeroed_bytes: int


def differences(
    disk_map: DiskMap,
    hasher: BlockHasher,
    tables: IdTables,
    held: Held,
    progress: Callable[[int], None] = lambda _: None,
    *,
    while_alike: bool = False,
) -> Generator[Difference, None, None]:
    """One for each window of the disk, in its order. A window's must be begun to be written only
    when it was yielded. ``progress`` is told, by any thread, how many more bytes of the disk were
    looked at. ``while_alike``: the target may hold something else altogether, so from the first
    window on of which it holds nothing it is read no more, and all of it is to be written.

    Raises ``DamageFound`` for a damaged map, and what ``held`` raises. A pack table that can't be
    had, or lies, costs the fetch of blocks that are there already, and nothing else.
    """
    alike = True
    with closing(_Namer(disk_map.size_bytes, hasher, held, progress)) as namer:
        for first in range(0, disk_map.leaves, WINDOW_LEAVES):
            window = load_window(disk_map, first, WINDOW_LEAVES)
            if not alike:
                every = tuple(_ranges(~window.places(), window.first_block, disk_map.size_bytes))
                progress(_length(window, disk_map.size_bytes))
                yield Difference(window, zero_ids(window.blocks), every, 0)
                continue
            ids, read_bytes = namer.ids(window.first_block, window.blocks)
            wanted = window.places()
            zeroed = ~wanted & ids.any(axis=1)
            _leave_alike(window, hasher, tables, ids, wanted)
            ids[zeroed] = 0
            due = window.places() if window.stored_blocks else np.ones_like(zeroed)
            alike = not while_alike or not (wanted | zeroed)[due].all()
            zeroes = tuple(_ranges(zeroed, window.first_block, disk_map.size_bytes))
            yield Difference(window.only(wanted), ids, zeroes, read_bytes)


def _length(window: Window, size_bytes: int) -> int:
    first = window.first_block * BLOCK_BYTES
    return min(first + window.blocks * BLOCK_BYTES, size_bytes) - first


def _leave_alike(
    window: Window, hasher: BlockHasher, tables: IdTables, ids: Ids, wanted: Flags
) -> None:
    """Take out of ``wanted``, which begins as all that is stored, what is there by ``ids``."""
    doubtful = np.zeros(window.blocks, dtype=np.bool_)
    leaves = []
    for leaf, digest in window.digests.items():
        mine = _blocks_of(leaf, window)
        if _digest(hasher, ids[mine]) == digest:
            wanted[mine] = False
        elif ids[mine][wanted[mine]].any():
            doubtful[mine] = wanted[mine]
            leaves.append((mine, digest))
    if not leaves:
        return
    there = zero_ids(window.blocks)
    packs = list(window.only(doubtful).by_pack())
    tables.ensure(blocks.name for blocks in packs)
    for blocks in packs:
        found = tables.at(blocks.name, blocks.frame * FRAME_BLOCKS + blocks.slot)
        if found is not None:
            there[blocks.place] = found
    for mine, digest in leaves:
        if _digest(hasher, there[mine]) == digest:
            wanted[mine] &= (there[mine] != ids[mine]).any(axis=1)


class _Namer:
    """A few threads that read a target and name its blocks; closing ends them."""

    def __init__(
        self, size_bytes: int, hasher: BlockHasher, held: Held, progress: Callable[[int], None]
    ) -> None:
        self._size_bytes = size_bytes
        self._hasher = hasher
        self._held = held
        self._progress = progress
        self._extents = cover(held.extents(), size_bytes)
        self._last: Extent | None = None
        self._own = threading.local()
        self._stop = threading.Event()
        self._pool = Threads(_READERS, "compare", self._make_room)

    def ids(self, first_block: int, blocks: int) -> tuple[Ids, int]:
        """The ids of so many blocks, which follow those of the last call; and how many bytes had
        to be read for them."""
        there = self._not_zero(first_block, blocks)
        ids = zero_ids(blocks)
        pieces = []
        for start, stop in _runs(there):
            for at in range(start, stop, _PIECE_BLOCKS):
                part = slice(at, min(at + _PIECE_BLOCKS, stop))
                pieces.append(self._pool.submit(self._name, first_block, part, ids))
        read_bytes = sum(piece.result() for piece in pieces)
        end = min((first_block + blocks) * BLOCK_BYTES, self._size_bytes)
        self._progress(end - first_block * BLOCK_BYTES - read_bytes)
        return ids, read_bytes

    def close(self) -> None:
        self._stop.set()
        self._pool.end()

    def _make_room(self) -> None:
        self._own.room = make_room(_PIECE_BLOCKS * BLOCK_BYTES)

    def _name(self, first_block: int, part: slice, ids: Ids) -> int:
        if self._stop.is_set():
            return 0
        room = self._own.room.data[: (part.stop - part.start) * BLOCK_BYTES]
        offset = (first_block + part.start) * BLOCK_BYTES
        length: int = min(len(room), self._size_bytes - offset)
        self._held.read_into(offset, room[:length])
        room[length:] = bytes(len(room) - length)
        ids[part] = self._hasher.ids(room)
        self._progress(length)
        return length

    def _not_zero(self, first_block: int, blocks: int) -> Flags:
        """Which blocks must be read."""
        there = np.zeros(blocks, dtype=np.bool_)
        end = (first_block + blocks) * BLOCK_BYTES
        extent = self._last
        while True:
            if extent is not None and extent.kind is not ExtentKind.ZERO:
                start = extent.offset // BLOCK_BYTES - first_block
                stop = -(-extent.end // BLOCK_BYTES) - first_block
                stop = -(-stop // _UNIT_BLOCKS) * _UNIT_BLOCKS
                there[max(start // _UNIT_BLOCKS * _UNIT_BLOCKS, 0) : max(stop, 0)] = True
            if extent is not None and extent.end >= end:
                break
            extent = next(self._extents, None)
            if extent is None:
                break
        self._last = extent
        return there


def _blocks_of(leaf: int, window: Window) -> slice:
    first = leaf * LEAF_BLOCKS - window.first_block
    return slice(first, min(first + LEAF_BLOCKS, window.blocks))


def _digest(hasher: BlockHasher, ids: Ids) -> bytes:
    return hasher.leaf_digest(ids)[:DIGEST_BYTES]


def _ranges(flags: Flags, first_block: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    for start, stop in _runs(flags):
        offset = (first_block + start) * BLOCK_BYTES
        yield offset, min((stop - start) * BLOCK_BYTES, size_bytes - offset)


def _runs(flags: Flags) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of each range of set flags."""
    framed = np.zeros(len(flags) + 2, dtype=np.bool_)
    framed[1:-1] = flags
    edges = np.flatnonzero(framed[1:] != framed[:-1]).tolist()
    return zip(edges[0::2], edges[1::2], strict=True)
