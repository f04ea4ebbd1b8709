"""Reading a disk back: in pack order, every frame of a window once, every block verified.

The frames of a window are put in the order of the packs and fetched in large ranges. A few
threads each take a range: they fetch it, and then open one frame after the other, name its blocks
and give them away, wherever they belong, while the frame is still in the processor's cache. The
ids are collected in their places, and when a window is done each of its leaves is compared with
its digest. docs/adr/025-restore-order.md.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, LEAF_BYTES, BlockHasher, Ids, zero_ids
from drvm.chunker.frames import FRAME_BLOCKS
from drvm.core.errors import DamageFound
from drvm.core.units import MIB
from drvm.repository.diskmap import DiskMap
from drvm.repository.frame_cache import FrameCache
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.packs import PackReader
from drvm.repository.window import WINDOW_LEAVES, PackBlocks, Window, load_window

_WORKERS = 4
_RANGES_AHEAD = 8
"""Beyond those that are worked on; only those have bytes in memory."""
_PACKS_AHEAD = 16
_RANGES_NAMED = 3
_CACHE_BYTES = 32 * MIB
"""For frames that several leaves want, where a disk is read in its order."""

Write = Callable[[int, memoryview], None]
"""Takes (offset in bytes, bytes of the disk), from several threads. The bytes are there only
during the call."""


def write_disk(
    disk_map: DiskMap,
    packs: PackReader,
    hasher: BlockHasher,
    write: Write,
    *,
    zero: Callable[[int, int], None] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Give every stored part of the disk to ``write``, in any order; returns how many bytes.

    What is not written is zeroes: ``zero``, if given, is told of all of it as (offset, length),
    by the calling thread. The last part is cut at the disk's size. ``progress`` is told by any
    thread how much more of ``mapped_bytes`` is done.

    Raises ``DamageFound`` at a frame that does not authenticate, and some time after its blocks
    were written if a leaf is not what its digest stands for: nothing of a disk may be used before
    this has returned. Also raises what ``write``, ``zero`` and the store raise. No thread of it
    is left when it ends, however it ends.
    """
    written = 0
    with closing(_Workers(packs, hasher, disk_map.size_bytes, progress)) as workers:
        for first in range(0, disk_map.leaves, WINDOW_LEAVES):
            window = load_window(disk_map, first, WINDOW_LEAVES)
            workers.give(window, write)
            if zero is not None:
                for start, blocks in window.zeroes():
                    offset = (window.first_block + start) * BLOCK_BYTES
                    zero(offset, min(blocks * BLOCK_BYTES, disk_map.size_bytes - offset))
            written += window.stored_blocks * BLOCK_BYTES
        workers.finish()
    return written


