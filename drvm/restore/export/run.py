"""Making what a plan of an export says: every image is read back before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
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


@dataclass(frozen=True, slots=True)
class _Whole:
    """``path``: what it is called until all are whole."""

    disk: ExportedDisk
    path: Path
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
        was made. No file has its name before all images are whole and read back. A crash before
        that leaves partial images, with which the next export of the same goes on, or which it
        removes; later, some files under their names, the digests last of all."""
        with ExitStack() as undo, ExitStack() as made:
            make_folder(plan.directory, undo)
            sweep_partial(plan.directory, clock=self._clock)
            whole = [self._whole(disk, progress, made, verify=verify) for disk in plan.disks]
            beside = self._described(plan, whole, progress)
            for one in whole:
                give_name(one.path, one.disk.path)
                undo.callback(remove, one.disk.path)
                self._trace(f"export-named-{one.disk.image.disk.target}")
            for path, data in beside.items():
                write_new(path, data)
                undo.callback(remove, path)
                self._trace(f"export-described-{path.suffix[1:]}")
            undo.pop_all()
        return Exported(plan.files, sum(one.written_bytes for one in whole))

    def _described(
        self, plan: ExportPlan, whole: list[_Whole], progress: Progress
    ) -> dict[Path, bytes]:
        if plan.machine is None:
            return {}
        progress.stage(f"describing {plan.name}")
        disks = [
            DescribedDisk(
                target=one.disk.image.disk.target,
                name=one.disk.path.name,
                format=one.disk.format,
                size_bytes=one.disk.image.size_bytes,
                file_bytes=one.path.stat().st_size,
            )
            for one in whole
        ]
        ovf = envelope(plan.machine, disks)
        sums = {plan.ovf.name: hashlib.sha256(ovf).hexdigest()}
        for one in whole:
            with one.path.open("rb") as stream:
                sums[one.disk.path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return {plan.readme: readme(plan, plan.machine), plan.ovf: ovf, plan.digests: digests(sums)}

    def _whole(
        self, disk: ExportedDisk, progress: Progress, kept: ExitStack, *, verify: bool
    ) -> _Whole:
        """Under a partial name for as long as ``kept``."""
        target = disk.image.disk.target
        if disk.format == "vmdk":
            with self._restorer.made(disk.image, progress) as made:
                path = kept.enter_context(self._vmdk(disk, made, progress))
            self._trace(f"export-compressed-{target}")
        else:
            made = kept.enter_context(self._restorer.made(disk.image, progress))
            path = made.path
        if verify:
            disk_map = self._repository.disk_map(made.disk)
            self._read_back.compare(path, disk.format, disk_map, disk.path.name, progress)
            self._trace(f"export-read-back-{target}")
        return _Whole(disk, path, made.written_bytes)

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
