"""How the disks of a drilled machine get there: restored, served, or as volumes of another host.

Each is there for as long as the context lasts, and the machine is ended before that is left. Files
in the drill's directory go with it; ``drvm/drill/place.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drvm.core.clock import Clock
from drvm.core.files import write_durably
from drvm.core.process import Processes
from drvm.core.progress import Progress, Trace
from drvm.drill.plan import DrillPlan
from drvm.host.images import ImageTool
from drvm.host.model import Host
from drvm.repository.manifest import Manifest
from drvm.restore.served.server import Owner, Service
from drvm.restore.served.supervised import serving
from drvm.restore.targets.images import PlannedImage
from drvm.restore.targets.volume_lease import held, on_host
from drvm.restore.targets.volume_leftovers import cleared
from drvm.restore.targets.volumes import VolumeRestorer


class Restorer(Protocol):
    def restore(self, image: PlannedImage, progress: Progress) -> int:
        """See ``ImageRestorer``."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """``log``: where the server of the disks says what was wrong; ``None`` where there is none."""

    written_bytes: int
    log: Path | None = None


class Disks(Protocol):
    def prepared(
        self, plan: DrillPlan, progress: Progress, trace: Trace
    ) -> AbstractContextManager[Prepared]:
        """The images and the UEFI variables, where the plan says. The drill's directory is made
        already. Raises ``DrvmError`` and ``OSError``."""
        ...


@dataclass(frozen=True, slots=True)
class RestoredDisks:
    """Implements ``Disks``: whole image files of this machine."""

    restorer: Restorer

    @contextlib.contextmanager
    def prepared(self, plan: DrillPlan, progress: Progress, trace: Trace) -> Iterator[Prepared]:
        written = 0
        for image in plan.images:
            written += self.restorer.restore(image, progress)
            trace(f"restored {image.disk.target}")
        _place_nvram(plan, trace)
        yield Prepared(written)


@dataclass(frozen=True, slots=True)
class ServedDisks:
    """Implements ``Disks``: empty images over the repository, as of ``drvm boot``. The server ends
    with this process, and QEMU is connected to it without anything in between: a drill that loses
    it has failed (docs/adr/046)."""

    host: Host
    images: ImageTool
    service: Callable[[Manifest], Service]
    processes: Processes
    clock: Clock

    @contextlib.contextmanager
    def prepared(self, plan: DrillPlan, progress: Progress, trace: Trace) -> Iterator[Prepared]:
        progress.stage("starting the server")
        user = self.host.qemu_user()
        owner = Owner(*user) if user is not None else None
        service = self.service(plan.request.point)
        with serving(
            self.processes, self.clock, service, owner=owner, socket=plan.socket
        ) as served:
            trace("disks-served")
            for image in plan.images:
                disk = image.disk
                options = disk.image_options if disk.format == "qcow2" else {}
                uri = served.uri(disk.target)
                self.images.create_over_export(image.path, uri, image.size_bytes, options)
                trace(f"overlay-made {disk.target}")
            _place_nvram(plan, trace)
            yield Prepared(0, served.log)


@dataclass(frozen=True, slots=True)
class VolumeDisks:
    """Implements ``Disks``: volumes of another host, made through its libvirt, beside a lease."""

    host: Host
    volumes: VolumeRestorer

    @contextlib.contextmanager
    def prepared(self, plan: DrillPlan, progress: Progress, trace: Trace) -> Iterator[Prepared]:
        assert plan.volumes is not None
        pool, token, point = plan.volumes.pool, plan.volumes.token, plan.request.point
        about = f"{on_host(self.host.hostname())}drill of {point.vm}, point {point.id}"
        with (
            cleared(self.host, (pool,), self.volumes.clock),
            held(self.host.storage, (pool,), token, about, trace),
        ):
            written = 0
            for image in plan.images:
                written += self.volumes.restore(image, progress, trace)
            if plan.nvram is not None:
                self.volumes.place(pool, plan.nvram_path, plan.nvram)
                trace("nvram-placed")
            yield Prepared(written)


def _place_nvram(plan: DrillPlan, trace: Trace) -> None:
    if plan.nvram is not None:
        write_durably(plan.nvram_path, plan.nvram)
        trace("nvram-placed")
