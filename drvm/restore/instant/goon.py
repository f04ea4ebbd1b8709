"""What becomes of a booted machine: it goes on after something died, gets plain disks, or goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drvm.core.errors import HostError, RestoreError
from drvm.core.progress import Progress
from drvm.core.text import printable
from drvm.host.images import in_use
from drvm.host.model import Domain, DomainState
from drvm.repository.repository import Repository
from drvm.restore.instant.definition import plain
from drvm.restore.instant.parts import Parts, domain_of, forget, is_over_export, remove_boot
from drvm.restore.instant.place import Place
from drvm.restore.instant.record import Boot, BootDisk, require_repository
from drvm.restore.served.server import Service
from drvm.snapshot.domainxml import read

_POLL_S = 0.2
_STALL_S = 300.0
_SETTLE_S = 10.0
_AWAIT_S = 60.0
"""The front looks for a server that was away every 16 s, at least."""
_TRIES = 3

MakeService = Callable[[], Service]
"""Asked for only where a server has to be started: it needs the repository and its key."""


def resume(parts: Parts, boot: Boot, service: MakeService, *, start: bool = True) -> None:
    """Its server runs again, and so does the machine, with all that its guest has written; the
    caller holds its lock. With its memory too, but for a machine that QEMU or the host lost.

    ``start``: also where it is off. A crash leaves what the next ``resume`` begins with.
    """
    domain = _existing(parts, boot)
    place = Place(boot.vm_uuid)
    left = _unfinished(parts, boot)
    if left and (domain.stopped_by_disks() or not (place.is_served() and place.is_fronted())):
        _serve_again(parts, boot, domain, place, service())
        _await_reads(parts, boot, place, left)
    if domain.state() is DomainState.SHUTOFF:
        if start or domain.has_managed_save():
            domain.start()
            parts.trace("resume-started")
    elif domain.stopped_by_disks():
        domain.resume()
        parts.trace("resume-continued")


def _serve_again(parts: Parts, boot: Boot, domain: Domain, place: Place, service: Service) -> None:
    """QEMU does not connect again to what has gone away. Where that is the front, the machine's
    memory is saved: started from there, it connects anew and the guest notices nothing."""
    lost = not place.is_fronted()
    if domain.stopped_by_disks():  # one that fails has perhaps credentials that have expired
        place.unserve(parts.clock)
    place.serve(parts.processes, parts.clock, service)
    parts.trace("resume-served")
    if lost and domain.state() is not DomainState.SHUTOFF:
        stopped = domain.stopped_by_disks()
        domain.managed_save(running=bool(stopped) or domain.state() is DomainState.RUNNING)
        parts.trace("resume-saved")
    place.put_front(parts.processes, parts.clock, service, parts.host.qemu_user())
    parts.trace("resume-fronted")


def _await_reads(parts: Parts, boot: Boot, place: Place, left: list[BootDisk]) -> None:
    """Before that the guest would be stopped by the same reads again."""
    deadline_s = parts.clock.monotonic_s() + _AWAIT_S
    for disk in left:
        while not place.front.reads(disk.target):
            if parts.clock.monotonic_s() >= deadline_s:
                raise RestoreError(
                    f"the server of {boot.name} does not give what is read of {disk.target}",
                    hint=f"is the store reachable? drvm boot --resume {boot.name} tries again",
                )
            parts.clock.sleep(_POLL_S)
    parts.trace("resume-read")


def begin_pull(parts: Parts, boot: Boot, *, bandwidth_mib_s: int = 0) -> None:
    """In QEMU, which goes on with it when we are gone; ``finish`` ends it. The machine runs."""
    domain = _existing(parts, boot)
    for disk in _unfinished(parts, boot):
        _check_image(domain, disk)
        _check_snapshots(parts, boot, disk)
        if domain.block_job(disk.target) is None:
            domain.pull_start(disk.target, bandwidth_mib_s=bandwidth_mib_s)
            parts.trace(f"pull-begun-{disk.target}")


def finish(
    parts: Parts,
    boot: Boot,
    repository: Repository,
    service: MakeService,
    progress: Progress,
    *,
    bandwidth_mib_s: int = 0,
) -> tuple[str, ...]:
    """Its disks are plain when this returns, and it needs the repository no more; the caller holds
    its lock. The machine runs on, or stays off. Returns what is to be told.

    Whatever an error or a crash leaves, the next ``finish`` goes on with. Raises ``DrvmError``.
    """
    require_repository(boot, repository.id, repository.store.location)
    _existing(parts, boot)
    for disk in _unfinished(parts, boot):
        _check_snapshots(parts, boot, disk)
    boot = parts.boots.write(boot.in_phase("finishing"))
    parts.trace("finish-noted")
    for _ in range(_TRIES):
        left = _unfinished(parts, boot)
        if not left:
            break
        resume(parts, boot, service, start=False)
        domain = _existing(parts, boot)
        if domain.state() is DomainState.SHUTOFF:
            _flatten(parts, left, progress)
        else:
            begin_pull(parts, boot, bandwidth_mib_s=bandwidth_mib_s)
            for disk in left:
                _wait_for_pull(parts, boot, domain, disk, progress)
    else:
        if _unfinished(parts, boot):
            raise RestoreError(
                f"the disks of {boot.name} could not be pulled to their end",
                hint=f"is the store reachable? drvm boot --finish {boot.name} goes on",
            )
    domain = _existing(parts, boot)
    if domain.state() is not DomainState.SHUTOFF:
        for disk in boot.disks:
            domain.flush(disk.target)
        parts.trace("finish-flushed")
    text = domain.xml(inactive=True, secure=True)
    changed = plain(text, Place(boot.vm_uuid).front.socket, boot.disks)
    if changed != text:
        parts.host.define(changed)
    parts.trace("finish-defined")
    Place(boot.vm_uuid).clear(parts.clock)
    parts.trace("finish-unserved")
    if domain.stopped_by_disks():  # by a read that failed before all was here
        domain.resume()
    return forget(parts, boot, repository)


def discard(parts: Parts, boot: Boot, repository: Repository) -> tuple[str, ...]:
    """The machine goes, with all that its guest has written; the caller holds its lock. Returns
    what is to be told. A crash leaves a record that says so: ``drvm doctor --fix`` goes on."""
    require_repository(boot, repository.id, repository.store.location)
    boot = parts.boots.write(boot.in_phase("discarding"))
    parts.trace("discard-noted")
    return remove_boot(parts, boot, repository)


def _existing(parts: Parts, boot: Boot) -> Domain:
    if boot.phase in ("making", "discarding"):
        raise RestoreError(
            f"{boot.name} was never started, or is being discarded",
            hint="drvm doctor --fix removes what is left of it",
        )
    domain = domain_of(parts, boot)
    if domain is None:
        raise RestoreError(
            f"{boot.name} is not defined any more, or its disks are others now",
            hint=f"drvm boot --discard {boot.name} removes its images: look at them before",
        )
    return domain


def _unfinished(parts: Parts, boot: Boot) -> list[BootDisk]:
    """By the images themselves: QEMU writes into them when a pull is done."""
    return [disk for disk in boot.disks if is_over_export(parts, boot, disk)]


def _check_image(domain: Domain, disk: BootDisk) -> None:
    """A pull goes into the disk's top layer: that must be ours."""
    found = read(domain.xml()).disk(disk.target)
    if found is None or found.top != Path(disk.image):
        raise RestoreError(
            f"disk {disk.target} of {domain.name} is not on {disk.image} any more",
            hint="if somebody took a snapshot of it: commit or delete that first (virsh)",
        )


