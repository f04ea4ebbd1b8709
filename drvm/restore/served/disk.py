"""One disk of a point, read at random by several threads at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, LEAF_BLOCKS
from drvm.chunker.runs import ZERO
from drvm.core.extents import Extent, ExtentKind
from drvm.repository.manifest import Disk
from drvm.repository.random_reader import RandomReader
from drvm.repository.repository import Repository

_MOST_EXTENTS = 4096
_MOST_LEAVES = 256
"""16 GiB of a disk: the work of one question after its extents is bounded, and a client asks
again for what the answer left out."""


class ServedDisk:
    """Every byte is verified before it is given away. Raises ``DamageFound``, and what the store
    raises."""

    def __init__(self, repository: Repository, disk: Disk) -> None:
        self.size_bytes = disk.size_bytes
        self._reader = RandomReader(
            repository.disk_map(disk), repository.packs, repository.hasher, repository.tables
        )
        self._map = repository.disk_map(disk)
        self._lock = threading.Lock()

    def read_into(self, offset: int, target: memoryview) -> None:
        target[:] = self._reader.read(offset, len(target))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """DATA and ZERO ranges from ``offset`` on, in whole blocks but for the ends; neighbours
        differ. They may stop before ``length``, but say something of its beginning."""
        ranges = itertools.islice(_joined(self._states(offset, offset + length)), _MOST_EXTENTS)
        for start, end, is_data in ranges:
            yield Extent(start, end - start, ExtentKind.DATA if is_data else ExtentKind.ZERO)

    def _states(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(start, end, whether it is stored) without gaps."""
        first = offset // BLOCK_BYTES // LEAF_BLOCKS
        for index in range(first, min(first + _MOST_LEAVES, self._map.leaves)):
            base = index * LEAF_BLOCKS
            if base * BLOCK_BYTES >= end:
                return
            with self._lock:
                leaf = self._map.leaf(index)
            blocks = self._map.leaf_blocks(index)
            stored = np.zeros(blocks, np.bool_) if leaf is None else leaf.pack != ZERO
            edges = [0, *(np.flatnonzero(stored[1:] != stored[:-1]) + 1).tolist(), blocks]
            for start, stop in itertools.pairwise(edges):
                low = max(offset, (base + start) * BLOCK_BYTES)
                high = min(end, (base + stop) * BLOCK_BYTES)
                if low < high:
                    yield low, high, bool(stored[start])


def _joined(states: Iterator[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    held: tuple[int, int, bool] | None = None
    for start, end, is_data in states:
        if held is not None and held[2] == is_data:
            held = held[0], end, is_data
            continue
        if held is not None:
            yield held
        held = start, end, is_data
    if held is not None:
        yield held
