"""Whether one generation of a point shows what another does.

Readers take the one that was decided last, and whoever holds the keys can write one of any point.
So an older one goes only where the younger shows the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from drvm.core.errors import DamageFound
from drvm.repository.diskmap import DiskMap
from drvm.repository.manifest import Manifest, StoredBlob
from drvm.repository.repository import Repository


def agrees(repository: Repository, good: Manifest, old: Manifest) -> bool:
    """Whether ``good`` shows all that ``old`` does, as far as that can still be read: by the
    digests of their leaves. Reads the nodes of both disk maps, no blocks. Raises the store's
    errors, and ``DamageFound`` where ``good`` can't be read."""
    if _facts(good) != _facts(old):
        return False
    for ours, theirs in blobs(good, old):
        if ours is None or theirs is None or ours == theirs:
            if ours != theirs:
                return False
            continue
        known = repository.blob(ours)
        if _readable(repository, theirs, known) != known:
            return False
    return all(
        _same(repository.disk_map(one), repository.disk_map(other))
        for one, other in zip(good.streams, old.streams, strict=True)
    )


def _facts(manifest: Manifest) -> list[object]:
    disks = [(disk.target, disk.size_bytes, disk.format) for disk in manifest.streams]
    return [manifest.id, manifest.vm_uuid, manifest.vm, manifest.created, disks]


def blobs(good: Manifest, old: Manifest) -> Iterator[tuple[StoredBlob | None, StoredBlob | None]]:
    """Definition, NVRAM and TPM state of both, side by side."""
    yield good.definition, old.definition
    yield good.nvram, old.nvram
    for name in sorted({*good.tpm, *old.tpm}):
        yield good.tpm.get(name), old.tpm.get(name)


def _readable(repository: Repository, blob: StoredBlob, otherwise: bytes) -> bytes:
    try:
        return repository.blob(blob)
    except DamageFound:
        return otherwise


def _same(good: DiskMap, old: DiskMap) -> bool:
    for index in range(good.leaves):
        mine = good.leaf_digest(index)
        try:
            theirs = old.leaf_digest(index)
        except DamageFound:
            continue
        if mine != theirs:
            return False
    return True
