"""Where the disks of a restore go: files of this machine, or volumes made through libvirt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from drvm.host.model import Host, Pool
from drvm.repository.manifest import Disk, Manifest
from drvm.restore.machine.disks import DiskImage
from drvm.restore.targets.images import PlannedImage
from drvm.restore.targets.volume_lease import volume_name

FILE_POOLS = frozenset({"dir", "fs", "netfs"})
"""Pools whose volumes are files: where an image can be made in the format we choose."""

BLOCK_POOLS = frozenset({"logical"})
"""Pools whose volumes are block devices that libvirt makes: they hold raw disks."""

VOLUME_POOLS = FILE_POOLS | BLOCK_POOLS


def by_volumes(host: Host, pool: Pool | None) -> bool:
    """Whether images there are made through libvirt alone, and not as files of this machine."""
    return host.remote or (pool is not None and pool.kind in BLOCK_POOLS)


def planned_volume(
    disk: Disk, pool: Pool, vm: str, token: str, manifest: Manifest, image_format: str | None
) -> PlannedImage:
    kind = image_format or disk.format
    path = Path(pool.path) / volume_name(vm, disk.target, token, kind)
    return PlannedImage(disk, path, kind, (manifest.vm_uuid, manifest.id), pool.name, pool.kind)


def what_is_restored(
    host: Host, name: str, manifest: Manifest, pool: str, disks: Iterable[tuple[Disk, str, str]]
) -> str:
    """The same for restores of the same to the same place. ``pool``: for what is no disk;
    ``disks``: each with its pool and format."""
    each = [(d.target, d.size_bytes, sorted(d.image_options.items()), *to) for d, *to in disks]
    text = repr((host.uri, name, manifest.vm_uuid, manifest.id, pool, each))
    return hashlib.sha256(text.encode()).hexdigest()


def with_what_they_hold(images: Iterable[PlannedImage], host: Host) -> tuple[PlannedImage, ...]:
    """Volumes that an interrupted restore may have left: they take their room already."""
    found = []
    for image in images:
        pool, name = image.pool, image.path.name
        volume = host.storage.volume(pool, name) if pool is not None else None
        held_bytes = volume.allocated_bytes if volume is not None else 0
        found.append(replace(image, held_bytes=held_bytes))
    return tuple(found)


def disk_image(image: PlannedImage) -> DiskImage:
    """As the restored definition names it."""
    return DiskImage(str(image.path), image.format, image.device or image.pool_kind in BLOCK_POOLS)


def placing_problems(images: Iterable[PlannedImage], nvram: Pool | None) -> Iterator[str]:
    """What the kinds of the pools stand in the way of. ``nvram``: where the UEFI variables go."""
    for image in images:
        if image.pool_kind in BLOCK_POOLS and image.format != "raw":
            yield (
                f"pool {image.pool!r} holds block devices, and disk {image.disk.target} would be "
                f"{image.format} there: use --format raw"
            )
    if nvram is not None and nvram.kind in BLOCK_POOLS:
        yield (
            f"pool {nvram.name!r} holds block devices, and the machine's UEFI variables need a "
            "file: use --pool NAME with a directory, and --map-pool OLD=NAME for the disks"
        )
