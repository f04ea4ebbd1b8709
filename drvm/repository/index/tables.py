"""The ids of packs, by segment, from a local cache of their id tables.

A file per pack, laid out by ordinal, holes as zeroes, each segment with a keyed BLAKE3 of the
pack's name, its own number and its ids: so what is read is what the pack's authenticated table
said, whatever happened to the file since, and one segment is read without the rest. ::

    magic (8) | ordinals (u32) | 20 zeroes | tags, 16 a segment | ids, 16 an ordinal

The cache is bounded; what is not there is fetched from the store again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from drvm.chunker.blocks import ID_BYTES, Ids, ids_from_bytes, zero_ids
from drvm.core.errors import RepositoryError
from drvm.core.files import write_cached
from drvm.core.threads import Pool
from drvm.repository.index.hooks import SEGMENT_BLOCKS

_I64 = npt.NDArray[np.int64]
Fetch = Callable[[bytes], tuple[Ids, _I64] | None]

_MAGIC = b"drvmids1"
_HEADER = struct.Struct("<8sI20x")
_TAG_BYTES = 16
_SEGMENT_BYTES = SEGMENT_BLOCKS * ID_BYTES
_OPEN_FILES = 256
_SEGMENTS_KEPT = 1024
_LOOSE_BYTES = 32 * 1024 * 1024
_FETCHERS = 8


@dataclass(frozen=True, slots=True)
class CacheSize:
    tables: int
    size_bytes: int


class IdTables:
    """Safe for several threads.

    ``fetch`` gets (ids, ordinals) of a pack from the store, ``None`` for a pack without blocks,
    and raises ``RepositoryError`` for damage. Without a directory all tables stay in memory: for
    small repositories and tests. A directory that can't be written makes it slow, and no more.
    """

    def __init__(self, directory: Path | None, key: bytes, fetch: Fetch, limit_bytes: int) -> None:
        self._directory = directory
        self._key = key
        self._fetch = fetch
        self._limit_bytes = limit_bytes
        self._written_bytes = limit_bytes  # so that the first ``trim`` looks
        self._lock = threading.RLock()
        self._open: OrderedDict[bytes, _File] = OrderedDict()
        self._loose: OrderedDict[bytes, Ids] = OrderedDict()
        self._loose_bytes = 0
        self._segments: OrderedDict[tuple[bytes, int], Ids] = OrderedDict()

    def put(self, name: bytes, ids: Ids, ordinals: _I64) -> None:
        """Keep a table whose ids are known to be the pack's own."""
        rows = zero_ids(int(ordinals[-1]) + 1 if len(ordinals) else 0)
        rows[ordinals] = ids
        with self._lock:
            if self._directory is None or not self._write(self._directory, name, rows):
                self._keep(name, rows)
        self.trim()

    def segment(self, name: bytes, number: int) -> Ids | None:
        """The ids at ordinals 256 x ``number`` and after, zeroes at holes; fewer or none at the
        pack's end. ``None`` where the pack is missing or damaged, or has no blocks."""
        with self._lock:
            key = (name, number)
            if key in self._segments:
                self._segments.move_to_end(key)
                return self._segments[key]
            rows = self._read(name, number)
            if rows is not None:
                self._segments[key] = rows
                while len(self._segments) > _SEGMENTS_KEPT:
                    self._segments.popitem(last=False)
            return rows

    def at(self, name: bytes, ordinals: _I64) -> Ids | None:
        """The ids at these ordinals; ``None`` unless all are there."""
        found = zero_ids(len(ordinals))
        if len(ordinals) and int(ordinals.min()) < 0:
            return None
        segment, row = ordinals // SEGMENT_BLOCKS, ordinals % SEGMENT_BLOCKS
        for number in np.unique(segment).tolist():
            rows = self.segment(name, number)
            here = segment == number
            if rows is None or int(row[here].max()) >= len(rows):
                return None
            found[here] = rows[row[here]]
        return found if bool(found.any(axis=1).all()) else None

    def whole(self, name: bytes) -> Ids | None:
        """All ids of a pack by ordinal, zeroes at holes. ``None`` as in ``segment``."""
        with self._lock:
            parts: list[Ids] = []
            while not parts or len(parts[-1]) == SEGMENT_BLOCKS:
                rows = self._read(name, len(parts))
                if rows is None:
                    return None
                parts.append(rows)
            return np.concatenate(parts)

    def ensure(self, names: Iterable[bytes]) -> None:
        """Fetch what is not there, several at a time; what can't be had is left out."""
        with self._lock:
            missing = [name for name in names if self._there(name) is None]
        if len(missing) == 1:
            self._fetched(missing[0])
        if len(missing) > 1:
            with Pool(_FETCHERS, thread_name_prefix="tables") as pool:
                list(pool.map(self._fetched, missing))

    def has(self, name: bytes) -> bool:
        """Whether the table is there, as far as one can tell without reading it."""
        with self._lock:
            if name in self._open or name in self._loose:
                return True
            return self._directory is not None and Path(_path(self._directory, name)).is_file()

    def drop(self, names: Iterable[bytes]) -> None:
        """Of packs that are about to be deleted."""
        with self._lock:
            for name in names:
                self._open.pop(name, None)
                if self._directory is not None:
                    with contextlib.suppress(OSError):
                        Path(_path(self._directory, name)).unlink()

    def size(self) -> CacheSize:
        sizes = [size for _, size, _ in self._files()]
        return CacheSize(len(sizes), sum(sizes))

    def trim(self) -> None:
        """Bring the cache within its limit: what was used least recently goes."""
        with self._lock:
            if self._written_bytes < self._limit_bytes // 16:
                return
            self._written_bytes = 0
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for _, size, path in files:
            if excess <= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                excess -= size

    # -- inside -------------------------------------------------------------------------------
    def _read(self, name: bytes, number: int) -> Ids | None:
        for _ in range(2):
            table = self._table(name)
            if table is None:
                return None
            if not isinstance(table, _File):
                return table[number * SEGMENT_BLOCKS :][:SEGMENT_BLOCKS].copy()  # not all of it
            rows = table.read(number, self._key)
            if rows is not None:
                return rows
            self._open.pop(name, None)
            with contextlib.suppress(OSError):
                Path(table.path).unlink()  # damaged: fetched again
        return None

    def _table(self, name: bytes) -> _File | Ids | None:
        there = self._there(name)
        if there is None and self._fetched(name):
            there = self._there(name)
        return there

    def _there(self, name: bytes) -> _File | Ids | None:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if name in self._loose or self._directory is None:
            return self._loose.get(name)
        file = _File.open(name, _path(self._directory, name))
        if file is not None:
            self._open[name] = file
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def _fetched(self, name: bytes) -> bool:
        try:
            table = self._fetch(name)
        except RepositoryError:
            return False
        if table is not None:
            self.put(name, *table)
        return table is not None

    def _keep(self, name: bytes, rows: Ids) -> None:
        self._loose[name] = rows
        self._loose_bytes += rows.nbytes
        while self._directory is not None and self._loose_bytes > _LOOSE_BYTES:
            self._loose_bytes -= self._loose.popitem(last=False)[1].nbytes

    def _write(self, directory: Path, name: bytes, rows: Ids) -> bool:
        """Without a sync: a file that a power loss tears is found out by its tags."""
        path = Path(_path(directory, name))
        data = _encode(name, rows, self._key)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_cached(path, data)
        except OSError:
            return False
        self._written_bytes += len(data)
        return True

    def _files(self) -> Iterable[tuple[int, int, Path]]:
        """(last use, size, path) of all files."""
        if self._directory is None:
            return
        for path in self._directory.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path


