"""A run of hooks in a file. ::

    header (128 bytes) | names of merged runs, 16 each | names of packs, 32 each, ascending
    pages of 8 KiB: 682 keys (u64), ascending | 682 values (u32) | CRC-32 of these | 4 zeroes
    the first keys of all pages (u64) | filter: a bit for each beginning that a key may have

The header holds the SHA-256 of itself, both lists, the first keys and the filter. Pages are read
as they are needed and not mapped: what a mapping makes resident is for the kernel to say (256 KiB
for every touch were seen), what is read stays page cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drvm.chunker.kernel import KERNEL
from drvm.repository.index.hooks import (
    HOOK_BYTES,
    NAME_BYTES,
    PAGE_HOOKS,
    Keys,
    Merged,
    Names,
    Values,
    find,
)

FILE_NAME_BYTES = 16

_MAGIC = b"drvmhook"
_VERSION = 2
_HEADER = struct.Struct("<8sH?B4x16s16sQQII")
_SUM = struct.Struct("<I")
_HEADER_BYTES = 128
_DIGEST_BYTES = 32
_READ_BYTES = 1 << 20
_PAGES_AT_ONCE = 128
_FILTER_BITS = range(3, 29)
"""Of the beginnings: 8 to 16 for each hook, of which one in 8 to 16 is there by chance, and 32 MiB
at most."""
PAGE_BYTES = 8192
_KEYS_BYTES = 8 * PAGE_HOOKS
_HOOKS_BYTES = HOOK_BYTES * PAGE_HOOKS
_I64 = npt.NDArray[np.int64]


class KeyFilter:
    """Says of most keys that are not in a run that they are not, by their first bits: keys are
    hashes. ``bits``: 2^n of them, eight a byte."""

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self.bits = bits
        self._shift = np.uint64(64 - (8 * len(bits) - 1).bit_length())

    def add(self, keys: Keys) -> None:
        """They ascend."""
        byte, bit = self._places(keys)
        first = np.flatnonzero(np.diff(byte, prepend=-1))
        if len(first):
            self.bits[byte[first]] |= np.bitwise_or.reduceat(bit, first)

    def may_have(self, keys: Keys) -> _I64:
        """The places of those that are perhaps there."""
        byte, bit = self._places(keys)
        return np.flatnonzero(self.bits[byte] & bit)

    def _places(self, keys: Keys) -> tuple[_I64, npt.NDArray[np.uint8]]:
        """Which byte, and which bit of it."""
        place = (keys >> self._shift).astype(np.int64)
        return place >> 3, np.left_shift(np.uint8(1), (place & 7).astype(np.uint8))


class Pages:
    """Memory that pages are read into, for all runs of a thread: fresh memory would cost more than
    a look-up does."""

    def __init__(self) -> None:
        self.room = bytearray(PAGE_BYTES * _PAGES_AT_ONCE)
        self.views = [
            memoryview(self.room)[PAGE_BYTES * number : PAGE_BYTES * (number + 1)]
            for number in range(_PAGES_AT_ONCE)
        ]


class FileRun:
    """A run in a file; ``hold`` reads all of it into memory. Fulfils ``Run``."""

    def __init__(self, path: Path, repository_id: bytes, room: Pages) -> None:
        """Raises ``ValueError`` for what is not whole or of another repository, and
        ``OSError`` for what can't be opened."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        header = self._read(_HEADER_BYTES, 0)
        magic, version, self.dense, bits, of, self.file, self.sequence, self.count, names, old = (
            _HEADER.unpack_from(header)
        )
        if (magic, version, of) != (_MAGIC, _VERSION, repository_id) or bits not in _FILTER_BITS:
            raise ValueError("the file is of another repository, or no run at all")
        self._names_start = _HEADER_BYTES + FILE_NAME_BYTES * old
        self._pages_start = self._names_start + NAME_BYTES * names
        pages = -(-self.count // PAGE_HOOKS)
        end = self._pages_start + PAGE_BYTES * pages
        self._filter_start, self.filter_bytes = end + 8 * pages, 1 << bits - 3
        if os.fstat(self._descriptor).st_size != self._filter_start + self.filter_bytes:
            raise ValueError("the file is torn")
        fence = self._read(8 * pages, end)
        digest = hashlib.sha256(header[: _HEADER.size])
        for start in range(_HEADER_BYTES, self._pages_start, _READ_BYTES):
            digest.update(self._read(min(_READ_BYTES, self._pages_start - start), start))
        digest.update(fence)
        for start in range(0, self.filter_bytes, _READ_BYTES):
            length = min(_READ_BYTES, self.filter_bytes - start)
            digest.update(self._read(length, self._filter_start + start))
        wanted = header[_HEADER.size :][:_DIGEST_BYTES]
        if wanted != digest.digest() or name_of(path) != self.file:
            raise ValueError("the file is torn, or called as another")
        merged = self._read(FILE_NAME_BYTES * old, _HEADER_BYTES)
        self.sources = frozenset(
            merged[at : at + FILE_NAME_BYTES] for at in range(0, len(merged), FILE_NAME_BYTES)
        )
        self.fence: Keys = np.frombuffer(fence, dtype=np.uint64)
        self.dead = np.zeros(names, dtype=np.bool_)
        self._held: tuple[Keys, Values] | None = None
        self._filter: KeyFilter | None = None
        self._pages = room

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._descriptor)

    def names(self, first: int, last: int) -> Names:
        start = self._names_start + NAME_BYTES * first
        return np.frombuffer(self._read(NAME_BYTES * (last - first), start), dtype="S32")

    def name(self, number: int) -> bytes:
        return self._read(NAME_BYTES, self._names_start + NAME_BYTES * number)

    def hold(self) -> None:
        """All of it."""
        self._filter = None
        if self._held is None:
            self._held = self.pages(0, len(self.fence))

    def hold_filter(self) -> None:
        """``filter_bytes``, that spare most reads of pages that have none of what is looked for."""
        self._held = None
        if self._filter is None:
            raw = self._read(self.filter_bytes, self._filter_start)
            self._filter = KeyFilter(np.frombuffer(raw, dtype=np.uint8))

    def release(self) -> None:
        self._held = self._filter = None

    def pages(self, first: int, last: int) -> tuple[Keys, Values]:
        raw = self._read(PAGE_BYTES * (last - first), self._pages_start + PAGE_BYTES * first)
        for start in range(0, len(raw), PAGE_BYTES):
            _check(raw[start : start + PAGE_BYTES])
        keys, values = _columns(raw)
        count = min(self.count - first * PAGE_HOOKS, keys.size)
        return keys.reshape(-1)[:count], values.reshape(-1)[:count]

    def probe(self, wanted: Keys) -> tuple[_I64, Values]:
        if self._held is not None:
            return find(*self._held, wanted)
        if not self.count:  # packs that are only known: there is no page to look into
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint32)
        maybe = np.arange(len(wanted)) if self._filter is None else self._filter.may_have(wanted)
        places, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint32)]
        for start in range(0, len(maybe), _PAGES_AT_ONCE):
            here = maybe[start : start + _PAGES_AT_ONCE]
            hit, value = self._probe(wanted[here])
            places.append(here[hit])
            values.append(value)
        return np.concatenate(places), np.concatenate(values)

    def _probe(self, wanted: Keys) -> tuple[_I64, Values]:
        room = self._pages.room
        page = np.maximum(np.searchsorted(self.fence, wanted, side="right") - 1, 0)
        other = np.ones(len(page), dtype=np.bool_)
        np.not_equal(page[1:], page[:-1], out=other[1:])
        row = np.cumsum(other) - 1
        try:
            for view, which in zip(self._pages.views, page[other].tolist(), strict=False):
                offset = self._pages_start + PAGE_BYTES * which
                if os.preadv(self._descriptor, [view], offset) != PAGE_BYTES:
                    raise ValueError("the file is torn")
        except OSError as error:
            raise ValueError(f"the file can't be read: {error}") from error
        at = np.empty(len(wanted), dtype=np.int64)
        if not KERNEL.probe(room, PAGE_BYTES, PAGE_HOOKS, row.data, wanted.data, at.data):
            return at[:0], np.zeros(0, dtype=np.uint32)
        hit = np.flatnonzero(at >= 0)
        for number in set(row[hit].tolist()):
            _check(self._pages.views[number])
        words = np.frombuffer(room, dtype=np.uint32)
        return hit, words[row[hit] * (PAGE_BYTES // 4) + _KEYS_BYTES // 4 + at[hit]]

    def _read(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length:  # more than 2 GiB, or cut
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    raise ValueError("the file is torn")
                data += more
        except OSError as error:
            raise ValueError(f"the file can't be read: {error}") from error
        return data


def write_run(
    descriptor: int,
    path: Path,
    repository_id: bytes,
    merged: Merged,
    sequence: int,
    sources: Sequence[bytes],
) -> None:
    """Fill the empty file of a run that will be called ``path``, and sync it."""
    with os.fdopen(os.dup(descriptor), "wb", buffering=1 << 20) as stream:
        lists = b"".join(sources) + merged.names.tobytes()
        stream.write(bytes(_HEADER_BYTES) + lists)
        bits = min(max((8 * merged.hooks - 1).bit_length(), _FILTER_BITS[0]), _FILTER_BITS[-1])
        keys = KeyFilter(np.zeros(1 << bits - 3, dtype=np.uint8))
        count, fence = _write_pages(stream.write, merged, keys)
        stream.write(fence)
        stream.write(keys.bits.data)
    fields = (merged.dense, bits, repository_id, name_of(path), sequence, count)
    header = _HEADER.pack(_MAGIC, _VERSION, *fields, len(merged.names), len(sources))
    digest = hashlib.sha256(header + lists + fence)
    digest.update(keys.bits.data)
    os.pwrite(descriptor, header + digest.digest(), 0)
    os.fsync(descriptor)


def name_of(path: Path) -> bytes:
    """Raises ``ValueError`` for what is not called as a run."""
    name = bytes.fromhex(path.stem)
    if len(name) != FILE_NAME_BYTES:
        raise ValueError("the file is not called as a run")
    return name


def _write_pages(
    write: Callable[[bytes], object], merged: Merged, filter_: KeyFilter
) -> tuple[int, bytes]:
    """(number of hooks, first keys of all pages). All keys get into the filter."""
    count, fence = 0, bytearray()
    waiting: tuple[Keys, Values] = (np.zeros(0, np.uint64), np.zeros(0, np.uint32))
    for part in merged.parts:
        filter_.add(part[0])
        keys = np.concatenate((waiting[0], part[0]))
        values = np.concatenate((waiting[1], part[1]))
        whole = len(keys) // PAGE_HOOKS * PAGE_HOOKS
        fence += _write_columns(write, keys[:whole], values[:whole])
        waiting = keys[whole:], values[whole:]
        count += whole
    fence += _write_columns(write, *waiting)
    return count + len(waiting[0]), bytes(fence)


def _write_columns(write: Callable[[bytes], object], keys: Keys, values: Values) -> bytes:
    """Returns the first key of each page; the last page is padded."""
    pages = -(-len(keys) // PAGE_HOOKS)
    raw = np.zeros((pages, PAGE_BYTES), dtype=np.uint8)
    fill = pages * PAGE_HOOKS - len(keys)
    columns = ((keys, 0, _KEYS_BYTES), (values, _KEYS_BYTES, _HOOKS_BYTES))
    for column, start, stop in columns:
        padded = np.append(column, np.full(fill, -1).astype(column.dtype))  # no key is larger
        raw[:, start:stop] = padded.reshape(pages, PAGE_HOOKS).view(np.uint8)
    sums = np.array([zlib.crc32(page) for page in raw[:, :_HOOKS_BYTES]], dtype="<u4")
    raw[:, _HOOKS_BYTES : _HOOKS_BYTES + 4] = sums.view(np.uint8).reshape(pages, 4)
    write(raw.tobytes())
    return keys[::PAGE_HOOKS].tobytes()


def _columns(raw: bytes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """The keys and values of whole pages, a row each."""
    pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)
    keys = np.ascontiguousarray(pages[:, :_KEYS_BYTES]).view(np.uint64)
    values = np.ascontiguousarray(pages[:, _KEYS_BYTES:_HOOKS_BYTES]).view(np.uint32)
    return keys, values


def _check(page: bytes | memoryview) -> None:
    (wanted,) = _SUM.unpack_from(page, _HOOKS_BYTES)
    if zlib.crc32(memoryview(page)[:_HOOKS_BYTES]) != wanted:
        raise ValueError("a page is damaged")
