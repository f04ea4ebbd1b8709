"""Which disks of a machine are captured, and the snapshot that says so to libvirt. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from drvm.core.errors import CaptureError
from drvm.host.images import FORMATS
from drvm.snapshot.domainxml import REMOVABLE, Disk, Machine

OVERLAY_NAME = re.compile(r"(?P<base>.+)\.drvm-(?P<point_id>[0-9a-f]{16})\.overlay", re.ASCII)
"""The file name of every overlay that drvm makes: nobody makes such a name by accident."""

SCRATCH_NAME = re.compile(r".+\.drvm-(?P<point_id>[0-9a-f]{16})\.scratch", re.ASCII)
"""Of every file for what a guest overwrites during a pull backup."""

MEMORY_NAME = re.compile(r".+\.drvm-(?P<point_id>[0-9a-f]{16})\.memory", re.ASCII)
"""Of every file for a machine's memory."""

SOCKET_NAME = re.compile(r"drvm-(?P<point_id>[0-9a-f]{16})\.nbd", re.ASCII)
"""Of every socket on which a pull backup is read."""

_EXCLUDE = "leave it out by name (exclude_disks), and protect it by other means"


@dataclass(frozen=True, slots=True)
class Source:
    """One disk to capture: the image that its guest writes to at present."""

    target: str
    path: Path
    format: str
    is_block: bool


@dataclass(frozen=True, slots=True)
class Selection:
    captured: tuple[Source, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def select(machine: Machine, excluded: frozenset[str]) -> Selection:
    """Every writable disk, or ``CaptureError`` with everything that stands in the way.

    Removable and read-only media are not captured; a warning says so, unless the drive is empty.
    """
    captured: list[Source] = []
    left_out: list[str] = []
    warnings: list[str] = []
    problems = [
        f"{target} is excluded, but there is no such disk"
        for target in sorted(excluded - {disk.target for disk in machine.disks})
    ]
    for disk in machine.disks:
        if disk.target in excluded:
            left_out.append(disk.target)
        elif disk.device in REMOVABLE or (disk.readonly and disk.device == "disk"):
            left_out.append(disk.target)
            if not disk.empty:
                kind = "removable" if disk.device in REMOVABLE else "read-only"
                warnings.append(f"{disk.target} is a {kind} medium and is not captured")
        else:
            problem = _problem(disk)
            if problem is not None:
                problems.append(f"{disk.target} {problem}")
            else:
                captured.append(_source(disk))
    if not captured and not problems:
        problems.append("there is no disk left to capture")
    if problems:
        raise CaptureError(f"{machine.name}: {'; '.join(problems)}", hint=_EXCLUDE)
    return Selection(tuple(captured), tuple(left_out), tuple(warnings))


def overlay_path(source: Source, point_id: str, vm_uuid: str, overlay_dir: Path | None) -> Path:
    """Next to the base image; for a block device in ``overlay_dir``."""
    return _made(source, vm_uuid, overlay_dir, f"drvm-{point_id}.overlay")


def scratch_path(source: Source, point_id: str, vm_uuid: str, overlay_dir: Path | None) -> Path:
    """Where an overlay would be."""
    return _made(source, vm_uuid, overlay_dir, f"drvm-{point_id}.scratch")


def memory_path(source: Source, point_id: str, vm_uuid: str, overlay_dir: Path | None) -> Path:
    """Beside the overlay of one disk."""
    return _made(source, vm_uuid, overlay_dir, f"drvm-{point_id}.memory")


def _made(source: Source, vm_uuid: str, overlay_dir: Path | None, suffix: str) -> Path:
    if not source.is_block:
        return source.path.with_name(f"{source.path.name}.{suffix}")
    if overlay_dir is None:
        raise CaptureError(
            f"{source.target} is a block device, and no directory for overlays is configured",
            hint="name a directory with room for what the guest writes during a backup",
        )
    return overlay_dir / f"{vm_uuid}-{source.target}.{suffix}"


def snapshot_xml(
    machine: Machine, point_id: str, overlays: Mapping[str, Path], memory: str = ""
) -> str:
    """The request for one external snapshot: ``overlays`` by target, every other disk ``no``
    (libvirt would otherwise snapshot disks that are not named). ``memory``: the file for it."""
    root = Element("domainsnapshot")
    SubElement(root, "name").text = f"drvm-{point_id}"
    if memory:
        SubElement(root, "memory", {"snapshot": "external", "file": memory})
    disks = SubElement(root, "disks")
    for disk in machine.disks:
        if disk.target not in overlays:
            SubElement(disks, "disk", {"name": disk.target, "snapshot": "no"})
            continue
        attributes = {"name": disk.target, "snapshot": "external", "type": "file"}
        element = SubElement(disks, "disk", attributes)
        SubElement(element, "driver", {"type": "qcow2"})
        SubElement(element, "source", {"file": str(overlays[disk.target])})
    return tostring(root, encoding="unicode")


def _problem(disk: Disk) -> str | None:
    top = disk.layers[0]
    if disk.device != "disk":
        return f"is a {disk.device}, passed through to the guest"
    if top.kind not in ("file", "block"):
        return f"lies on {top.kind or 'nothing'} storage, which drvm can't read"
    if disk.special is not None:
        return f"has {disk.special} set up in libvirt, which drvm can't read"
    if disk.shareable:
        return "is shared with other machines, so one machine's snapshot would tear it"
    if disk.transient:
        return "is transient: what is written to it is thrown away"
    if top.path is None:
        return "has no image"
    if top.format not in FORMATS:
        return f"is in the format {top.format or 'unknown'} (qemu-img convert makes qcow2 of it)"
    if OVERLAY_NAME.fullmatch(top.path.name):
        return "is on an overlay of an earlier capture (drvm doctor --fix puts it back)"
    return None


def _source(disk: Disk) -> Source:
    top = disk.layers[0]
    assert top.path is not None and top.format is not None
    return Source(disk.target, top.path, top.format, top.kind == "block")
