"""Writing a point again in its own repository, so that it needs certain packs no longer.

For a collector that retires packs, and for repair. docs/FORMAT.md, "Rules for a collector", 6.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from drvm.chunker.blocks import BLOCK_BYTES, zero_ids
from drvm.chunker.runs import Leaf
from drvm.core.errors import DamageFound, RepositoryError, UnknownPoint
from drvm.core.progress import NoProgress, Progress, Trace, no_trace
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.diskmap import DiskMap, relies_on, width
from drvm.repository.layout import FANOUT
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.nodes import DIGEST_BYTES
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.upkeep.anew import Blocks, stretches, write_point


def rewrite_point(
    repository: Repository,
    point: Point,
    banned: frozenset[bytes],
    *,
    level: int,
    blocks: Callable[[Disk], Blocks] | None = None,
    blob: Callable[[StoredBlob], bytes] | None = None,
    progress: Progress | None = None,
    trace: Trace = no_trace,
) -> Point:
    """Write ``point`` again as a new generation that needs none of the packs in ``banned``, of
    data or of metadata, nor any that is condemned; returns it once its final is ok.

    - The old generation is left alone. Only after this has returned may the caller end it, and no
      sooner than 20 minutes after it was made by the store's time (docs/adr/027-collection.md).
      Its packs may be deleted only by the collector's own steps, which count both generations.
    - Whatever else the point needs is shared with the old generation: subtrees, leaves, and in a
      leaf that must change every block outside of ``banned``. Only blocks in banned packs are
      read, and stored unless another pack has them.
    - Each leaf that is written again has the digest that it had, computed from what was read and
      from the packs' id tables, or ``DamageFound`` is raised; before the commit the digests of
      both generations are compared once more. So ``blocks`` need not be trusted.
    - ``blocks`` (the point's own, if not given) are asked for the blocks in banned packs, and
      ``blob`` for definition, NVRAM and TPM state there: repair reads them elsewhere. The disk
      map itself must be readable; where its metadata is damaged the point is copied back
      from its twin in another repository (``drvm/upkeep/copy.py``).
    - Raises ``UnknownPoint`` where the old generation was ended before the commit: what somebody
      removed does not come back. If that happens later, it does, whole, under the same id.
      ``PacksCondemned`` after three attempts; what the store raises; and ``RepositoryError``
      rather than a generation that still needs a banned pack.
    - The trace: ``written <target>`` for each disk, ``data-stored``, then those of ``commit``.
    - A crash anywhere leaves the old generation good, packs that are found again by their ids,
      and perhaps a pending generation. Two at once make two good generations of one point.

    One caller at a time, as for a backup; ``repository.refresh`` is called here.
    """
    repository.refresh(banned)
    source = _Rewritten(repository, point, blocks or repository.leaf_reader, blob)
    return write_point(
        repository,
        source,
        banned=banned,
        level=level,
        progress=progress or NoProgress(),
        trace=trace,
    )


class _Rewritten:
    """Fulfils ``Source``."""

    def __init__(
        self,
        repository: Repository,
        point: Point,
        blocks: Callable[[Disk], Blocks],
        blob: Callable[[StoredBlob], bytes] | None,
    ) -> None:
        self._repository = repository
        self._point = point
        self._blocks = blocks
        self._blob = blob or repository.blob
        self.manifest = point.manifest

    def disk(self, disk: Disk, banned: frozenset[bytes]) -> _RewrittenDisk:
        return _RewrittenDisk(self._repository, disk, self._blocks(disk), banned)

    def blob(self, blob: StoredBlob, banned: frozenset[bytes]) -> bytes | None:
        return self._blob(blob) if blob.ref().pack in banned else None

    def finished(self, manifest: Manifest, banned: frozenset[bytes]) -> Manifest:
        """The figures stay those of the backup."""
        if self._repository.need(manifest) & banned:
            raise RepositoryError(f"point {manifest.id} still needs packs that it must not need")
        disks = []
        for old, new in zip(self.manifest.streams, manifest.streams, strict=True):
            if not _same(self._repository.disk_map(old), self._repository.disk_map(new)):
                raise DamageFound(f"disk {old.target} of point {manifest.id} became another")
            disks.append(replace(old, root=new.root))
        if not self._repository.is_there(self._point):
            raise UnknownPoint(f"point {manifest.id} was removed meanwhile", hint="drvm points")
        manifest = manifest.with_streams(disks)
        return replace(manifest, stored_bytes=self.manifest.stored_bytes)


class _RewrittenDisk:
    """Fulfils ``DiskSource``: the disk itself is its parent."""

    def __init__(
        self, repository: Repository, disk: Disk, blocks: Blocks, banned: frozenset[bytes]
    ) -> None:
        self.parent = repository.disk_map(disk)
        self._hasher = repository.hasher
        self._own = repository.leaf_reader(disk)
        self._blocks = blocks
        self._banned = banned

    def give(self, index: int, writer: DiskWriter) -> None:
        child = self.parent.leaf_child(index)
        count = self.parent.leaf_blocks(index)
        length = min(count * BLOCK_BYTES, self.parent.size_bytes - writer.position_bytes)
        if child is None:
            writer.zero(length)
            return
        if not relies_on(child, self._banned) and writer.unchanged(length):
            return
        leaf = self.parent.leaf(index)
        assert leaf is not None
        self._give(index, leaf, child.digest, writer)

    def _give(self, index: int, leaf: Leaf, digest: bytes, writer: DiskWriter) -> None:
        banned = [number for number, name in enumerate(leaf.packs) if name in self._banned]
        lost = np.isin(leaf.pack, banned)
        lost_places, kept_places = np.flatnonzero(lost), np.flatnonzero(~lost)
        kept_ids = self._own.ids(leaf, kept_places)
        if kept_ids is None:
            raise DamageFound(f"id tables that leaf {index} of a disk needs can't be read")
        ids = zero_ids(len(leaf.pack))
        ids[kept_places] = kept_ids
        if len(lost_places):
            rows = self._blocks.read(index, lost_places).reshape(-1)
            ids[lost_places] = self._hasher.ids(rows.data)
        if self._hasher.leaf_digest(ids)[:DIGEST_BYTES] != digest:
            raise DamageFound(f"leaf {index} of a disk is not what its disk map stands for")
        at = 0
        for start, stop in stretches(lost):
            if not lost[start]:
                writer.stored(ids[start:stop], leaf, start)
                continue
            left = self.parent.size_bytes - writer.position_bytes
            length = (stop - start) * BLOCK_BYTES
            writer.data(rows[at : at + min(length, left)].data)
            at += length


def _same(one: DiskMap, other: DiskMap) -> bool:
    """Whether two maps stand for the same content, by the digests of their leaves."""
    for node in range(width(one.leaves, 1)):
        if one.child(1, node) == other.child(1, node):
            continue
        for index in range(node * FANOUT, min((node + 1) * FANOUT, one.leaves)):
            if one.leaf_digest(index) != other.leaf_digest(index):
                return False
    return one.size_bytes == other.size_bytes
