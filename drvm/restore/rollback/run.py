"""Doing what a rollback's plan says: overlays home, a note, the disks, what lies outside of them,
and the note's end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import rfc3339
from drvm.core.errors import CaptureError, DrvmError, HostError, RestoreError
from drvm.core.progress import Progress
from drvm.host.model import Domain, DomainState
from drvm.restore.rollback.outside import turn_back_outside
from drvm.restore.rollback.plan import RollbackPlan
from drvm.restore.targets.images import ImageRestorer, PlannedImage
from drvm.snapshot import domainxml, standing
from drvm.snapshot.frozen import ChangeGuard
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import finish_machine
from drvm.snapshot.rollbacks import VERSION, Rollback


@dataclass(frozen=True, slots=True)
class TurnedDisk:
    """In bytes: what was read of the image, and written and zeroed in it."""

    target: str
    path: Path
    read_bytes: int
    written_bytes: int
    zeroed_bytes: int


@dataclass(frozen=True, slots=True)
class TurnedBack:
    """``kept``: old UEFI variables and TPM state."""

    disks: tuple[TurnedDisk, ...]
    kept: tuple[Path, ...]


def make_ready(plan: RollbackPlan, parts: Parts) -> ChangeGuard:
    """Put the machine on its own images, and see that they are sound. What is returned knows
    whether somebody writes to them from now on. Raises ``CaptureError`` and ``RestoreError``."""
    with parts.journal.lock(plan.vm_uuid, plan.vm_name):
        finish_machine(parts, plan.vm_uuid)
        entry = parts.journal.read(plan.vm_uuid)
        if entry is not None and entry.standing:
            standing.fold(parts, entry, [disk.target for disk in entry.standing])
            parts.trace("rollback-folded")
        _at_rest(plan, parts)
        for image in plan.images:
            if image.format == "raw":
                continue
            try:
                parts.images.check(image.path, image.format, leaks=True)
            except HostError as problem:
                raise RestoreError(
                    f"the image of {image.disk.target} is not sound: {problem.message}",
                    hint="restore the machine with --replace: that makes new images",
                ) from None
        return ChangeGuard([image.path for image in plan.images], parts.clock)


def turn_back(
    plan: RollbackPlan,
    parts: Parts,
    restorer: ImageRestorer,
    guard: ChangeGuard,
    safety_point: str | None,
    progress: Progress,
) -> TurnedBack:
    """Write what differs. The machine is locked, and none of its disks can be opened by a QEMU
    while it is written.

    From the first write on a note says that the machine is half turned back, until all is done:
    a crash or an error leaves the note, and the same again finishes. Raises ``RestoreError``,
    ``DamageFound`` and what the store raises.
    """
    notes = parts.journal.rollbacks
    with parts.journal.lock(plan.vm_uuid, plan.vm_name):
        _at_rest(plan, parts)
        try:
            guard.check()
        except CaptureError:
            raise RestoreError(
                f"{plan.vm_name} was started, or its disks were written to, meanwhile",
                hint="shut it down and try again",
            ) from None
        note = _note(plan, parts, safety_point)
        notes.write(note)
        try:
            parts.trace("rollback-noted")
            disks = tuple(_turned(image, restorer, progress) for image in plan.images)
            kept = _outside(plan, parts)
            _at_rest(plan, parts)
        except DrvmError as error:
            error.hint = f"{error.hint}; {note.hint}" if error.hint else note.hint
            raise
        notes.remove(plan.vm_uuid)
        parts.trace("rollback-ended")
    return TurnedBack(disks, kept)


def _turned(image: PlannedImage, restorer: ImageRestorer, progress: Progress) -> TurnedDisk:
    done = restorer.turn_back(image, progress)
    size = done.read_bytes, done.written_bytes, done.zeroed_bytes
    return TurnedDisk(image.disk.target, image.path, *size)


def _outside(plan: RollbackPlan, parts: Parts) -> tuple[Path, ...]:
    if plan.outside is None:
        return ()
    point_id = plan.manifest.id
    return turn_back_outside(plan.outside, plan.vm_uuid, point_id, parts.host, parts.trace)


def _note(plan: RollbackPlan, parts: Parts, safety_point: str | None) -> Rollback:
    return Rollback(
        version=VERSION,
        vm_uuid=plan.vm_uuid,
        vm_name=plan.vm_name,
        uri=parts.host.uri,
        point_id=plan.manifest.id,
        images=plan.named,
        safety_point=safety_point,
        started=rfc3339(parts.clock.now()),
    )


def _at_rest(plan: RollbackPlan, parts: Parts) -> Domain:
    """The machine is off, and on the images of the plan."""
    domain = parts.host.domain(plan.vm_uuid)
    if domain.state() is not DomainState.SHUTOFF or domain.has_managed_save():
        raise RestoreError(
            f"{plan.vm_name} was started meanwhile",
            hint="shut it down",
        )
    machine = domainxml.read(domain.xml(inactive=True))
    for target, path in plan.named.items():
        disk = machine.disk(target)
        if disk is None or str(disk.top) != path:
            raise RestoreError(f"{target} of {plan.vm_name} is on another image now than {path}")
    return domain
