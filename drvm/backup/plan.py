"""What a backup will do, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from drvm.host.model import Domain
from drvm.repository.points import Point
from drvm.snapshot import domainxml, standing
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.choose import choose_for
from drvm.snapshot.disks import select
from drvm.snapshot.parts import Parts


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    target: str
    path: str
    format: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """``reason``: why this engine. ``parent``: the point whose blocks and maps are shared."""

    vm: str
    vm_uuid: str
    engine: str
    reason: str
    disks: tuple[PlannedDisk, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    parent: str | None


def plan_backup(
    parts: Parts, domain: Domain, request: CaptureRequest, parent: Point | None
) -> BackupPlan:
    """Looks, and touches nothing. Raises ``CaptureError`` for a disk that can't be captured."""
    choice = choose_for(parts, request)
    machine = domainxml.read(standing.found(parts, domain).on_own_images(domain.xml()))
    selection = select(machine, request.exclude_disks)
    disks = tuple(
        PlannedDisk(
            source.target,
            str(source.path),
            source.format,
            parts.images.info(source.path, source.format).virtual_size_bytes,
        )
        for source in selection.captured
    )
    return BackupPlan(
        domain.name,
        domain.uuid,
        choice.engine.name,
        choice.reason,
        disks,
        selection.left_out,
        selection.warnings,
        parent.id if parent is not None else None,
    )
