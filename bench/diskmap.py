"""What the metadata of an incremental takes on a large, aged disk.

``python -m bench.diskmap [--json FILE]``. A disk of 10 TiB is written whole, and then one in a
hundred of its blocks, each anywhere on it, on each of 90 days (``bench.aged``). Leaves of such a
disk are all alike, so 256 of them are made, without data: what the product's own code writes of
them is exact, and the rest of the 163840 counts as so many times that; of the nodes above level 1
that a few dirty leaves touch, one is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.aged import DAYS, PERCENT, AgedDisk
from bench.harness import Figure, as_rows, print_table
from drvm.chunker import frames
from drvm.chunker.blocks import BLOCK_BYTES, ID_BYTES, LEAF_BYTES
from drvm.chunker.runs import Leaf
from drvm.core.units import GIB, KIB
from drvm.repository.blobs import BlobWriter, NewBlob
from drvm.repository.crypto import TAG_BYTES, MasterKeys, Sealer
from drvm.repository.diskmap import DiskMap, DiskMapWriter, levels
from drvm.repository.layout import FANOUT, pack_object
from drvm.repository.nodes import DIGEST_BYTES, Child, Node, encode_node
from drvm.repository.pack import SealedPack
from drvm.repository.packs import BlobRef, PackReader
from drvm.store.memory import MemoryStore

SAMPLE_BYTES = 8 * FANOUT * LEAF_BYTES
WHOLE_BYTES = 10 * 1024 * GIB
DIRTY_LEAVES = 100
STORED = 0.4


class Maps:
    """Disk maps of the sample, in metadata packs that are counted and can be read again."""

    def __init__(self, disk: AgedDisk) -> None:
        self._disk = disk
        self._store = MemoryStore()
        self._sealer = Sealer(MasterKeys.generate(), "00" * 16)
        self._packs = PackReader(self._store, self._sealer)
        self._map: DiskMap | None = None
        self.stored_bytes = 0

    def write(self, leaves: Iterable[int]) -> int:
        """A point in which these leaves changed; returns the bytes of its metadata packs."""
        self.stored_bytes = 0
        blobs = BlobWriter(self._sealer, self._emit)
        writer = DiskMapWriter(blobs, self._disk.size_bytes, self._map)
        changed = set(leaves)
        for index in range(self._disk.leaves):
            if index in changed:
                leaf = _named(self._disk.leaf(index))
                writer.put(index, leaf, secrets.token_bytes(DIGEST_BYTES))
            else:
                writer.keep(index)
        root = writer.finish()
        blobs.finish()
        assert root is not None
        ref = root if isinstance(root, BlobRef) else blobs.ref(root)
        self._map = DiskMap(self._packs.blob, ref, self._disk.size_bytes)
        return self.stored_bytes

    def _emit(self, pack: SealedPack) -> None:
        self._store.put(pack_object(pack.name), pack.data)
        self.stored_bytes += len(pack.data)


def _named(leaf: Leaf) -> Leaf:
    """With names that look like real ones: they don't compress."""
    return Leaf(tuple(hashlib.sha256(n).digest() for n in leaf.packs), leaf.pack, leaf.ordinal)


def _above() -> int:
    """Bytes of the higher nodes that dirty leaves, anywhere on the whole disk, touch. The rest of
    what these nodes refer to was written together, the day before."""
    leaves = WHOLE_BYTES // LEAF_BYTES
    dirty = np.random.default_rng(2).choice(leaves, DIRTY_LEAVES, replace=False)
    nodes = sum(len(np.unique(dirty // FANOUT**level)) for level in range(2, levels(leaves) + 1))
    old, new = BlobRef(secrets.token_bytes(32), 5000), BlobRef(secrets.token_bytes(32), 7)
    children = {place: Child(replace(old, number=5000 + place)) for place in range(FANOUT)}
    encoded = encode_node(Node(2, FANOUT, {**children, 0: Child(new)}), _pack_of)
    return nodes * (len(frames.encode(encoded, frames.METADATA_LEVEL)[1]) + TAG_BYTES)


def _pack_of(ref: BlobRef | NewBlob) -> bytes:
    assert isinstance(ref, BlobRef)
    return ref.pack


def figures(repeat: int = 1) -> list[Figure]:
    """Exact but for chance in what zstd makes of random names: once is enough."""
    disk = AgedDisk(SAMPLE_BYTES, STORED)
    maps = Maps(disk)
    maps.write(range(disk.leaves))
    changed = disk.blocks * PERCENT // 100
    before = disk.packs
    disk.write(np.sort(np.random.default_rng(1).choice(disk.blocks, changed, replace=False)))
    whole = maps.write(range(disk.leaves))
    tables = changed * ID_BYTES + (disk.packs - before) * (
        128 + 2 * KIB
    )  # ids, frame table, footer
    one_each = maps.write(range(0, disk.leaves, FANOUT))
    dirty = one_each / (disk.leaves / FANOUT) * DIRTY_LEAVES + _above()
    raw = changed * BLOCK_BYTES
    scale = WHOLE_BYTES / SAMPLE_BYTES
    return [
        Figure(
            f"metadata of 1 % scattered changes, 10 TiB, {DAYS} days old : changed bytes",
            100 * (whole + tables) / raw,
            4.0,
            "%",
            f"{(whole + tables) * scale / GIB:.2f} of {raw * scale / GIB:.1f} GiB; leaves and nodes"
            f" {100 * whole / raw:.2f} %, id and frame tables {100 * tables / raw:.2f} %",
        ),
        Figure(
            f"metadata of {DIRTY_LEAVES} dirty leaves of that disk",
            dirty / KIB / KIB,
            2.0,
            "MiB",
            f"{dirty / DIRTY_LEAVES / KIB:.1f} KiB for a leaf and the nodes above it",
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.diskmap", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()
    judged = figures()
    print_table(judged)
    if asked.json is not None:
        asked.json.write_text(json.dumps(as_rows(judged), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
