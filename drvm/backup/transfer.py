"""One frozen disk on its way into the repository: whoever reads a part of it also stores it."""

from __future__ import annotations

import os
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BYTES
from drvm.core.extents import Extent, ExtentKind, align
from drvm.core.progress import Progress
from drvm.core.threads import Threads
from drvm.core.units import MIB
from drvm.host.disks import BlockReader
from drvm.repository.disk_writer import DiskWriter, Place
from drvm.snapshot.capture import FrozenDisk

LOAD_BYTES = 4 * MIB
"""What one thread reads at a time, and names, looks up, compresses and seals while it has it."""
_LOAD_EXTENTS = 256
_WORKERS = min(6, max(2, os.cpu_count() or 2))
_LOADS_AHEAD = 64
"""Loads that wait behind one that is read, and hold nothing to read."""


def transfer(source: FrozenDisk, target: DiskWriter, progress: Progress) -> int:
    """Give the whole disk to ``target``; returns how many bytes were read from the source.

    So many loads as there are processors are under way, so a slow store slows the reading, not
    the guest: that writes to its overlay. Errors of the source or of the store end it.
    """
    extents = _Extents(align(source.extents(), source.size_bytes, BLOCK_BYTES))
    to_read = sum(extent.length for extent in extents if extent.kind is not ExtentKind.ZERO)
    progress.stage(f"reading {source.target}", to_read)
    read_bytes = 0
    with closing(_Workers(source, target)) as workers:
        for load in workers.stored(_loads(_pieces(extents))):
            read_bytes += load.data_bytes
            for extent in load.extents:
                if extent.kind is ExtentKind.ZERO:
                    target.zero(extent.length)
                    continue
                if extent.kind is ExtentKind.DATA:
                    target.placed(extent.length)
                elif not target.unchanged(extent.length):
                    read_bytes += _read_after_all(workers, extent, target)
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
    """All inside one leaf; DATA in pieces of one load."""
    for extent in extents:
        for piece in extent.cut(LEAF_BYTES):
            if piece.kind is ExtentKind.DATA:
                yield from piece.cut(LOAD_BYTES)
            else:
                yield piece


@dataclass(slots=True)
class _Load:
    """Extents of one leaf that follow one another. The DATA among them, at most ``LOAD_BYTES``
    together, are read side by side."""

    extents: list[Extent] = field(default_factory=list)
    data_bytes: int = 0
    done: Future[None] | None = None

    def takes(self, extent: Extent) -> bool:
        if not self.extents:
            return True
        leaf = self.extents[0].offset // LEAF_BYTES
        data_bytes = extent.length if extent.kind is ExtentKind.DATA else 0
        return (
            self.data_bytes + data_bytes <= LOAD_BYTES
            and len(self.extents) < _LOAD_EXTENTS
            and extent.offset // LEAF_BYTES == leaf
        )

    def add(self, extent: Extent) -> None:
        self.extents.append(extent)
        self.data_bytes += extent.length if extent.kind is ExtentKind.DATA else 0

    def data(self) -> list[Extent]:
        return [extent for extent in self.extents if extent.kind is ExtentKind.DATA]


def _loads(pieces: Iterable[Extent]) -> Iterator[_Load]:
    load = _Load()
    for piece in pieces:
        if not load.takes(piece):
            yield load
            load = _Load()
        load.add(piece)
    yield load


def _read_after_all(workers: _Workers, extent: Extent, target: DiskWriter) -> int:
    """The parent's blocks can't be relied on: the range is read, whatever the hint said."""
    whole = Extent(extent.offset, extent.length, ExtentKind.DATA)
    for load in workers.stored(_loads(_pieces([whole]))):
        target.placed(load.data_bytes)
    return extent.length


class _Workers:
    """A few threads, each with a reader and memory of its own."""

    def __init__(self, source: FrozenDisk, target: DiskWriter) -> None:
        self._source = source
        self._target = target
        self._pool = Threads(_WORKERS, "store")
        self._own = threading.local()
        self._opened: list[BlockReader] = []
        self._lock = threading.Lock()

    def stored(self, loads: Iterable[_Load]) -> Iterator[_Load]:
        """The same loads in their order, when their data is stored."""
        waiting: deque[_Load] = deque()
        busy = 0
        for load in loads:
            if load.data_bytes:
                place = self._target.place(load.data())
                load.done = self._pool.submit(self._store, load, place)
                busy += 1
            waiting.append(load)
            while waiting and (
                waiting[0].done is None or busy > _WORKERS or len(waiting) > _LOADS_AHEAD
            ):
                first = waiting.popleft()
                if first.done is not None:
                    first.done.result()
                    busy -= 1
                yield first
        for load in waiting:
            if load.done is not None:
                load.done.result()
            yield load

    def close(self) -> None:
        self._pool.end()
        for reader in self._opened:
            reader.close()

    def _store(self, load: _Load, place: Place) -> None:
        at, memory = 0, self._memory()
        for extent in load.data():
            self._reader().read_into(extent.offset, memory[at : at + extent.length])
            at += extent.length
        end = -(-at // BLOCK_BYTES) * BLOCK_BYTES  # only a disk's end is no whole block
        memory[at:end] = bytes(end - at)
        place.fill(memory[:end])

    def _memory(self) -> memoryview:
        memory: memoryview | None = getattr(self._own, "memory", None)
        if memory is None:
            memory = self._own.memory = memoryview(bytearray(LOAD_BYTES))
        return memory

    def _reader(self) -> BlockReader:
        reader: BlockReader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._source.open()
            with self._lock:
                self._opened.append(reader)
        return reader
