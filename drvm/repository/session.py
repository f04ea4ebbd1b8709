"""One attempt to write a point's data. Several attempts may be needed for one point."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np

from drvm.chunker.blocks import BlockHasher, zero_ids
from drvm.repository.blobs import BlobWriter, NewBlob
from drvm.repository.crypto import Sealer
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.diskmap import DiskMap, DiskMapWriter
from drvm.repository.fingerprints import Fingerprints
from drvm.repository.index import Index
from drvm.repository.packs import BlobRef
from drvm.repository.uploads import Uploads
from drvm.repository.writer import BlockStore
from drvm.store.base import Store


@dataclass(frozen=True, slots=True)
class Written:
    """``roots``: of the disks, in the order in which they were begun; ``blobs``: in the order
    in which they were added; ``stored_bytes``: all packs of the session."""

    roots: tuple[BlobRef | None, ...]
    blobs: tuple[BlobRef, ...]
    stored_bytes: int


class Session:
    """Disks one after the other, blobs at any time, ``finish`` at the end; a context manager.

    Nothing that it uploads is part of a point until somebody commits one, so it may end anywhere;
    what was uploaded is found again by its ids. ``banned`` packs are never relied on. Without
    ``verify``, which is for measurements, what was compressed and sealed is not opened again.
    """

    def __init__(
        self,
        store: Store,
        sealer: Sealer,
        hasher: BlockHasher,
        index: Index,
        *,
        level: int,
        verify: bool = True,
        banned: frozenset[bytes] = frozenset(),
    ) -> None:
        self._hasher = hasher
        self._index = index
        self._banned = banned
        self._uploads = Uploads(store)
        self._blocks = BlockStore(sealer, index, self._uploads, level, verify=verify)
        self._blob_writer = BlobWriter(sealer, self._uploads.put)
        self._disks: list[tuple[DiskWriter, DiskMapWriter]] = []
        self._blobs: list[NewBlob] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._uploads.close()
        if error is not None:  # what did arrive is found by the next listing
            self._index.forget(self._blocks.data_packs())

    def disk(
        self, size_bytes: int, parent: DiskMap | None, fingerprints: Fingerprints | None = None
    ) -> DiskWriter:
        """Begin the next disk; the one before must be complete."""
        map_writer = DiskMapWriter(self._blob_writer, size_bytes, parent, self._banned)
        disk = DiskWriter(
            size_bytes,
            self._blocks,
            self._hasher,
            self._index,
            map_writer,
            parent,
            fingerprints or Fingerprints.none(),
            self._banned,
        )
        self._disks.append((disk, map_writer))
        return disk

    def blob(self, plain: bytes) -> int:
        """Returns its place in ``Written.blobs``."""
        self._blobs.append(self._blob_writer.add(plain))
        return len(self._blobs) - 1

    def finish(self) -> Written:
        """Everything is durably stored when this returns; the index knows all new packs."""
        self._blocks.finish_pack()
        roots = []
        for disk, map_writer in self._disks:
            disk.finish()
            disk.settle()
            roots.append(map_writer.finish())
        self._blob_writer.finish()
        self._uploads.finish()
        for name in self._blob_writer.packs():
            self._index.add(name, zero_ids(0), np.zeros(0, dtype=np.int64))
        return Written(
            tuple(self._named(root) for root in roots),
            tuple(self._blob_writer.ref(blob) for blob in self._blobs),
            self._uploads.stored_bytes,
        )

    def _named(self, root: BlobRef | NewBlob | None) -> BlobRef | None:
        return self._blob_writer.ref(root) if isinstance(root, NewBlob) else root
