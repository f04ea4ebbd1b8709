"""Reading a disk back: in pack order, every frame of a window once, every block verified.

The blocks of a window are put in the order of the packs. A few threads each take a pack: they
fetch what is wanted of it in large ranges, open some frames side by side into memory of their
own, name the blocks there, and give them away, wherever they belong. The ids are collected in
their places, and when a window is done each of its leaves is compared with its digest.
docs/adr/025-restore-order.md.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TypeVar

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS, LEAF_BYTES, BlockHasher, Ids, zero_ids
from drvm.chunker.frames import FRAME_BYTES
from drvm.core.errors import DamageFound
from drvm.core.threads import Threads
from drvm.core.units import MIB
from drvm.repository.differing import Difference, Differing
from drvm.repository.diskmap import DiskMap
from drvm.repository.frame_cache import FrameCache
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.pack import make_room
from drvm.repository.packs import Open, PackReader
from drvm.repository.window import I64, WINDOW_LEAVES, PackBlocks, Window, load_window, runs

_WORKERS = 4
_PACKS_AHEAD = 4
"""Beyond those that are worked on; only those have bytes in memory."""

_FRAMES_TOGETHER = 32
"""4 MiB: what is written in one piece where it lies so on the disk."""
_RANGES_NAMED = 3
_CACHE_BYTES = 32 * MIB
"""For frames that several leaves want, where a disk is read in its order."""

_T = TypeVar("_T")
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


def write_differing(
    disk_map: DiskMap,
    packs: PackReader,
    hasher: BlockHasher,
    found: Iterable[Difference],
    write: Write,
    zero: Callable[[int, int], None],
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Differing:
    """Make of a target what the disk map says, ``found`` being what ``differences`` finds there:
    as ``write_disk``, but for what is there already. ``zero`` is called by the calling thread."""
    read = written = zeroed = 0
    with closing(_Workers(packs, hasher, disk_map.size_bytes, progress)) as workers:
        for difference in found:
            workers.give(difference.window, write, difference.ids)
            for offset, length in difference.zeroes:
                zero(offset, length)
                zeroed += length
            read += difference.read_bytes
            written += difference.window.stored_blocks * BLOCK_BYTES
        workers.finish()
    return Differing(read, written, zeroed)


def read_disk(
    disk_map: DiskMap, packs: PackReader, hasher: BlockHasher, first_leaf: int = 0
) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset in bytes, bytes) for every stored part of the disk, in the disk's order; from
    a leaf on.

    What is not yielded is zeroes. A leaf is yielded when all of it is verified; the bytes are
    there until the next one is asked for. Raises as ``write_disk`` does.
    """
    buffer = memoryview(bytearray(min(LEAF_BYTES, disk_map.size_bytes)))
    cache = FrameCache(_CACHE_BYTES)
    with closing(_Workers(packs, hasher, disk_map.size_bytes, cache=cache)) as workers:
        for first in range(first_leaf, disk_map.leaves, WINDOW_LEAVES):
            for window in load_window(disk_map, first, WINDOW_LEAVES).by_leaf():
                base = window.first_block * BLOCK_BYTES
                workers.give(window, partial(_place, buffer, base))
                workers.finish()
                end = min(len(buffer), disk_map.size_bytes - base)
                for start, blocks in window.stored():
                    at = start * BLOCK_BYTES
                    yield base + at, buffer[at : min(at + blocks * BLOCK_BYTES, end)]


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
        self._own = threading.local()
        self._pool = Threads(_WORKERS, "restore", self._make_room)
        self._under_way: deque[Callable[[], None]] = deque()
        self._stop = threading.Event()

    def give(self, window: Window, write: Write, ids: Ids | None = None) -> None:
        """Begin to give every stored block of the window to ``write``. When this returns, some of
        that is still under way. Raises what went wrong in whatever was begun before. ``ids``: of
        its other blocks, where they are not zeroes; it is filled."""
        ids = zero_ids(window.blocks) if ids is None else ids
        self._progress((window.mapped_blocks - window.stored_blocks) * BLOCK_BYTES)
        for blocks in window.by_pack():
            self._await(_WORKERS + _PACKS_AHEAD)
            copied = self._pool.submit(self._copy, window, blocks, ids, write)
            self._under_way.append(copied.result)
        self._under_way.append(partial(self._compare, window, ids))

    def finish(self) -> None:
        """All that was begun is done, and right, when this returns."""
        self._await(0)

    def close(self) -> None:
        self._stop.set()
        self._pool.end()

    def _make_room(self) -> None:
        self._own.room = make_room(_FRAMES_TOGETHER * FRAME_BYTES)

    def _await(self, most: int) -> None:
        while len(self._under_way) > most:
            self._under_way.popleft()()

    def _copy(self, window: Window, blocks: PackBlocks, ids: Ids, write: Write) -> None:
        """Fetch what is wanted of one pack, and give its blocks away."""
        for numbers, opens in _located_in(window, blocks, self._groups(blocks)):
            for start in range(0, len(numbers), _FRAMES_TOGETHER):
                if self._stop.is_set():
                    return
                some = numbers[start : start + _FRAMES_TOGETHER]
                mine = blocks.of_frames(some)
                position, found = self._unpack(window, mine, some, opens)
                ids[mine.place] = found[position]
                self._write(window, mine.place, position, write)
                self._progress(len(position) * BLOCK_BYTES)

    def _groups(self, blocks: PackBlocks) -> Iterator[tuple[I64, Iterator[Open]]]:
        """As ``PackReader.sweep``; frames that were kept need no request."""
        wanted = np.unique(blocks.frame)
        if self._cache is not None:
            held = {number: self._cache.get(blocks.name, number) for number in wanted.tolist()}
            kept = {number: plain for number, plain in held.items() if plain is not None}
            for number, plain in kept.items():
                yield np.array([number]), iter([partial(_put, plain)])
            wanted = wanted[~np.isin(wanted, list(kept))]
        if len(wanted):
            yield from self._packs.sweep(blocks.name, wanted)

    def _unpack(
        self, window: Window, blocks: PackBlocks, numbers: I64, opens: Iterator[Open]
    ) -> tuple[I64, Ids]:
        """Open frames side by side in this thread's room; returns where in it each of ``blocks``
        is, and the ids of all that lies there."""
        room = self._own.room.data
        starts = [0]
        for number in numbers.tolist():
            try:
                length = next(opens)(room[starts[-1] :])
            except DamageFound as error:
                only = blocks.of_frames(np.array([number]))
                raise _located(error, window, only) from error
            starts.append(starts[-1] + length)
            if self._cache is not None:
                self._keep(blocks, number, room[starts[-2] : starts[-1]])
        start = np.array(starts) // BLOCK_BYTES
        frame = np.searchsorted(numbers, blocks.frame)
        position = start[frame] + blocks.slot
        if (position >= start[frame + 1]).any():
            raise DamageFound(
                f"a disk map names blocks beyond the end of a frame of pack {blocks.name.hex()}"
            )
        return position, self._hasher.ids(room[: starts[-1]])

    def _keep(self, blocks: PackBlocks, number: int, plain: memoryview) -> None:
        """As long as a leaf behind wants it."""
        assert self._cache is not None
        if blocks.of_frames(np.array([number])).again[0]:
            self._cache.put(blocks.name, number, bytes(plain))
        else:
            self._cache.drop(blocks.name, number)

    def _write(self, window: Window, place: I64, position: I64, write: Write) -> None:
        """Give away what lies in the room."""
        room = self._own.room.data
        base = window.first_block * BLOCK_BYTES
        for at, first, count in runs(position, place):
            offset, start = base + first * BLOCK_BYTES, at * BLOCK_BYTES
            length = min(count * BLOCK_BYTES, self._size_bytes - offset)
            write(offset, room[start : start + length])

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


def _put(plain: bytes, room: memoryview) -> int:
    room[: len(plain)] = plain
    return len(plain)


def _located_in(window: Window, blocks: PackBlocks, found: Iterator[_T]) -> Iterator[_T]:
    """The same; damage is told with what it means for the disk."""
    try:
        yield from found
    except DamageFound as error:
        raise _located(error, window, blocks) from error


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
