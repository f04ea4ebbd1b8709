"""What an export will make, as a value."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drvm.core.errors import PreflightFailed, UsageError
from drvm.core.ids import is_vm_name
from drvm.core.text import printable
from drvm.core.units import TIB, format_bytes
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.repository.window import stored_bytes
from drvm.restore.export import ovf
from drvm.restore.export.machine import ExportedMachine, exported_machine
from drvm.restore.plan import chosen_disks, read_definition
from drvm.restore.targets.images import PlannedImage

ImageFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx"]
ExportFormat = Literal[ImageFormat, "ova"]
FORMATS: tuple[ExportFormat, ...] = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "ova")

_LARGEST_BYTES: dict[ImageFormat, int] = {"vmdk": 62 * TIB, "vhdx": 64 * TIB}
"""VMware's and Hyper-V's own limits; QEMU would write larger ones."""


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    """``image`` is what is restored: in the format itself, or, for VMDK, raw and without ever
    getting its name ``path``."""

    image: PlannedImage
    path: Path
    format: ImageFormat


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """``name``: what the files are called after. ``need_bytes``: what they may take at most while
    they are made; ``free_bytes``: what there is. ``machine`` is what is described beside the
    disks, ``None`` for formats that are not of another hypervisor, and for points without a VM.
    ``in_archive``: all but the README goes into one OVA."""

    manifest: Manifest
    name: str
    directory: Path
    disks: tuple[ExportedDisk, ...]
    machine: ExportedMachine | None
    in_archive: bool
    need_bytes: int
    free_bytes: int

    @property
    def ova(self) -> Path:
        return self.directory / f"{self.name}.ova"

    @property
    def ovf(self) -> Path:
        return self.directory / f"{self.name}.ovf"

    @property
    def digests(self) -> Path:
        return self.directory / f"{self.name}.mf"

    @property
    def readme(self) -> Path:
        return self.directory / f"{self.name}-README.txt"

    @property
    def files(self) -> tuple[Path, ...]:
        """That have names in the end, in the order in which they get them."""
        if self.in_archive:
            return self.ova, self.readme
        beside = () if self.machine is None else (self.readme, self.ovf, self.digests)
        return (*(disk.path for disk in self.disks), *beside)


def plan_export(
    repository: Repository,
    manifest: Manifest,
    directory: Path,
    image_format: ExportFormat,
    disks: frozenset[str] | None = None,
) -> ExportPlan:
    """``directory`` is absolute. Raises ``PreflightFailed`` with every problem, and
    ``UsageError``; nothing is changed."""
    if os.path.lexists(directory) and not directory.is_dir():
        raise UsageError(f"{directory} is no folder", hint="name another by --output")
    name = manifest.vm if is_vm_name(manifest.vm) else f"vm-{manifest.id}"
    in_archive = image_format == "ova"
    kind: ImageFormat = "vmdk" if image_format == "ova" else image_format
    chosen = []
    for disk in chosen_disks(manifest, disks):
        path = directory / f"{name}-{disk.target}.{kind}"
        made = "raw" if kind == "vmdk" else kind
        image = PlannedImage(disk, path, made, (manifest.vm_uuid, manifest.id))
        chosen.append(ExportedDisk(image, path, kind))
    machine = None
    if in_archive and manifest.definition is None:
        raise UsageError(
            f"point {manifest.id} is of image files without a VM, and an OVA describes one",
            hint="use --format vmdk",
        )
    if kind in ovf.FORMATS and manifest.definition is not None:
        definition_xml = read_definition(repository, manifest)
        wanted = tuple(disk.image.disk for disk in chosen)
        machine = exported_machine(definition_xml, manifest, name, wanted)
    plan = ExportPlan(
        manifest,
        name,
        directory,
        tuple(chosen),
        machine,
        in_archive,
        _need_bytes(repository, chosen, in_archive=in_archive),
        _free_bytes(directory),
    )
    if found := _problems(plan):
        who = printable(manifest.vm, 80)
        raise PreflightFailed(f"{who} can't be exported to {directory}", problems=found)
    return plan


def _need_bytes(repository: Repository, disks: list[ExportedDisk], *, in_archive: bool) -> int:
    """Of VMDKs that can't be compressed, and the largest raw image besides; then those of an
    archive beside it."""
    sizes = [stored_bytes(repository.disk_map(disk.image.disk)) for disk in disks]
    beside = max(sizes, default=0) if any(disk.format == "vmdk" for disk in disks) else 0
    return sum(sizes) + (sum(sizes) if in_archive else beside)


def _free_bytes(directory: Path) -> int:
    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    return shutil.disk_usage(there).free


def _problems(plan: ExportPlan) -> list[str]:
    found = [
        f"{path} exists already: choose another folder"
        for path in plan.files
        if os.path.lexists(path)
    ]
    if not plan.disks:
        found.append(f"point {plan.manifest.id} has no disk: there is nothing to export")
    for disk in plan.disks:
        size_bytes = disk.image.size_bytes
        if size_bytes > (most := _LARGEST_BYTES.get(disk.format, size_bytes)):
            found.append(
                f"disk {disk.image.disk.target} has {format_bytes(size_bytes)} and a "
                f"{disk.format} at most {format_bytes(most)}: use --format raw or qcow2"
            )
        if size_bytes == 0 and disk.format != "raw":
            found.append(f"disk {disk.image.disk.target} has no byte: use --format raw, or --disk")
    return found
