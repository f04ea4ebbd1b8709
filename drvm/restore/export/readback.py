"""Is what was written what the point stands for? Asked of the file, through QEMU's own driver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from drvm.chunker.blocks import (
    BLOCK_BYTES,
    LEAF_BLOCKS,
    LEAF_BYTES,
    BlockHasher,
    block_count,
    zero_ids,
)
from drvm.core.clock import Clock
from drvm.core.errors import RestoreError
from drvm.core.extents import Extent, ExtentKind, align
from drvm.core.process import Processes
from drvm.core.progress import Progress
from drvm.core.units import MIB
from drvm.host.images import Part
from drvm.host.nbd import NbdExport, NbdReader, nbd_extents
from drvm.repository.diskmap import DiskMap
from drvm.repository.nodes import DIGEST_BYTES

_READ_BYTES = 4 * MIB
_HINT = "is the storage there healthy? dmesg; try another place"


class ReadBack:
    """Compares images with disk maps: every block is named anew, and every leaf's digest must be
    the one in the map. Needs neither packs nor the blocks as they were written."""

    def __init__(self, hasher: BlockHasher, processes: Processes, clock: Clock) -> None:
        self._hasher = hasher
        self._processes = processes
        self._clock = clock

    def compare(
        self,
        path: Path,
        image_format: str,
        disk_map: DiskMap,
        title: str,
        progress: Progress,
        *,
        part: Part | None = None,
    ) -> None:
        """Raises ``RestoreError`` where the image is of another size or holds another byte, and
        ``HostError`` where it can't be read. With ``part`` it is a part of the file. What of that
        is only in memory is forgotten before, so that it is read from where it was written to."""
        _forget(path)
        progress.stage(f"reading {title} back", disk_map.size_bytes)
        with (
            NbdExport(self._processes, path, image_format, part=part, clock=self._clock) as export,
            closing(NbdReader(export.socket)) as reader,
        ):
            size_bytes = reader.size_bytes
            same = block_count(size_bytes) == block_count(disk_map.size_bytes)
            if not same or size_bytes < disk_map.size_bytes:
                raise RestoreError(
                    f"{title} has {size_bytes} bytes instead of {disk_map.size_bytes}", hint=_HINT
                )
            data = _data(nbd_extents(export.socket), size_bytes)
            self._compare(reader, data, disk_map, title, progress)

    def _compare(
        self,
        reader: NbdReader,
        data: Iterator[Extent],
        disk_map: DiskMap,
        title: str,
        progress: Progress,
    ) -> None:
        room = memoryview(bytearray(_READ_BYTES))
        piece = next(data, None)
        for index in range(disk_map.leaves):
            ids = zero_ids(disk_map.leaf_blocks(index))
            while piece is not None and piece.offset // LEAF_BYTES == index:
                whole = -(-piece.length // BLOCK_BYTES) * BLOCK_BYTES
                room[piece.length : whole] = bytes(whole - piece.length)
                reader.read_into(piece.offset, room[: piece.length])
                found = self._hasher.ids(room[:whole])
                at = piece.offset // BLOCK_BYTES - index * LEAF_BLOCKS
                ids[at : at + len(found)] = found
                piece = next(data, None)
            child = disk_map.leaf_child(index)
            same = (
                not ids.any()
                if child is None
                else self._hasher.leaf_digest(ids)[:DIGEST_BYTES] == child.digest
            )
            start, end = index * LEAF_BYTES, min((index + 1) * LEAF_BYTES, disk_map.size_bytes)
            progress.advance(end - start)
            if not same:
                raise RestoreError(
                    f"{title} does not read back as it was stored (bytes {start} to {end})",
                    hint=_HINT,
                )


def _data(extents: Iterator[Extent], size_bytes: int) -> Iterator[Extent]:
    """What is to be read, in whole blocks but for the end. No piece crosses a leaf's end: those
    are whole numbers of pieces."""
    for extent in align(extents, size_bytes, BLOCK_BYTES):
        if extent.kind is ExtentKind.DATA:
            yield from extent.cut(_READ_BYTES)


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