class _File:
    """A table on disk, open for reading."""

    def __init__(self, name: bytes, path: str, descriptor: int) -> None:
        self.path = path
        self._name = name
        self._descriptor = descriptor
        self._count = 0
        self._tags = b""

    @staticmethod
    def open(name: bytes, path: str) -> _File | None:
        """``None`` for what is no whole table; it is then as good as absent."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        file = _File(name, path, descriptor)  # which closes it
        try:
            magic, file._count = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
            if magic != _MAGIC or os.fstat(descriptor).st_size != _file_bytes(file._count):
                return None
            file._tags = os.pread(descriptor, _TAG_BYTES * _segments(file._count), _HEADER.size)
            os.utime(descriptor)
        except (OSError, struct.error):
            return None
        return file

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, number: int, key: bytes) -> Ids | None:
        """A segment, empty behind the last one; ``None`` if it is not what was written."""
        if number >= _segments(self._count):
            return zero_ids(0)
        rows = min(SEGMENT_BLOCKS, self._count - number * SEGMENT_BLOCKS)
        tag = self._tags[_TAG_BYTES * number :][:_TAG_BYTES]
        at = _HEADER.size + _TAG_BYTES * _segments(self._count) + _SEGMENT_BYTES * number
        try:
            data = os.pread(self._descriptor, rows * ID_BYTES, at)
        except OSError:
            return None
        if len(data) != rows * ID_BYTES or tag != _tag(self._name, number, data, key):
            return None
        return ids_from_bytes(data)


def _path(directory: Path, name: bytes) -> str:
    text = name.hex()
    return f"{directory}/{text[:2]}/{text}"


def _segments(count: int) -> int:
    return -(-count // SEGMENT_BLOCKS)


def _file_bytes(count: int) -> int:
    return _HEADER.size + _TAG_BYTES * _segments(count) + ID_BYTES * count


def _encode(name: bytes, rows: Ids, key: bytes) -> bytes:
    data = rows.tobytes()
    starts = range(0, len(data), _SEGMENT_BYTES)
    tags = [
        _tag(name, number, data[start : start + _SEGMENT_BYTES], key)
        for number, start in enumerate(starts)
    ]
    return _HEADER.pack(_MAGIC, len(rows)) + b"".join(tags) + data


def _tag(name: bytes, number: int, data: bytes, key: bytes) -> bytes:
    return blake3(name + struct.pack("<I", number) + data, key=key).digest(length=_TAG_BYTES)