def read_disk(
    disk_map: DiskMap, packs: PackReader, hasher: BlockHasher
) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset in bytes, bytes) for every stored part of the disk, in the disk's order.

    What is not yielded is zeroes. A leaf is yielded when all of it is verified; the bytes are
    there until the next one is asked for. Raises as ``write_disk`` does.
    """
    buffer = memoryview(bytearray(min(LEAF_BYTES, disk_map.size_bytes)))
    cache = FrameCache(_CACHE_BYTES)
    with closing(_Workers(packs, hasher, disk_map.size_bytes, cache=cache)) as workers:
        for first in range(0, disk_map.leaves, WINDOW_LEAVES):
            for window in load_window(disk_map, first, WINDOW_LEAVES).by_leaf():
                base = window.first_block * BLOCK_BYTES
                workers.give(window, partial(_place, buffer, base))
                workers.finish()
                end = min(len(buffer), disk_map.size_bytes - base)
                for start, blocks in window.stored():
                    at = start * BLOCK_BYTES
                    yield base + at, buffer[at : min(at + blocks * BLOCK_BYTES, end)]


@dataclass(frozen=True, slots=True)
class _Range:
    """Blocks that are taken together: of frames that were ``kept``, in their order, or of those
    that one request brings."""

    blocks: PackBlocks
    kept: tuple[bytes, ...] | None


class _Workers:
    """A few threads that read windows of one disk; closing ends them."""

    def __init__(
        self,
        packs: PackReader,
        hasher: BlockHasher,
        size_bytes: int,
        progress: Callable[[int], None] = lambda _: None,
        cache: FrameCache | None = None,
    ) -> None:
        self._cache = cache
        self._packs = packs
        self._hasher = hasher
        self._size_bytes = size_bytes
        self._progress = progress
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="restore")
        self._under_way: deque[Callable[[], None]] = deque()
        self._stop = threading.Event()

    def give(self, window: Window, write: Write) -> None:
        """Begin to give every stored block of the window to ``write``. When this returns, some of
        that is still under way. Raises what went wrong in whatever was begun before."""
        ids = zero_ids(window.blocks)
        self._progress((window.mapped_blocks - window.stored_blocks) * BLOCK_BYTES)
        for wanted in self._ranges(window):
            self._await(_WORKERS + _RANGES_AHEAD)
            copied = self._pool.submit(self._copy, window, wanted, ids, write)
            self._under_way.append(copied.result)
        self._under_way.append(partial(self._compare, window, ids))

    def finish(self) -> None:
        """All that was begun is done, and right, when this returns."""
        self._await(0)

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _await(self, most: int) -> None:
        while len(self._under_way) > most:
            self._under_way.popleft()()

    def _ranges(self, window: Window) -> Iterator[_Range]:
        """What is fetched by one request each. The packs' tables are fetched some packs ahead."""
        opening: deque[tuple[PackBlocks, Future[list[_Range]]]] = deque()
        for blocks in window.by_pack():
            opening.append((blocks, self._pool.submit(self._divided, blocks)))
            if len(opening) > _PACKS_AHEAD:
                yield from self._opened(window, *opening.popleft())
        while opening:
            yield from self._opened(window, *opening.popleft())

    def _divided(self, blocks: PackBlocks) -> list[_Range]:
        """Frames that were kept need no request."""
        plain_bytes = self._packs.open(blocks.name).frames.plain_bytes
        groups = self._packs.ranges(blocks.name, blocks.frame)
        if (blocks.slot * BLOCK_BYTES >= plain_bytes[blocks.frame]).any():
            raise DamageFound(
                f"a disk map names blocks beyond the end of a frame of pack {blocks.name.hex()}"
            )
        ranges: list[_Range] = []
        if self._cache is not None:
            held = {n: self._cache.get(blocks.name, n) for n in np.unique(blocks.frame).tolist()}
            kept = {number: plain for number, plain in held.items() if plain is not None}
            if kept:
                here = np.isin(blocks.frame, list(kept))
                ranges.append(_Range(blocks.part(here), tuple(kept.values())))
                blocks = blocks.part(~here)
                groups = self._packs.ranges(blocks.name, blocks.frame)
        ends = np.searchsorted(blocks.frame, [group[-1] for group in groups], side="right")
        for start, stop in pairwise((0, *ends.tolist())):
            ranges.append(_Range(blocks.part(slice(start, stop)), None))
        return ranges

    def _opened(
        self, window: Window, blocks: PackBlocks, divided: Future[list[_Range]]
    ) -> list[_Range]:
        try:
            return divided.result()
        except DamageFound as error:
            raise _located(error, window, blocks) from error

    def _copy(self, window: Window, wanted: _Range, ids: Ids, write: Write) -> None:
        """Fetch one range and give its blocks away."""
        blocks = wanted.blocks
        numbers, first, index = np.unique(blocks.frame, return_index=True, return_inverse=True)
        again = blocks.again[first]
        found = zero_ids(len(numbers) * FRAME_BLOCKS)
        frames = iter(wanted.kept or self._packs.frames(blocks.name, numbers))
        base = window.first_block * BLOCK_BYTES
        for at, (number, runs) in enumerate(groupby(blocks.runs(), itemgetter(0))):
            if self._stop.is_set():
                return
            try:
                plain = next(frames)
            except DamageFound as error:
                raise _located(error, window, blocks.of_frame(number)) from error
            frame_ids = self._hasher.ids(plain)
            found[at * FRAME_BLOCKS : at * FRAME_BLOCKS + len(frame_ids)] = frame_ids
            view = memoryview(plain)
            for _, slot, place, count in runs:
                offset, start = base + place * BLOCK_BYTES, slot * BLOCK_BYTES
                length = min(count * BLOCK_BYTES, self._size_bytes - offset)
                write(offset, view[start : start + length])
            if self._cache is not None:
                if again[at]:
                    self._cache.put(blocks.name, number, plain)
                else:
                    self._cache.drop(blocks.name, number)
        ids[blocks.place] = found[index * FRAME_BLOCKS + blocks.slot]
        self._progress(len(index) * BLOCK_BYTES)

    def _compare(self, window: Window, ids: Ids) -> None:
        for leaf, digest in window.digests.items():
            at = leaf * LEAF_BLOCKS - window.first_block
            found = self._hasher.leaf_digest(ids[at : at + LEAF_BLOCKS])[:DIGEST_BYTES]
            if found != digest:
                start = leaf * LEAF_BYTES
                end = min(start + LEAF_BYTES, self._size_bytes)
                raise DamageFound(
                    f"leaf {leaf} of a disk is not what its disk map stands for "
                    f"(bytes {start} to {end} of the disk)"
                )


def _place(buffer: memoryview, base: int, offset: int, data: memoryview) -> None:
    buffer[offset - base : offset - base + len(data)] = data


def _located(error: DamageFound, window: Window, blocks: PackBlocks) -> DamageFound:
    """The same, with what it means for the disk."""
    place = np.unique(blocks.place) + window.first_block
    breaks = np.flatnonzero(np.diff(place) != 1)
    first, last = place[np.append(0, breaks + 1)], place[np.append(breaks, -1)]
    named = [
        f"{start * BLOCK_BYTES} to {(end + 1) * BLOCK_BYTES}"
        for start, end in zip(first.tolist(), last.tolist(), strict=True)
    ]
    more = f" and {len(named) - _RANGES_NAMED} more ranges" if len(named) > _RANGES_NAMED else ""
    where = ", ".join(named[:_RANGES_NAMED])
    return DamageFound(f"{error.message} (bytes {where}{more} of the disk)", hint=error.hint)
