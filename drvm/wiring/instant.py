"""Booted machines, as the command line, ``doctor`` and the daemon see them."""

from __future__ import annotations

from pathlib import Path

from drvm.core.findings import Finding
from drvm.core.progress import Trace, no_trace
from drvm.host.model import Host
from drvm.repository.points import Point
from drvm.repository.select import select
from drvm.restore.instant import look
from drvm.restore.instant.parts import Parts
from drvm.restore.instant.record import Boot, Boots, require_repository
from drvm.restore.served.server import Service
from drvm.wiring.assembly import Wiring
from drvm.wiring.serving import service_of


def instant_parts(wiring: Wiring, host: Host, trace: Trace = no_trace) -> Parts:
    return Parts(
        host=host,
        images=wiring.image_tool(),
        processes=wiring.processes,
        clock=wiring.clock,
        boots=Boots(Path(wiring.settings.state_dir)),
        trace=trace,
    )


def service_for(wiring: Wiring, boot: Boot) -> Service:
    """What serves its disks. Raises ``UnknownPoint`` where the point is gone, and ``RestoreError``
    where it is in another repository."""
    repository = wiring.repository()
    require_repository(boot, repository.id, repository.store.location)
    return service_of(wiring, point_of(wiring, boot), [disk.target for disk in boot.disks])


def point_of(wiring: Wiring, boot: Boot) -> Point:
    return select(wiring.repository().points(boot.origin_uuid).points, boot.point)


def boot_findings(wiring: Wiring, host: Host) -> list[Finding]:
    """One for each booted machine of the host, and for what looks like one."""
    return look.findings(instant_parts(wiring, host))


def sweep_boots(wiring: Wiring, host: Host) -> list[Finding]:
    """Finish what killed boots left, where no guest has written."""
    return look.sweep(instant_parts(wiring, host), wiring.repository)
