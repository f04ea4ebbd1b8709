"""What the steps of instant recovery work with, and what they share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import HostError, RestoreError, StoreRefused, UnknownVm
from drvm.core.files import sync_directory
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.host.images import ImageTool
from drvm.host.model import Domain, DomainState, Host
from drvm.host.tpm import remove_state
from drvm.repository.repository import Repository
from drvm.restore.folder import remove
from drvm.restore.instant.place import Place
from drvm.restore.instant.record import Boot, BootDisk, Boots, require_repository
from drvm.restore.machine.source import parse

_MAX_LAYERS = 32


@dataclass(frozen=True, slots=True)
class Parts:
    host: Host
    images: ImageTool
    processes: Processes
    clock: Clock
    boots: Boots
    trace: Trace = no_trace


def make_image(
    parts: Parts, boot: Boot, disk: BootDisk, size_bytes: int, options: dict[str, str]
) -> None:
    """Over the export of its name; whole when it has its name. Raises ``HostError``, and
    ``RestoreError`` where somebody else has made such a file."""
    image, partial = Path(disk.image), _partial(boot, disk)
    remove(partial)
    uri = Place(boot.vm_uuid).front.uri(disk.target)
    parts.images.create_over_export(partial, uri, size_bytes, options)
    try:
        os.link(partial, image, follow_symlinks=False)
    except FileExistsError:
        raise RestoreError(f"{image} exists: it was made in this moment") from None
    except OSError as problem:
        raise HostError(f"{image} can't be made: {problem.strerror}") from None
    finally:
        remove(partial)
    sync_directory(image.parent)


def is_over_export(parts: Parts, boot: Boot, disk: BootDisk) -> bool:
    """Whether the image takes from the server what it lacks. Raises ``HostError``."""
    found = parts.images.info(Path(disk.image), "qcow2").backing_file
    return found == Place(boot.vm_uuid).front.uri(disk.target)


def domain_of(parts: Parts, boot: Boot) -> Domain | None:
    """The machine that was booted, and no other that has its UUID: its disks are its images, or
    lie on them where somebody took snapshots. One that was not started yet is over its server."""
    domain = parts.host.find_domain(boot.vm_uuid)
    if domain is None or not _lies_on(parts, domain, {disk.image for disk in boot.disks}):
        return None
    socket = str(Place(boot.vm_uuid).front.socket)
    return domain if boot.phase != "making" or socket in domain.xml(inactive=True) else None


def as_it_ran(parts: Parts, boot: Boot) -> Boot:
    """The record of a boot that was killed before it started its guest, where somebody started that
    since (``virsh start``): its writes are as good as those of any other. Raises ``DrvmError``."""
    if boot.phase != "making":
        return boot
    domain = domain_of(parts, boot)
    if domain is not None and (
        domain.state() is not DomainState.SHUTOFF
        or domain.has_managed_save()
        or not all(parts.images.holds_nothing(Path(disk.image)) for disk in boot.disks)
    ):
        return parts.boots.write(boot.in_phase("running"))
    return boot


def remove_boot(parts: Parts, boot: Boot, repository: Repository) -> tuple[str, ...]:
    """Everything that it consists of, the record last; the caller holds its lock and has written
    down why nothing of it is needed. Returns what is left and is to be told. May be called again
    after a crash. Raises ``DrvmError``; then the record is left."""
    require_repository(boot, repository.id, repository.store.location)
    _check_unused(parts, boot)
    domain = domain_of(parts, boot)
    if domain is not None:
        domain.destroy()
        domain.undefine()
        parts.trace("remove-undefined")
    place, other = Place(boot.vm_uuid), parts.host.find_domain(boot.vm_uuid)
    if other is None or str(place.front.socket) not in other.xml():
        place.clear(parts.clock)
        parts.trace("remove-unserved")
    if boot.phase != "making" or all(_is_own(parts, boot, disk) for disk in boot.disks):
        # made after the images: before those are there, it is somebody else's
        if boot.nvram:
            remove(Path(boot.nvram))
        if boot.tpm and parts.host.places is not None:
            remove_state(parts.host.places.tpm, boot.vm_uuid)
    for disk in boot.disks:
        remove(_partial(boot, disk))
        if _is_own(parts, boot, disk):
            remove(Path(disk.image))
            parts.trace(f"remove-image-{disk.target}")
    if boot.phase == "discarding":  # what gets these names from now on is somebody else's
        boot = parts.boots.write(replace(boot, disks=(), nvram="", tpm=False))
    return forget(parts, boot, repository)


def forget(parts: Parts, boot: Boot, repository: Repository) -> tuple[str, ...]:
    """The point may go, and nothing is left to be known; but for the pin, which is told, where the
    store lets nothing be deleted with these credentials."""
    words: tuple[str, ...] = ()
    try:
        repository.unpin(boot.point, nonce=boot.nonce)
    except StoreRefused as problem:
        words = (
            f"point {boot.point} stays pinned: {problem.message}; drvm unpin {boot.point} takes "
            "the pin off, with credentials that may delete",
        )
    parts.trace("boot-unpinned")
    parts.boots.remove(boot.name)
    parts.trace("boot-forgotten")
    return words


def _check_unused(parts: Parts, boot: Boot) -> None:
    """No other machine has these images. Raises ``RestoreError``."""
    images = {d.image for d in boot.disks if _is_own(parts, boot, d)}
    for domain in parts.host.domains() if images else ():
        with contextlib.suppress(UnknownVm):
            if domain.uuid != boot.vm_uuid and _lies_on(parts, domain, images):
                raise RestoreError(
                    f"the images of {boot.name} are disks of {domain.name} too",
                    hint="give that machine disks of its own before this one is removed",
                )


def _lies_on(parts: Parts, domain: Domain, images: Collection[str]) -> bool:
    """Whether a disk of it, now or when it is started next, has one of these in its chain."""
    named = {
        path
        for inactive in (False, True)
        for source in parse(domain.xml(inactive=inactive)).iter("source")
        if (path := source.get("file")) is not None and path.startswith("/")
    }
    return any(_chain_names(parts, Path(path), images) for path in sorted(named))


def _chain_names(parts: Parts, image: Path, images: Collection[str]) -> bool:
    for _ in range(_MAX_LAYERS):
        if str(image) in images:
            return True
        try:
            below = parts.images.info(image, "qcow2").backing_file
        except HostError:  # no qcow2, so nothing of ours
            return False
        if below is None or not below.startswith("/"):
            return False
        image = Path(below)
    return False


def _is_own(parts: Parts, boot: Boot, disk: BootDisk) -> bool:
    """While a boot is being made, somebody else may have been first to make such a file."""
    if not os.path.lexists(disk.image):
        return False
    if boot.phase != "making":
        return True
    with contextlib.suppress(HostError):
        return is_over_export(parts, boot, disk)
    return False


def _partial(boot: Boot, disk: BootDisk) -> Path:
    image = Path(disk.image)
    return image.with_name(f".{image.name}.{boot.nonce}.drvm-boot")
