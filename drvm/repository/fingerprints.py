"""What this host last knew of a disk's blocks: a cache beside the index, believed by proof only.

A file for each disk of each machine holds the ids of its blocks, 16 bytes each, in chunks of one
leaf, as sparse as the disk. A chunk is believed only if its digest is that of the leaf in the
disk map it is held against. So nothing has to keep the file right: an attempt that was given up,
another host that wrote in between, a machine that was rolled back, another disk, a torn page and
two processes at once all end in a digest that differs. docs/adr/024-pipeline.md.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drvm.chunker.blocks import ID_BYTES, LEAF_BLOCKS, BlockHasher, Ids, ids_from_bytes, zero_ids
from drvm.chunker.runs import ZERO
from drvm.core.errors import DamageFound
from drvm.repository.diskmap import DiskMap
from drvm.repository.index import Index
from drvm.repository.nodes import DIGEST_BYTES

_I64 = npt.NDArray[np.int64]
_CHUNK_BYTES = LEAF_BLOCKS * ID_BYTES
_UNUSED = dt.timedelta(days=60)
MISSING = -3
"""Value of ``KnownLeaf.pack`` for a block whose id is not at hand. Apart from ``runs.ZERO``."""

_LEAST_FREE = 0.1
"""Nothing is written where less of the file system than this is free."""


class Fingerprints:
    """The file of one disk; a context manager. Where it can't be read or written there is nothing
    in it: no method raises ``OSError``.

    Read and written by calls, not mapped: a page that has no room on the disk, or a file that
    somebody cuts, would end the process by a signal.
    """

    def __init__(self, directory: Path | None, vm_uuid: str, target: str) -> None:
        self._descriptor: int | None = None
        self._writes = True
        if directory is None:
            return
        name = hashlib.sha256(f"{vm_uuid}/{target}".encode()).hexdigest()[:32]
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(directory / name, flags, 0o600)
            os.utime(self._descriptor)  # for ``sweep``

    @staticmethod
    def none() -> Fingerprints:
        """For a disk of which nothing is kept."""
        return Fingerprints(None, "", "")

    def __enter__(self) -> Fingerprints:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, leaf: int, blocks: int) -> Ids:
        """Whatever the file says of so many blocks of a leaf; fewer where it ends."""
        if self._descriptor is None:
            return zero_ids(0)
        try:
            data = os.pread(self._descriptor, blocks * ID_BYTES, leaf * _CHUNK_BYTES)
        except OSError:
            return zero_ids(0)
        return ids_from_bytes(data[: len(data) // ID_BYTES * ID_BYTES])

    def write(self, leaf: int, ids: Ids) -> None:
        """A crash in the middle leaves a chunk that is not believed."""
        if self._descriptor is None or not self._writes:
            return
        try:
            room = os.fstatvfs(self._descriptor)  # each time: guests may need what is left
            if room.f_bavail < room.f_blocks * _LEAST_FREE:
                return
            written = os.pwrite(self._descriptor, ids.tobytes(), leaf * _CHUNK_BYTES)
            self._writes = written == ids.nbytes
        except OSError:
            self._writes = False


def sweep(directory: Path, now: dt.datetime) -> None:
    """Remove the files of disks that were not backed up for two months: most are gone for good,
    and the others cost a look-up of each block when they come back."""
    oldest = (now - _UNUSED).timestamp()
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


@dataclass(frozen=True, slots=True)
class KnownLeaf:
    """The blocks of a leaf in a point: ``ids``, and where they are stored: ``pack`` is the
    index's number, ``ZERO``, or ``MISSING``."""

    ids: Ids
    pack: _I64
    ordinal: _I64


class KnownBlocks:
    """What a point's disk map says of a disk's blocks, ids included. Belongs to one thread."""

    def __init__(
        self, disk_map: DiskMap, index: Index, hasher: BlockHasher, fingerprints: Fingerprints
    ) -> None:
        self._map = disk_map
        self._index = index
        self._hasher = hasher
        self._fingerprints = fingerprints
        self._last: tuple[int, npt.NDArray[np.bool_]] | None = None

    def stores(self, number: int, ids: Ids) -> bool:
        """Whether the map has an address for each of these blocks of a leaf that is not zeroes, and
        for no other. Digests don't say: they are of ids. Else what a damaged or lying map calls
        zeroes would be taken over from point to point."""
        if self._last is None or self._last[0] != number:
            try:
                leaf = self._map.leaf(number)
            except DamageFound:
                return False
            if leaf is None:
                return not ids.any()
            self._last = number, leaf.pack != ZERO
        return np.array_equal(self._last[1], (ids[:, 0] | ids[:, 1]) != 0)

    def leaf(self, number: int, *, tables: bool) -> KnownLeaf | None:
        """A leaf that the map has: ids from the fingerprints if they are those of this leaf, else
        from the id tables of the packs if ``tables``. ``None`` where there are none, or the map is
        damaged. All ids together have the leaf's digest, or some are ``MISSING``."""
        try:
            child, leaf = self._map.leaf_child(number), self._map.leaf(number)
        except DamageFound:
            return None
        if child is None or leaf is None:
            return None
        self._last = number, leaf.pack != ZERO
        ids = self._fingerprints.read(number, len(leaf.pack))
        proven = len(ids) == len(leaf.pack) and self._digest(ids) == child.digest
        if not proven and not tables:
            return None
        numbers = np.array([self._index.pack_number(name) for name in leaf.packs], dtype=np.int64)
        pack = np.append(numbers, ZERO)[leaf.pack]  # ZERO is -1: the last entry
        known = KnownLeaf(ids if proven else zero_ids(len(pack)), pack, leaf.ordinal)
        if proven and not self.stores(number, ids):
            return None
        if not proven:
            self._from_tables(known)
            whole = not (known.pack == MISSING).any()
            if whole and self._digest(known.ids) != child.digest:
                return None
        return known

    def _from_tables(self, known: KnownLeaf) -> None:
        for number in np.unique(known.pack[known.pack != ZERO]).tolist():
            here = np.flatnonzero(known.pack == number)
            ids = self._index.stored_ids(number, known.ordinal[here])
            if ids is None:
                known.pack[here] = MISSING
            else:
                known.ids[here] = ids

    def _digest(self, ids: Ids) -> bytes:
        return self._hasher.leaf_digest(ids)[:DIGEST_BYTES]
