"""A disk of the restored machine: the guest sees it as before, the host holds it elsewhere."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

from drvm.core.errors import RestoreError
from drvm.core.ids import is_disk_target
from drvm.core.text import printable
from drvm.restore.machine.allowlist import Copier
from drvm.restore.machine.device_rules import DISK_CHILDREN, DISK_DRIVER, DISK_TARGET
from drvm.restore.machine.values import one_of

_SNAPSHOT = one_of("no internal external manual")
_MEANINGFUL_SOURCE = frozenset({"encryption", "slices", "reservations", "auth"})
_SOURCE_REASONS = {
    "encryption": "by a secret of the original host: the restored image is not encrypted by QEMU",
    "auth": "a secret of the original host: the restored image is a file, and needs none",
}


@dataclass(frozen=True, slots=True)
class DiskImage:
    """The restored image, as the target host sees it. ``path`` is absolute; ``format`` is
    ``raw`` or ``qcow2`` and never probed. ``block``: it is a block device."""

    path: str
    format: str
    block: bool = False


def check_images(images: Mapping[str, DiskImage]) -> None:
    """Raises ``RestoreError`` for a path or format that must not reach libvirt."""
    for target, image in images.items():
        if not is_disk_target(target):
            raise RestoreError(f"{printable(target, 40)!r} is not a disk name such as vda")
        if not image.path.startswith("/") or not image.path.isprintable():
            raise RestoreError(f"the image of disk {target} needs a plain absolute path")
        if image.format not in ("raw", "qcow2"):
            raise RestoreError(
                f"disk {target}: can't restore to the format {printable(image.format, 40)!r}",
                hint="use raw or qcow2",
            )


def build_disk(
    source: ET.Element, images: Mapping[str, DiskImage], used: set[str], copier: Copier
) -> ET.Element | None:
    """The disk over its restored image; an empty drive for removable media; ``None`` for a disk
    that was not restored.

    ``used`` collects the targets that were given an image. Raises ``RestoreError`` where two
    disks claim one image: both would write to it.
    """
    target = source.find("target")
    made = None if target is None else copier.element(target, DISK_TARGET, "disk target")
    if made is None:
        copier.dropped.add("a disk without a usable target name")
        return None
    name = made.get("dev", "")
    where = f"disk {name}"
    device = source.get("device", "disk")
    removable = device in ("cdrom", "floppy")
    image = images.get(name)
    if device not in ("disk", "lun", "cdrom", "floppy") or (image is None and not removable):
        copier.dropped.add(f"{where} (no image of it is restored)")
        return None
    if image is not None and name in used:
        raise RestoreError(
            f"the definition names disk {name} twice",
            hint="restore its disks to a folder with --output, or take another point",
        )
    if device == "lun":
        copier.changed.add(f"{where}: a plain disk instead of a passed-through LUN")
        device = "disk"
    kind = "block" if image is not None and image.block else "file"
    disk = ET.Element("disk", {"type": kind, "device": device})
    if _SNAPSHOT.fullmatch(snapshot := source.get("snapshot", "")):
        disk.set("snapshot", snapshot)
    _add_image(disk, source, image, where, copier)
    disk.append(made)
    copier.children(
        source, disk, DISK_CHILDREN, where, handled=frozenset({"driver", "source", "target"})
    )
    if image is not None:
        used.add(name)
    return disk


def _add_image(
    disk: ET.Element, source: ET.Element, image: DiskImage | None, where: str, copier: Copier
) -> None:
    old_source = source.find("source")
    if image is None:
        if old_source is not None and old_source.attrib:
            copier.dropped.add(f"{where}: the medium in the drive")
        return
    old_driver = source.find("driver")
    driver = copier.element(
        ET.Element("driver") if old_driver is None else old_driver, DISK_DRIVER, f"{where}/driver"
    )
    if driver is None:
        driver = ET.Element("driver")
    driver.set("name", "qemu")
    driver.set("type", image.format)
    disk.append(driver)
    disk.append(ET.Element("source", {"dev" if image.block else "file": image.path}))
    made, kind = ("block", "a device") if image.block else ("file", "a file")
    if (old := source.get("type", "file")) != made:
        copier.changed.add(f"{where}: {kind} instead of type {old!r}")
    for child in () if old_source is None else old_source:
        if child.tag in _MEANINGFUL_SOURCE:
            reason = _SOURCE_REASONS.get(child.tag, "of the original's storage")
            copier.dropped.add(f"{where}/source/{child.tag} ({reason})")
