"""Starting a machine from a point at once: its disks follow."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from drvm.core.clock import rfc3339
from drvm.core.errors import DrvmError, HostError, PreflightFailed, RestoreError, StoreRefused
from drvm.core.progress import Progress
from drvm.host.model import Host
from drvm.repository.manifest import Manifest
from drvm.repository.pins import Pin, new_nonce
from drvm.repository.points import Point
from drvm.repository.repository import Repository
from drvm.restore.claims import check_free, claimed
from drvm.restore.folder import write_new
from drvm.restore.instant.definition import over_export, policies
from drvm.restore.instant.parts import Parts, as_it_ran, make_image, remove_boot
from drvm.restore.instant.place import Place
from drvm.restore.instant.record import VERSION, Boot, BootDisk
from drvm.restore.plan import RestorePlan, RestoreRequest, plan_restore
from drvm.restore.run import tpm_state
from drvm.restore.served.server import Service


@dataclass(frozen=True, slots=True)
class Booted:
    """``warnings``: what went otherwise than wanted."""

    boot: Boot
    warnings: tuple[str, ...]


def plan_boot(
    repository: Repository, manifest: Manifest, host: Host, request: RestoreRequest
) -> RestorePlan:
    """As a restore: in the end the machine is one. All its images are qcow2: they lie over an
    export until then. Raises ``PreflightFailed`` with every problem at once; changes nothing."""
    plan = plan_restore(repository, manifest, host, replace(request, format="qcow2", disks=None))
    if plan.volume_pools:
        raise PreflightFailed(
            f"{manifest.vm} can't be booted from its point on {host.uri} like this",
            problems=["its images must be files of this machine: use --pool NAME"],
        )
    return plan


def make_way(parts: Parts, name: str, repository: Repository) -> None:
    """Remove what an earlier boot of that name left that never ran. The caller holds the lock.
    Raises ``RestoreError`` where there is one that did."""
    boot = parts.boots.find(name)
    if boot is None:
        return
    boot = as_it_ran(parts, boot)
    if boot.phase in ("running", "finishing"):
        raise RestoreError(
            f"{name} was booted from point {boot.point} already",
            hint=f"drvm boot --finish {name} makes its disks plain, --discard {name} removes it",
        )
    remove_boot(parts, boot, repository)  # a pin that is left says by its note whose it was


def start_boot(
    parts: Parts,
    plan: RestorePlan,
    point: Point,
    repository: Repository,
    service: Service,
    progress: Progress,
    *,
    writer: str,
) -> Booted:
    """Make and start it; the caller holds its lock.

    An error leaves nothing. A crash leaves what the record names: before the guest's first start
    ``make_way`` and ``drvm doctor --fix`` remove it, afterwards ``resume`` goes on.
    """
    with claimed(parts.host, plan.name, plan.uuid):
        boot = parts.boots.write(_record(parts, plan, point, repository))
        parts.trace("boot-noted")
        return _start(parts, plan, point, repository, service, progress, boot, writer)


def _start(
    parts: Parts,
    plan: RestorePlan,
    point: Point,
    repository: Repository,
    service: Service,
    progress: Progress,
    boot: Boot,
    writer: str,
) -> Booted:
    place = Place(plan.uuid)
    try:
        progress.stage("starting the server")
        warnings = _pin(boot, point, repository, writer)
        parts.trace("boot-pinned")
        place.clear(parts.clock)  # a server that a lost record left may serve another point
        place.serve(parts.processes, parts.clock, service)
        parts.trace("boot-served")
        place.put_front(parts.processes, parts.clock, service, parts.host.qemu_user())
        parts.trace("boot-fronted")
        progress.stage("making the machine")
        for disk, planned in zip(boot.disks, plan.images, strict=True):
            options = planned.disk.image_options if planned.disk.format == "qcow2" else {}
            make_image(parts, boot, disk, planned.size_bytes, dict(options))
            parts.trace(f"boot-image-{disk.target}")
        if plan.nvram is not None and plan.nvram_path is not None:
            try:
                write_new(plan.nvram_path, plan.nvram)
            except BaseException:
                boot = replace(boot, nvram="")  # somebody else's, perhaps
                raise
        for pool in plan.room:  # so that it lists the images; nothing rests on it
            with contextlib.suppress(HostError):
                parts.host.refresh_pool(pool)
        targets = [disk.target for disk in boot.disks]
        check_free(parts.host, plan.name, plan.uuid, replace=False)
        with tpm_state(plan, parts.host, parts.trace):
            xml = over_export(plan.definition.xml, place.front.socket, targets)
            domain = parts.host.define(xml)
        parts.trace("boot-defined")
        boot = parts.boots.write(boot.in_phase("running"))
        parts.trace("boot-begun")
        progress.stage("starting the machine")
        domain.start()
    except BaseException:
        _undo(parts, boot, repository)
        raise
    parts.trace("boot-started")
    return Booted(boot, warnings)


def _record(parts: Parts, plan: RestorePlan, point: Point, repository: Repository) -> Boot:
    xml = plan.definition.xml
    return Boot(
        version=VERSION,
        name=plan.name,
        vm_uuid=plan.uuid,
        uri=parts.host.uri,
        point=point.id,
        origin=point.manifest.vm,
        origin_uuid=point.manifest.vm_uuid,
        nonce=new_nonce(),
        created=rfc3339(parts.clock.now()),
        disks=tuple(
            BootDisk(image.disk.target, str(image.path), *policies(xml, image.disk.target))
            for image in plan.images
        ),
        nvram=str(plan.nvram_path) if plan.nvram_path is not None else "",
        tpm=bool(plan.tpm),
        repository=repository.id,
        location=repository.store.location,
    )


def _pin(boot: Boot, point: Point, repository: Repository, writer: str) -> tuple[str, ...]:
    """So that no rule removes what the machine runs over. A repository that can only be read is
    enough for a recovery: then it is said."""
    pin = Pin(f"drvm boot {boot.name}", boot.created, writer)
    try:
        repository.pin(point, pin, nonce=boot.nonce)
    except StoreRefused as problem:
        words = f"point {point.id} could not be pinned: {problem.message}"
        return (f"{words}; see to it that nobody removes it before drvm boot --finish",)
    return ()


def _undo(parts: Parts, boot: Boot, repository: Repository) -> None:
    """Unless the guest ran, nothing has been written that anybody could want; what can't be
    removed now stays known by its record."""
    with contextlib.suppress(DrvmError, OSError):
        boot = as_it_ran(parts, boot.in_phase("making"))
        if boot.phase == "making":
            remove_boot(parts, parts.boots.write(boot), repository)
