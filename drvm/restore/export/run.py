"""Making what a plan of an export says: every image is read back before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from drvm.core.clock import Clock, parse_rfc3339
from drvm.core.errors import RestoreError
from drvm.core.process import Processes
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.convert import write_vmdk
from drvm.host.images import ImageTool, Part
from drvm.repository.manifest import Disk
from drvm.repository.repository import Repository
from drvm.restore.export import digests
from drvm.restore.export.archive import write_archive
from drvm.restore.export.ovf import DescribedDisk, envelope
from drvm.restore.export.plan import ExportedDisk, ExportPlan
from drvm.restore.export.readback import ReadBack
from drvm.restore.export.readme import readme
from drvm.restore.folder import make_folder, remove, write_new
from drvm.restore.targets.images import (
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
    """``path``: what it is called until all are whole; ``part``: where it is in that. ``stored``:
    what it must be."""

    disk: ExportedDisk
    path: Path
    stored: Disk
    written_bytes: int
    part: Part | None = None


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
        was made. No file has its name before all images are whole and read back where they lie. A
        crash before that leaves partial files, with which the next export of the same goes on, or
        which it removes; later, some files under their names, the digests last of all."""
        with ExitStack() as undo, ExitStack() as made:
            make_folder(plan.directory, undo)
            sweep_partial(plan.directory, clock=self._clock)
            whole = [self._whole(disk, progress, made) for disk in plan.disks]
            texts = self._described(plan, whole, progress)
            named = [(one.path, one.disk.path) for one in whole]
            if plan.in_archive:
                archive = made.enter_context(self._new(plan.ova))
                whole = self._packed(plan, archive, whole, texts, progress)
                named, texts = [(archive, plan.ova)], {plan.readme: texts[plan.readme]}
            for one in whole if verify else ():
                self._compare(one, progress)
            for number, (partial, path) in enumerate(named):
                give_name(partial, path)
                undo.callback(remove, path)
                self._trace(f"export-named-{number}")
            for path, text in texts.items():
                write_new(path, text)
                undo.callback(remove, path)
                self._trace(f"export-described-{path.suffix[1:]}")
            undo.pop_all()
        return Exported(plan.files, sum(one.written_bytes for one in whole))

    def _described(
        self, plan: ExportPlan, whole: list[_Whole], progress: Progress
    ) -> dict[Path, bytes]:
        if plan.machine is None:
            return {}
        progress.stage(f"describing {plan.name}", sum(one.path.stat().st_size for one in whole))
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
            sums[one.disk.path.name] = digests.sha256(one.path, progress)
        return {
            plan.readme: readme(plan, plan.machine),
            plan.ovf: ovf,
            plan.digests: digests.written(sums),
        }

    def _whole(self, disk: ExportedDisk, progress: Progress, kept: ExitStack) -> _Whole:
        """Under a partial name for as long as ``kept``."""
        if disk.format == "vmdk":
            with self._restorer.made(disk.image, progress) as made:
                path = kept.enter_context(self._new(disk.path))
                self._compress(disk, made, path, progress)
                written_bytes = path.stat().st_size
            self._trace(f"export-compressed-{disk.image.disk.target}")
        else:
            made = kept.enter_context(self._restorer.made(disk.image, progress))
            path, written_bytes = made.path, made.written_bytes
        return _Whole(disk, path, made.disk, written_bytes)

    def _compress(
        self, disk: ExportedDisk, made: MadeImage, path: Path, progress: Progress
    ) -> None:
        progress.stage(f"compressing {disk.path.name}", disk.image.size_bytes)
        write_vmdk(
            made.path,
            path,
            name=disk.path.name,
            size_bytes=disk.image.size_bytes,
            processes=self._processes,
            clock=self._clock,
            progress=progress,
        )

    def _packed(
        self,
        plan: ExportPlan,
        archive: Path,
        whole: list[_Whole],
        texts: Mapping[Path, bytes],
        progress: Progress,
    ) -> list[_Whole]:
        """The same images, where they lie in the archive."""
        progress.stage(f"packing {plan.ova.name}", sum(one.path.stat().st_size for one in whole))
        try:
            parts = write_archive(
                archive,
                {path.name: texts[path] for path in (plan.ovf, plan.digests)},
                {one.disk.path.name: one.path for one in whole},
                parse_rfc3339(plan.manifest.created),
                progress,
            )
        except OSError as error:
            raise RestoreError(
                f"{plan.ova} can't be written: {error.strerror}",
                hint="look at the room there, or use --format vmdk",
            ) from None
        self._trace("export-packed")
        return [replace(one, path=archive, part=parts[one.disk.path.name]) for one in whole]

    def _compare(self, one: _Whole, progress: Progress) -> None:
        disk_map, title = self._repository.disk_map(one.stored), one.disk.path.name
        self._read_back.compare(one.path, one.disk.format, disk_map, title, progress, part=one.part)
        self._trace(f"export-read-back-{one.disk.image.disk.target}")

    @contextlib.contextmanager
    def _new(self, path: Path) -> Iterator[Path]:
        """An empty file under a partial name, gone at the end if it still has that."""
        partial = partial_name(path)
        self._tool.create_image(partial, "raw", 0, {})
        try:
            with held(partial):
                yield partial
        finally:
            remove(partial)
