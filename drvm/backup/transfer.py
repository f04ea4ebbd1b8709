"""One frozen disk on its way into the repository: read ahead, given in order."""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES, Ids
from drvm.core.extents import Extent, ExtentKind, align
from drvm.core.progress import Progress
from drvm.core.units import MIB
from drvm.host.model import BlockReader
from drvm.repository.disk_writer import DiskWriter
from drvm.snapshot.capture import FrozenDisk

LOAD_BYTES = 2 * MIB
"""What one thread reads and names at a time; as much as is looked up at a time."""
_LOAD_EXTENTS = 256
_READERS = 2
_LOADS_AHEAD = 3


def transfer(source: FrozenDisk, target: DiskWriter, progress: Progress) -> int:
    """Give the whole disk to ``target``; returns how many bytes were read from the source.

    At most 8 MiB are read ahead, so a slow store slows the reading, not the guest: that writes
    to its overlay. Errors of the source or of the store end it.
    """
    extents = _Extents(align(source.extents(), source.size_bytes, BLOCK_BYTES))
    to_read = sum(extent.length for extent in extents if extent.kind is not ExtentKind.ZERO)
    progress.stage(f"reading {source.target}", to_read)
    read_bytes = 0
    with closing(_Readers(source, target)) as readers:
        for load in readers.ahead(_loads(_pieces(extents))):
            data, ids = load.result()
            at = 0
            for extent in load.extents:
                if extent.kind is ExtentKind.ZERO:
                    target.zero(extent.length)
                    continue
                if extent.kind is ExtentKind.DATA:
                    first, end = at // BLOCK_BYTES, at + extent.length
                    target.data(data[at:end], ids[first : -(-end // BLOCK_BYTES)])
                    read_bytes += extent.length
                    at = end
                elif not target.unchanged(extent.length):
                    read_bytes += _read_after_all(readers, extent, target)
                progress.advance(extent.length)
    return read_bytes


class _Extents:
    """Extents from the first byte on, 9 bytes each: a scattered disk has millions."""

    _kinds = tuple(ExtentKind)

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._lengths = array("Q")
        self._kind_of = bytearray()
        for extent in extents:
            self._lengths.append(extent.length)
            self._kind_of.append(self._kinds.index(extent.kind))

    def __iter__(self) -> Iterator[Extent]:
        at = 0
        for length, kind in zip(self._lengths, self._kind_of, strict=True):
            yield Extent(at, length, self._kinds[kind])
            at += length


def _pieces(extents: Iterable[Extent]) -> Iterator[Extent]:
    """DATA in pieces of one load, UNCHANGED in pieces of one leaf, ZERO as it is."""
    for extent in extents:
        if extent.kind is ExtentKind.ZERO:
            yield extent
            continue
        step = LOAD_BYTES if extent.kind is ExtentKind.DATA else LEAF_BYTES
        at = extent.offset
        while at < extent.end:
            end = min(extent.end, (at // step + 1) * step)
            yield Extent(at, end - at, extent.kind)
            at = end


@dataclass(slots=True)
class _Load:
    """Extents that follow one another. The DATA among them, at most ``LOAD_BYTES`` together,
    are read side by side into ``memory``."""

    extents: list[Extent] = field(default_factory=list)
    data_bytes: int = 0
    memory: bytearray = field(default_factory=bytearray)
    ids: Future[Ids] | None = None

    def takes(self, extent: Extent) -> bool:
        data_bytes = extent.length if extent.kind is ExtentKind.DATA else 0
        return self.data_bytes + data_bytes <= LOAD_BYTES and len(self.extents) < _LOAD_EXTENTS

    def add(self, extent: Extent) -> None:
        self.extents.append(extent)
        self.data_bytes += extent.length if extent.kind is ExtentKind.DATA else 0

    def result(self) -> tuple[memoryview, Ids]:
        """The data and its blocks' ids, when they were read."""
        assert self.ids is not None
        return memoryview(self.memory)[: self.data_bytes], self.ids.result()


def _loads(pieces: Iterable[Extent]) -> Iterator[_Load]:
    load = _Load()
    for piece in pieces:
        if not load.takes(piece):
            yield load
            load = _Load()
        load.add(piece)
    yield load


def _read_after_all(readers: _Readers, extent: Extent, target: DiskWriter) -> int:
    """The parent's blocks can't be relied on: the range is read, whatever the hint said."""
    whole = Extent(extent.offset, extent.length, ExtentKind.DATA)
    for load in readers.ahead(_loads(_pieces([whole]))):
        target.data(*load.result())
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
        self._spare: list[bytearray] = []

    def ahead(self, loads: Iterable[_Load]) -> Iterator[_Load]:
        """The same loads, read. The memory of each is used again when the next is asked for."""
        waiting: deque[_Load] = deque()
        for load in loads:
            self._begin(load)
            waiting.append(load)
            if len(waiting) > _LOADS_AHEAD:
                yield waiting[0]
                self._spare.append(waiting.popleft().memory)
        while waiting:
            yield waiting[0]
            self._spare.append(waiting.popleft().memory)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for reader in self._opened:
            reader.close()

    def _begin(self, load: _Load) -> None:
        load.memory = self._spare.pop() if self._spare else bytearray(LOAD_BYTES)
        load.ids = self._pool.submit(self._read, load)

    def _read(self, load: _Load) -> Ids:
        at, whole = 0, memoryview(load.memory)
        for extent in load.extents:
            if extent.kind is ExtentKind.DATA:
                self._reader().read_into(extent.offset, whole[at : at + extent.length])
                at += extent.length
        return self._target.ids(whole[:at])

    def _reader(self) -> BlockReader:
        reader: BlockReader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._source.open()
            with self._lock:
                self._opened.append(reader)
        return reader
