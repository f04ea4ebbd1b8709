"""What the restore of an aged disk fetches.

``python -m bench.aged [--json FILE]``. A disk is written whole, and then one in a hundred of its
blocks, anywhere on it, on each of 90 days; each day's blocks are stored in packs of their own, as
a backup would. Only the layout is made, no data, so the figures are exact: the product's own code
plans the windows and the ranges, and the ranges are counted instead of being fetched.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES, LEAF_BLOCKS
from drvm.chunker.frames import FRAME_BLOCKS, FRAME_BYTES
from drvm.chunker.runs import Leaf
from drvm.core.units import GIB
from drvm.repository.diskmap import DiskMap
from drvm.repository.layout import PACK_MAX_BLOCKS
from drvm.repository.pack import FOOTER_BYTES, FrameTable, OpenPack
from drvm.repository.packs import PackReader
from drvm.repository.window import WINDOW_LEAVES, load_window

DAYS, PERCENT = 90, 1
PACK_BYTES = 30 * 1024 * 1024
FRAME_TABLE_BYTES = 4
"""Of each frame, compressed."""
DISKS_GIB = (4, 64)
STORED = {"incompressible": 1.0, "compressible": 0.4}


class AgedDisk:
    """Stands for a disk map: ``pack`` and ``ordinal`` of each block, ``packs`` by number, each
    with so many ``frames``."""

    def __init__(self, size_bytes: int, stored: float) -> None:
        self.size_bytes = size_bytes
        self.frame_bytes = int(FRAME_BYTES * stored)
        self.blocks = size_bytes // BLOCK_BYTES
        self.leaves = -(-self.blocks // LEAF_BLOCKS)
        self.pack = np.zeros(self.blocks, dtype=np.int64)
        self.ordinal = np.zeros(self.blocks, dtype=np.int64)
        self.packs = 0
        self.frames: list[int] = []
        everything = np.arange(self.blocks)
        self.write(everything)
        random = np.random.default_rng(0)
        for _ in range(DAYS):
            count = self.blocks * PERCENT // 100
            self.write(np.sort(random.choice(self.blocks, count, replace=False)))

    def leaf(self, index: int) -> Leaf:
        at = slice(index * LEAF_BLOCKS, (index + 1) * LEAF_BLOCKS)
        numbers, pack = np.unique(self.pack[at], return_inverse=True)
        names = tuple(int(number).to_bytes(32, "big") for number in numbers)
        return Leaf(names, pack.astype(np.int64), self.ordinal[at])

    def leaf_child(self, index: int) -> Any:
        return SimpleNamespace(digest=b"")

    def leaf_blocks(self, index: int) -> int:
        return min(LEAF_BLOCKS, self.blocks - index * LEAF_BLOCKS)

    @property
    def frames_of_pack(self) -> int:
        return min(PACK_BYTES // self.frame_bytes, PACK_MAX_BLOCKS // FRAME_BLOCKS)

    def write(self, blocks: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        pack, ordinal = np.divmod(np.arange(len(blocks)), self.frames_of_pack * FRAME_BLOCKS)
        self.pack[blocks] = self.packs + pack
        self.ordinal[blocks] = ordinal
        self.packs += int(pack[-1]) + 1
        frames = -(-len(blocks) // FRAME_BLOCKS)
        for start in range(0, frames, self.frames_of_pack):
            self.frames.append(min(self.frames_of_pack, frames - start))


class Counter(PackReader):
    """Plans as the real one does. What would be asked of the store is only counted."""

    def __init__(self, disk: AgedDisk) -> None:
        self._disk = disk
        self._packs: dict[bytes, OpenPack] = {}
        self.requests = self.fetched_bytes = 0

    def _known(self, name: bytes) -> OpenPack | None:
        return self._packs.get(name)

    def _opened(self, name: bytes, tail_bytes: int) -> tuple[OpenPack, bytes]:
        frames = self._disk.frames[int.from_bytes(name, "big")]
        length = np.full(frames, self._disk.frame_bytes, dtype=np.int64)
        plain = np.full(frames, FRAME_BYTES, dtype=np.int64)
        table = FrameTable(np.cumsum(length) - length, length, plain, length * 0)
        tables_bytes = frames * (FRAME_BLOCKS * ID_BYTES + FRAME_TABLE_BYTES)
        pack_bytes = int(length.sum()) + tables_bytes + FOOTER_BYTES
        footer = SimpleNamespace(kind="data", pack_bytes=pack_bytes)
        self._packs[name] = cast(OpenPack, SimpleNamespace(name=name, footer=footer, frames=table))
        return self._packs[name], self._count(min(tail_bytes, pack_bytes))

    def _read(self, name: bytes, offset: int, length: int) -> bytes:
        return self._count(length)

    def _count(self, length: int) -> bytes:
        self.requests += 1
        self.fetched_bytes += length
        return bytes(length)


@dataclass(frozen=True)
class Fetched:
    """``times_its_bytes``: what is fetched, tables included, over what the disk's own frames would
    take."""

    requests_per_gib: float
    times_its_bytes: float


def fetched(size_bytes: int, stored: float) -> Fetched:
    disk = AgedDisk(size_bytes, stored)
    reader = Counter(disk)
    for first in range(0, disk.leaves, WINDOW_LEAVES):
        for blocks in load_window(cast(DiskMap, disk), first, WINDOW_LEAVES).by_pack():
            for _ in reader.sweep(blocks.name, blocks.frame):
                pass
    own = size_bytes // FRAME_BYTES * disk.frame_bytes
    return Fetched(reader.requests / (size_bytes / GIB), reader.fetched_bytes / own)


def main() -> None:
    parser = argparse.ArgumentParser(description="what the restore of an aged disk fetches")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = [
        {
            "disk_gib": gib,
            "data": name,
            "requests_per_gib": round(found.requests_per_gib, 1),
            "times_its_bytes": round(found.times_its_bytes, 2),
        }
        for gib in DISKS_GIB
        for name, stored in STORED.items()
        for found in [fetched(gib * GIB, stored)]
    ]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
