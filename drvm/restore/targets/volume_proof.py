"""What of a volume is right already: found by reading it back, and by nothing else.

A volume is filled in the order of its bytes, so what an interrupted restore has written is its
beginning. It is laid out once more without the disk's data: the tables of a qcow2 and its gaps must
be there byte for byte; what lies where data goes is taken from the volume, and named. A leaf whose
ids have the digest of the disk map is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES, BlockHasher
from drvm.core.progress import Progress
from drvm.host.storage import Hole, Piece
from drvm.repository.diskmap import DiskMap
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.window import WINDOW_LEAVES, load_window
from drvm.restore.targets.qcow2_file import gapless

Placed = Iterable[tuple[int, memoryview]]
_WRITTEN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Proven:
    """``length``: so many bytes from the start of the volume are right, and with them the first
    ``leaves`` of the disk. ``dirty``: behind this place it reads as zeroes."""

    length: int = 0
    leaves: int = 0
    dirty: int = 0


def prove(
    disk_map: DiskMap,
    hasher: BlockHasher,
    place: Callable[[Placed], Placed],
    length: int,
    back: Iterator[Piece],
    progress: Progress,
) -> Proven:
    """``place``: where in the volume, which has ``length`` bytes, what is stored of the disk goes.
    ``back``: the volume's bytes in their order, which may be fewer, and anything. Raises
    ``DamageFound`` for a damaged map."""
    return _Proof(disk_map, hasher, _Back(back)).run(place, length, progress)


def written_out(pieces: Iterable[Piece], at: int, end: int) -> Iterator[Piece]:
    """The same, from ``at`` on; holes before ``end`` as the zeroes that they stand for."""
    for piece in pieces:
        length = piece.length if isinstance(piece, Hole) else len(piece)
        zeroes = min(length, max(0, end - at)) if isinstance(piece, Hole) else 0
        for start in range(0, zeroes, _WRITTEN_BYTES):
            yield bytes(min(_WRITTEN_BYTES, zeroes - start))
        if not isinstance(piece, Hole):
            yield piece
        elif length > zeroes:
            yield Hole(length - zeroes)
        at += length


class _Proof:
    def __init__(self, disk_map: DiskMap, hasher: BlockHasher, back: _Back) -> None:
        self._map = disk_map
        self._hasher = hasher
        self._back = back
        self._room = bytearray(
            min(LEAF_BYTES, -(-disk_map.size_bytes // BLOCK_BYTES) * BLOCK_BYTES)
        )
        self._at = self._length = self._leaves = 0
        self._wrong = False

    def run(self, place: Callable[[Placed], Placed], length: int, progress: Progress) -> Proven:
        for piece in gapless(place(self._blanks()), length):
            if self._wrong or not self._is_right(piece):
                break
            count = piece.length if isinstance(piece, Hole) else len(piece)
            progress.advance(count)
            proven = self._at == self._length and not self._is_data(piece)
            self._at += count
            if proven:
                self._length = self._at
        dirty = self._length if self._length == length else self._back.end_of_data(self._length)
        return Proven(self._length, self._leaves, dirty)

    def _is_right(self, piece: Piece) -> bool:
        """Data is taken as it is, and judged by its leaf."""
        if isinstance(piece, Hole):
            return self._back.zeroes(piece.length)
        if self._is_data(piece):
            return self._back.fill(memoryview(piece))
        found = bytearray(len(piece))
        return self._back.fill(memoryview(found)) and bytes(found) == bytes(piece)

    def _is_data(self, piece: Piece) -> bool:
        return isinstance(piece, memoryview) and piece.obj is self._room

    def _blanks(self) -> Iterator[tuple[int, memoryview]]:
        """Room for what is stored, leaf by leaf. It is filled when the next is asked for."""
        room = memoryview(self._room)
        for first in range(0, self._map.leaves, WINDOW_LEAVES):
            for window in load_window(self._map, first, WINDOW_LEAVES).by_leaf():
                base, size = window.first_block * BLOCK_BYTES, window.blocks * BLOCK_BYTES
                end = min(size, self._map.size_bytes - base)
                room[:size] = bytes(size)
                for start, blocks in window.stored():
                    at = start * BLOCK_BYTES
                    yield base + at, room[at : min(at + blocks * BLOCK_BYTES, end)]
                ((leaf, digest),) = window.digests.items()
                ids = self._hasher.ids(room[:size])
                if self._hasher.leaf_digest(ids)[:DIGEST_BYTES] != digest:
                    self._wrong = True
                    return
                self._leaves, self._length = leaf + 1, self._at


class _Back:
    """The pieces of a volume as one stream of bytes."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._rest: Piece | None = None
        self._at = self._dirty = 0

    def fill(self, target: memoryview) -> bool:
        """``False`` where it ends before."""
        at = 0
        while at < len(target):
            piece = self._next(len(target) - at)
            if piece is None:
                return False
            if isinstance(piece, Hole):
                target[at : at + piece.length] = bytes(piece.length)
                at += piece.length
            else:
                target[at : at + len(piece)] = piece
                at += len(piece)
        return True

    def zeroes(self, length: int) -> bool:
        """Whether so many bytes come, and all are zeroes."""
        while length:
            piece = self._next(length)
            if piece is None or not _is_zero(piece):
                return False
            length -= piece.length if isinstance(piece, Hole) else len(piece)
        return True

    def end_of_data(self, least: int) -> int:
        """Where the last that is not zeroes ends, ``least`` at least. Reads all the rest."""
        while self._next(_WRITTEN_BYTES) is not None:
            pass
        return max(least, self._dirty)

    def _next(self, most: int) -> Piece | None:
        piece = self._rest if self._rest is not None else next(self._pieces, None)
        if piece is None:
            return None
        if isinstance(piece, Hole):
            count = min(piece.length, most)
            self._rest = Hole(piece.length - count) if piece.length > count else None
            self._at += count
            return Hole(count)
        view = memoryview(piece)
        self._rest = view[most:] if len(view) > most else None
        view = view[:most]
        self._at += len(view)
        if not _is_zero(view):
            self._dirty = self._at
        return view


def _is_zero(piece: Piece) -> bool:
    return isinstance(piece, Hole) or not np.frombuffer(piece, dtype=np.uint8).any()
