"""Writing a point that exists once more: the one way of copies, of rewriting and of repair.

What differs between them is the source: ``drvm/upkeep/copy.py`` reads from another repository,
``drvm/upkeep/rewrite.py`` from the point itself. The steps are a writer's, as in
docs/FORMAT.md, "How to write a point".
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from drvm.chunker.blocks import LEAF_BYTES, leaf_count
from drvm.core.errors import PacksCondemned
from drvm.core.progress import Progress, Trace
from drvm.repository.disk_writer import DiskWriter
from drvm.repository.diskmap import DiskMap
from drvm.repository.manifest import Disk, Manifest, StoredBlob
from drvm.repository.points import ATTEMPTS, Point
from drvm.repository.repository import Repository
from drvm.repository.session import Session, Written

I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]
"""Blocks: shape (n, 4096)."""


class Blocks(Protocol):
    """Where the blocks of one disk are read from."""

    def read(self, index: int, places: I64) -> Rows:
        """The blocks of leaf ``index`` at these places in it, which ascend. Raises ``DamageFound``
        where they can't be had."""
        ...


class DiskSource(Protocol):
    """One disk of a point that is written. Belongs to one thread."""

    @property
    def parent(self) -> DiskMap | None:
        """A map in the target whose leaves may be shared."""
        ...

    def give(self, index: int, writer: DiskWriter) -> None:
        """Give the whole of leaf ``index``, which is where the writer stands."""
        ...


class Source(Protocol):
    """A point that is written. ``banned`` are the packs of the target that nothing may rely on."""

    @property
    def manifest(self) -> Manifest:
        """What the new one says but for its figures and where its data lies."""
        ...

    def disk(self, disk: Disk, banned: frozenset[bytes]) -> DiskSource: ...

    def blob(self, blob: StoredBlob, banned: frozenset[bytes]) -> bytes | None:
        """``None``: it may stay where it is."""
        ...

    def finished(self, manifest: Manifest, banned: frozenset[bytes]) -> Manifest:
        """What is to be committed, everything being stored. Raises if that must not be."""
        ...


def write_point(
    target: Repository,
    source: Source,
    *,
    banned: frozenset[bytes] = frozenset(),
    level: int,
    progress: Progress,
    trace: Trace,
) -> Point:
    """Write the source's point into ``target`` under its own id, as a new generation.

    ``target.refresh(banned)`` was called. Where packs are condemned meanwhile it is written anew
    without them, three times at most; then ``PacksCondemned``. Also raises what the source and
    the store raise. A crash leaves packs, found again by their ids, and perhaps a pending
    generation; the point is as it was before.
    """
    for attempt in range(1, ATTEMPTS + 1):
        manifest = _write(target, source, banned | target.shunned, level, progress, trace)
        trace("data-stored")
        manifest = source.finished(manifest, banned | target.shunned)
        try:
            own = target.is_own(source.manifest)  # of a copy never: it is another repository
            return target.commit(manifest, trace, own=own)
        except PacksCondemned as error:
            if attempt == ATTEMPTS:
                raise
            banned |= error.packs
            target.refresh(banned)
    raise AssertionError("unreachable")  # pragma: no cover - the last attempt returns or raises


def stretches(kinds: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of equal values."""
    edges = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(kinds)]
    return list(itertools.pairwise(edges))


def _write(
    target: Repository,
    source: Source,
    banned: frozenset[bytes],
    level: int,
    progress: Progress,
    trace: Trace,
) -> Manifest:
    manifest = source.manifest
    with target.session(level=level, banned=banned) as session:
        blobs: dict[StoredBlob, int] = {}
        for blob in manifest.blobs():
            data = source.blob(blob, banned)
            if data is not None:
                blobs[blob] = session.blob(data)
        writers = []
        for disk in manifest.streams:
            title = f"writing {disk.target} of {manifest.vm}, point {manifest.id}"
            progress.stage(title, disk.size_bytes)
            writers.append(_disk(session, disk, source.disk(disk, banned), progress))
            trace(f"written {disk.target}")
        written = session.finish()
    return _described(manifest, blobs, writers, written)


def _disk(session: Session, disk: Disk, source: DiskSource, progress: Progress) -> DiskWriter:
    writer = session.disk(disk.size_bytes, source.parent)
    for index in range(leaf_count(disk.size_bytes)):
        source.give(index, writer)
        progress.advance(min(LEAF_BYTES, disk.size_bytes - index * LEAF_BYTES))
    return writer


def _described(
    manifest: Manifest, blobs: dict[StoredBlob, int], writers: list[DiskWriter], written: Written
) -> Manifest:
    def moved(blob: StoredBlob) -> StoredBlob:
        return StoredBlob.of(written.blobs[blobs[blob]]) if blob in blobs else blob

    disks = tuple(
        replace(
            disk,
            root=StoredBlob.of(root) if root is not None else None,
            new_bytes=writer.tally.new_bytes,
            stored_bytes=writer.tally.stored_bytes,
        )
        for disk, writer, root in zip(manifest.streams, writers, written.roots, strict=True)
    )
    return replace(
        manifest.with_streams(disks),
        stored_bytes=written.stored_bytes,
        definition=moved(manifest.definition) if manifest.definition is not None else None,
        nvram=moved(manifest.nvram) if manifest.nvram is not None else None,
        tpm={name: moved(blob) for name, blob in manifest.tpm.items()},
    )
