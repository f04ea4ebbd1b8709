"""The bytes of a qcow2 in their order, for who can write nothing but a stream; pure.

What of a disk is stored is known before its first byte is read, so every table of the image is
too: header, refcounts and L1 first, then each L2 table with the clusters that it maps behind it, in
the guest's order. QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drvm.host.storage import Hole, Piece

MIN_CLUSTER_BYTES = 64 * 1024
"""Smaller ones make tables that take more room than they save."""
_MAX_CLUSTER_BYTES = 2 * 1024 * 1024
_MAX_CLUSTERS = 1 << 28
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_BYTES = 104
_MAGIC, _VERSION = b"QFI\xfb", 3
_REFCOUNT_ORDER, _REFCOUNT_BYTES = 4, 2
_ENTRY_BYTES = 8
_EXTENDED_L2 = 1 << 4
_LAZY_REFCOUNTS = 1
_COPIED = 1 << 63
_ALL_SUBCLUSTERS = 0xFFFFFFFF

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Qcow2:
    """An image of a disk. ``allocated``: a bit for each cluster of it, as ``numpy.packbits`` makes
    them; whatever lies outside reads as zeroes."""

    size_bytes: int
    allocated: Bits
    cluster_bytes: int = MIN_CLUSTER_BYTES
    extended_l2: bool = False
    lazy_refcounts: bool = False
    _tables: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        used = [int(self._bits(index).sum()) for index in range(self._l2_tables)]
        object.__setattr__(self, "_tables", np.array(used, dtype=np.int64))

    @property
    def length(self) -> int:
        """Of the file, in bytes."""
        return self._clusters * self.cluster_bytes

    def placed(self, stored: Iterable[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        """(place in the file, bytes), ascending, of an image of ``stored``: (offset, bytes) of the
        disk, ascending, each inside clusters that are allocated."""
        yield from self._head()
        reach = self._mapped_clusters * self.cluster_bytes
        index, place = -1, np.zeros(0, dtype=np.int64)
        for offset, data in stored:
            while len(data):
                while index < offset // reach:
                    index += 1
                    place = self._place(index)
                    if self._tables[index]:
                        yield self._table_at(index), self._table(place)
                count = min(len(data), (index + 1) * reach - offset)
                first = int(place[offset % reach // self.cluster_bytes])
                assert first >= 0, "a cluster that is not allocated"
                yield first + offset % self.cluster_bytes, data[:count]
                offset, data = offset + count, data[count:]

    # -- where what lies ----------------------------------------------------------------------
    @property
    def _entry_bytes(self) -> int:
        return _ENTRY_BYTES * (2 if self.extended_l2 else 1)

    @property
    def _mapped_clusters(self) -> int:
        """By one L2 table."""
        return self.cluster_bytes // self._entry_bytes

    @property
    def _l2_tables(self) -> int:
        """Entries of the L1 table; only those that map something have a table."""
        return -(-self.size_bytes // (self.cluster_bytes * self._mapped_clusters))

    @property
    def _l1_clusters(self) -> int:
        return -(-self._l2_tables * _ENTRY_BYTES // self.cluster_bytes)

    @property
    def _body_clusters(self) -> int:
        return int(self._tables.sum() + np.count_nonzero(self._tables))

    @property
    def _refcounts(self) -> tuple[int, int]:
        """Clusters of the refcount table, and refcount blocks: they count themselves too."""
        table = blocks = 1
        while True:
            clusters = 1 + table + blocks + self._l1_clusters + self._body_clusters
            needed = -(-clusters * _REFCOUNT_BYTES // self.cluster_bytes)
            table_needed = -(-needed * _ENTRY_BYTES // self.cluster_bytes)
            if (table_needed, needed) == (table, blocks):
                return table, blocks
            table, blocks = max(table, table_needed), max(blocks, needed)

    @property
    def _body(self) -> int:
        """The cluster in which the first L2 table lies."""
        table, blocks = self._refcounts
        return 1 + table + blocks + self._l1_clusters

    @property
    def _clusters(self) -> int:
        return self._body + self._body_clusters

    def _table_at(self, index: int) -> int:
        before = self._tables[:index]
        return int(self._body + before.sum() + np.count_nonzero(before)) * self.cluster_bytes

    def _bits(self, index: int) -> npt.NDArray[np.bool_]:
        count = self._mapped_clusters // 8
        some = self.allocated[index * count : (index + 1) * count]
        return np.unpackbits(some, count=self._mapped_clusters).astype(np.bool_)

    def _place(self, index: int) -> npt.NDArray[np.int64]:
        """Where in the file each cluster lies that this L2 table maps; -1 where it has none."""
        bits = self._bits(index)
        place = self._table_at(index) + np.cumsum(bits) * self.cluster_bytes
        return np.where(bits, place, -1)

    # -- what lies there ----------------------------------------------------------------------
    def _head(self) -> Iterator[tuple[int, memoryview]]:
        table, blocks = self._refcounts
        cluster = self.cluster_bytes
        l1_at = (1 + table + blocks) * cluster
        yield 0, memoryview(self._header(l1_at, table))
        yield cluster, _big_endian((1 + table + np.arange(blocks)) * cluster)
        counted = cluster // _REFCOUNT_BYTES
        for block in range(blocks):
            count = min(counted, self._clusters - block * counted)
            ones = np.ones(max(0, count), dtype=">u2")
            yield (1 + table + block) * cluster, ones.data.cast("B")
        used = np.flatnonzero(self._tables)
        l1 = np.zeros(self._l2_tables, dtype=np.uint64)
        before = np.cumsum(self._tables) - self._tables
        tables = (self._body + before[used] + np.arange(len(used))).astype(np.uint64)
        l1[used] = tables * np.uint64(cluster) | np.uint64(_COPIED)
        yield l1_at, _big_endian(l1)

    def _header(self, l1_at: int, refcount_clusters: int) -> bytes:
        bits = self.cluster_bytes.bit_length() - 1
        l1_size = self._l2_tables
        incompatible = _EXTENDED_L2 if self.extended_l2 else 0
        compatible = _LAZY_REFCOUNTS if self.lazy_refcounts else 0
        no_backing, no_encryption, no_snapshots = (0, 0), 0, (0, 0)
        places = (self.size_bytes, no_encryption, l1_size, l1_at, self.cluster_bytes)
        return _HEADER.pack(
            *(_MAGIC, _VERSION, *no_backing, bits, *places, refcount_clusters, *no_snapshots),
            *(incompatible, compatible, 0, _REFCOUNT_ORDER, _HEADER_BYTES),
        )

    def _table(self, place: npt.NDArray[np.int64]) -> memoryview:
        mapped = place >= 0
        entries = np.where(mapped, place, 0).astype(np.uint64)
        entries[mapped] |= np.uint64(_COPIED)
        if self.extended_l2:
            bitmap = np.where(mapped, np.uint64(_ALL_SUBCLUSTERS), np.uint64(0))
            entries = np.stack([entries, bitmap], axis=1).reshape(-1)
        return _big_endian(entries)


def like(size_bytes: int, allocated: Bits, options: Mapping[str, str], cluster: int) -> Qcow2:
    """An image with those of the original's options that say how it is used later."""
    return Qcow2(
        size_bytes,
        allocated,
        cluster,
        extended_l2=options.get("extended_l2") == "on",
        lazy_refcounts=options.get("lazy_refcounts") == "on",
    )