def _check_snapshots(parts: Parts, boot: Boot, disk: BootDisk) -> None:
    """A snapshot inside the image takes from the point what it lacks, and a pull brings only what
    the disk is now: zeroes would be left of the rest."""
    if names := parts.images.info(Path(disk.image), "qcow2").snapshots:
        raise RestoreError(
            f"{disk.image} has snapshots in it, which would lose what they take from the point: "
            f"{', '.join(printable(name, 60) for name in names[:5])}",
            hint=f"virsh snapshot-delete {boot.name} NAME removes one",
        )


def _flatten(parts: Parts, left: list[BootDisk], progress: Progress) -> None:
    for disk in left:
        progress.stage(f"pulling {disk.target}")
        try:
            parts.images.flatten(Path(disk.image))
        except HostError:
            if in_use(Path(disk.image)):
                return  # it was started meanwhile
            raise
        parts.trace(f"pulled-{disk.target}")


def _wait_for_pull(
    parts: Parts, boot: Boot, domain: Domain, disk: BootDisk, progress: Progress
) -> None:
    """Until its job is gone, whatever became of it; bounded by headway."""
    done_bytes = 0
    told = False
    moved_s = parts.clock.monotonic_s()
    while True:
        try:
            job = domain.block_job(disk.target)
        except HostError:
            if domain.state() is DomainState.SHUTOFF:
                return
            raise
        if job is None:
            break
        if not told:
            progress.stage(f"pulling {disk.target}", job.total_bytes)
            told = True
        now_s = parts.clock.monotonic_s()
        if job.done_bytes > done_bytes:
            progress.advance(job.done_bytes - done_bytes)
            done_bytes, moved_s = job.done_bytes, now_s
        if now_s - moved_s > _STALL_S:
            raise RestoreError(
                f"the pull of {disk.target} stands still at {done_bytes} bytes",
                hint=f"is the store reachable? drvm boot --finish {boot.name} goes on",
            )
        parts.clock.sleep(_POLL_S)
    deadline_s = parts.clock.monotonic_s() + _SETTLE_S
    while is_over_export(parts, boot, disk) and parts.clock.monotonic_s() < deadline_s:
        if domain.stopped_by_disks() or domain.state() is DomainState.SHUTOFF:
            return
        parts.clock.sleep(_POLL_S)
    parts.trace(f"pulled-{disk.target}")
