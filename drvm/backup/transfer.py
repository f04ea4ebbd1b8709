"""One frozen disk on its way into the repository: read ahead, given in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES, Buffer, Ids
from drvm.core.extents import Extent, ExtentKind, align
from drvm.core.progress import Progress
from drvm.core.units import MIB
from drvm.host.model import BlockReader
from drvm.repository.disk_writer import DiskWriter
from drvm.snapshot.capture import FrozenDisk

READ_BYTES = 4 * MIB
_READERS = 2
_READS_AHEAD = 4


@dataclass(frozen=True, slots=True)
class _Piece:
    """Up to ``READ_BYTES`` of DATA with its read under way, or a range that needs none."""

    extent: Extent
    read: Future[tuple[Buffer, Ids]] | None


def transfer(source: FrozenDisk, target: DiskWriter, progress: Progress) -> int:
    """Give the whole disk to ``target``; returns how many bytes were read from the source.

    At most 16 MiB are read ahead, so a slow store slows the reading, not the guest: that writes
    to its overlay. Errors of the source or of the store end it.
    """
    extents = list(align(source.extents(), source.size_bytes, BLOCK_BYTES))
    to_read = sum(extent.length for extent in extents if extent.kind is not ExtentKind.ZERO)
    progress.stage(f"reading {source.target}", to_read)
    read_bytes = 0
    with closing(_Readers(source, target)) as readers:
        for piece in readers.ahead(_pieces(extents)):
            extent = piece.extent
            if piece.read is not None:
                target.data(*piece.read.result())
                read_bytes += extent.length
            elif extent.kind is ExtentKind.ZERO:
                target.zero(extent.length)
                continue
            elif not target.unchanged(extent.length):
                read_bytes += _read_after_all(readers, extent, target)
            progress.advance(extent.length)
    return read_bytes


def _pieces(extents: list[Extent]) -> Iterator[Extent]:
    """DATA in pieces of one read, UNCHANGED in pieces of one leaf, ZERO as it is."""
    for extent in extents:
        if extent.kind is ExtentKind.ZERO:
            yield extent
            continue
        step = READ_BYTES if extent.kind is ExtentKind.DATA else LEAF_BYTES
        at = extent.offset
        while at < extent.end:
            end = min(extent.end, (at // step + 1) * step)
            yield Extent(at, end - at, extent.kind)
            at = end


def _read_after_all(readers: _Readers, extent: Extent, target: DiskWriter) -> int:
    """The parent's blocks can't be relied on: the range is read, whatever the hint said."""
    for at in range(extent.offset, extent.end, READ_BYTES):
        target.data(*readers.read(at, min(READ_BYTES, extent.end - at)).result())
    return extent.length


class _Readers:
    """A few threads, each with a reader of its own. What one has read it also names, while it
    is in that processor's cache."""

    def __init__(self, source: FrozenDisk, target: DiskWriter) -> None:
        self._source = source
        self._target = target
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._own = threading.local()
        self._opened: list[BlockReader] = []
        self._lock = threading.Lock()

    def ahead(self, pieces: Iterator[Extent]) -> Iterator[_Piece]:
        waiting: deque[_Piece] = deque()
        for extent in pieces:
            wanted = extent.kind is ExtentKind.DATA
            read = self.read(extent.offset, extent.length) if wanted else None
            waiting.append(_Piece(extent, read))
            if len(waiting) > _READS_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def read(self, offset: int, length: int) -> Future[tuple[Buffer, Ids]]:
        return self._pool.submit(self._read, offset, length)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for reader in self._opened:
            reader.close()

    def _read(self, offset: int, length: int) -> tuple[Buffer, Ids]:
        reader: BlockReader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._source.open()
            with self._lock:
                self._opened.append(reader)
        data = reader.read(offset, length)
        return data, self._target.ids(data)