def cluster_bytes(options: Mapping[str, str], size_bytes: int = 0) -> int:
    """The original's, within bounds; ``options`` may say anything. Of a huge disk they are larger,
    so that the bits of ``allocated`` take 32 MiB at most up to half a PiB."""
    text = options.get("cluster_size", "")
    size = int(text) if text.isdecimal() and len(text) < 10 else MIN_CLUSTER_BYTES
    wanted = max(1 << size.bit_length() - 1, MIN_CLUSTER_BYTES)
    while size_bytes > wanted * _MAX_CLUSTERS:
        wanted *= 2
    return min(wanted, _MAX_CLUSTER_BYTES)


def gapless(placed: Iterable[tuple[int, memoryview]], length: int, at: int = 0) -> Iterator[Piece]:
    """All bytes of a file of ``length`` from ``at`` on: what is placed, ascending, and holes for
    the rest."""
    for place, data in placed:
        assert at <= place <= length - len(data), "placed where something is, or behind the end"
        if place > at:
            yield Hole(place - at)
        yield data
        at = place + len(data)
    if at < length:
        yield Hole(length - at)


def _big_endian(numbers: npt.NDArray[np.int64] | npt.NDArray[np.uint64]) -> memoryview:
    return numbers.astype(">u8").data.cast("B")
