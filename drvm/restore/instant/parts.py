"""What the steps of instant recovery work with, and what they share."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import HostError, RestoreError
from drvm.core.files import sync_directory
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.host.images import ImageTool
from drvm.host.model import Domain, Host
from drvm.host.tpm import remove_state
from drvm.repository.repository import Repository
from drvm.restore.folder import remove
from drvm.restore.instant.place import Place
from drvm.restore.instant.record import Boot, BootDisk, Boots


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
    """The machine that was booted, and no other that has its UUID: it names its images."""
    domain = parts.host.find_domain(boot.vm_uuid)
    if domain is None:
        return None
    text = domain.xml(inactive=True)
    return domain if any(disk.image in text for disk in boot.disks) else None


def remove_boot(parts: Parts, boot: Boot, repository: Repository) -> None:
    """Everything that it consists of, the record last; the caller holds its lock and has written
    down why nothing of it is needed. May be called again after a crash. Raises ``DrvmError``; then
    the record is left."""
    domain = domain_of(parts, boot)
    if domain is not None:
        domain.destroy()
        domain.undefine()
        parts.trace("remove-undefined")
    Place(boot.vm_uuid).clear(parts.clock)
    parts.trace("remove-unserved")
    for disk in boot.disks:
        remove(_partial(boot, disk))
        if _is_own(parts, boot, disk):
            remove(Path(disk.image))
            parts.trace(f"remove-image-{disk.target}")
    if boot.nvram:
        remove(Path(boot.nvram))
    if boot.tpm and parts.host.places is not None:
        remove_state(parts.host.places.tpm, boot.vm_uuid)
    forget(parts, boot, repository)


def forget(parts: Parts, boot: Boot, repository: Repository) -> None:
    """The point may go, and nothing is left to be known."""
    repository.unpin(boot.point, nonce=boot.nonce)
    parts.trace("boot-unpinned")
    parts.boots.remove(boot.name)
    parts.trace("boot-forgotten")


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
