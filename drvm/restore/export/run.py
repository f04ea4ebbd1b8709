"""Making what a plan of an export says: every image is read back before it gets its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.process import Processes
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.convert import write_vmdk
from drvm.host.images import ImageTool
from drvm.repository.repository import Repository
from drvm.restore.export.machine import ExportedMachine
from drvm.restore.export.ovf import DescribedDisk, digests, envelope
from drvm.restore.export.plan import ExportedDisk, ExportPlan
from drvm.restore.export.readback import ReadBack
from drvm.restore.export.readme import readme
from drvm.restore.folder import make_folder, remove, write_new
from drvm.restore.images import (
    ImageRestorer,
    MadeImage,
    give_name,
    held,
    partial_name,
    sweep_partial,
)


@dataclass(frozen=True, slots=True)
class Exported:
    """``files``: in the order in which they were made."""

    files: tuple[Path, ...]
    written_bytes: int


class Exporter:
    """Exports to the host that drvm runs on."""

    def __init__(
        self,
        repository: Repository,
        restorer: ImageRestorer,
        processes: Processes,
        clock: Clock,
        trace: Trace = no_trace,
    ) -> None:
        self._repository = repository
        self._restorer = restorer
        self._processes = processes
        self._clock = clock
        self._trace = trace
        self._tool = ImageTool(processes)
        self._read_back = ReadBack(repository.hasher, processes, clock)

    def run(self, plan: ExportPlan, progress: Progress, *, verify: bool = True) -> Exported:
        """Raises ``RestoreError`` and ``DamageFound``, and then leaves no file, nor a folder that
        was made. A crash leaves partial images, which the next export or restore into that folder
        removes, and perhaps whole ones under their names."""
        with ExitStack() as undo:
            make_folder(plan.directory, undo)
            sweep_partial(plan.directory)
            written = 0
            for disk in plan.disks:
                written += self._disk(disk, progress, verify=verify)
                undo.callback(remove, disk.path)
                self._trace(f"exported-{disk.image.disk.target}")
            if plan.machine is not None:
                progress.stage(f"describing {plan.name}")
                self._describe(plan, plan.machine, undo)
            undo.pop_all()
        return Exported(plan.files, written)

    def _describe(self, plan: ExportPlan, machine: ExportedMachine, undo: ExitStack) -> None:
        """The digests last: where they are, everything is."""
        described = [
            DescribedDisk(disk.image.disk.target, disk.path, disk.format, disk.image.size_bytes)
            for disk in plan.disks
        ]
        self._write(plan.readme, readme(plan, machine), undo)
        self._write(plan.ovf, envelope(machine, described), undo)
        images = [disk.path for disk in plan.disks]
        self._write(plan.digests, digests([plan.ovf, *images]), undo)
        self._trace("export-described")

    def _write(self, path: Path, data: bytes, undo: ExitStack) -> None:
        write_new(path, data)
        undo.callback(remove, path)

    def _disk(self, disk: ExportedDisk, progress: Progress, *, verify: bool) -> int:
        target = disk.image.disk.target
        with self._restorer.made(disk.image, progress) as made:
            self._trace(f"export-written-{target}")
            with ExitStack() as stack:
                path = made.path
                if disk.format == "vmdk":
                    path = stack.enter_context(self._vmdk(disk, made, progress))
                    self._trace(f"export-compressed-{target}")
                if verify:
                    disk_map = self._repository.disk_map(made.disk)
                    self._read_back.compare(path, disk.format, disk_map, disk.path.name, progress)
                    self._trace(f"export-read-back-{target}")
                give_name(path, disk.path)
            return made.written_bytes

    @contextlib.contextmanager
    def _vmdk(self, disk: ExportedDisk, made: MadeImage, progress: Progress) -> Iterator[Path]:
        partial, size_bytes = partial_name(disk.path), disk.image.size_bytes
        self._tool.create_image(partial, "raw", 0, {})
        try:
            with held(partial):
                progress.stage(f"compressing {disk.path.name}", size_bytes)
                write_vmdk(
                    made.path,
                    partial,
                    name=disk.path.name,
                    size_bytes=size_bytes,
                    processes=self._processes,
                    clock=self._clock,
                    progress=progress,
                )
                yield partial
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
