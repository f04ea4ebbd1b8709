"""Disk images brought back from the repository: made by drvm itself, empty, then filled.

An image is written under a partial name, made durable, and only then given its own name, without
ever replacing a file. What a killed or interrupted restore leaves is gone on with by the next one
of the same: see ``drvm/restore/targets/partial.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import DamageFound, DrvmError, HostError, RestoreError
from drvm.core.process import Processes
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.disks import BlockReader, BlockWriter
from drvm.host.images import ImageTool, write_locked
from drvm.host.nbd import NbdExport, NbdReader, NbdWriter, nbd_extents
from drvm.host.rawfile import RawFileReader, RawFileWriter, raw_extents
from drvm.repository.differing import Differing, differences
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.reader import write_differing, write_disk
from drvm.repository.repository import Repository
from drvm.repository.window import mapped_bytes
from drvm.restore.targets.held import HeldDisk
from drvm.restore.targets.partial import (
    GOES_ON,
    PASSING,
    Partial,
    allocated_bytes,
    new_partial,
    partial_path,
    taken_over,
)
from drvm.restore.targets.partial import give_name as give_name
from drvm.restore.targets.partial import held as held
from drvm.restore.targets.partial import partial_name as partial_name
from drvm.restore.targets.partial import sweep_partial as sweep_partial
from drvm.restore.targets.sinks import Writers, at_first_write

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """``path`` is absolute and does not exist yet; ``format`` is ``raw`` or ``qcow2``. ``point``:
    (UUID of the machine, id) of what is restored, where it may be looked up again. ``pool``: it
    is a volume of that one, of that kind, made through libvirt, and ``path`` is where its host
    sees it, with ``held_bytes`` in it already. ``device``: it is a block device of this machine,
    which exists."""

    disk: Disk
    path: Path
    format: str
    point: tuple[str, str] | None = None
    pool: str | None = None
    pool_kind: str = ""
    device: bool = False
    held_bytes: int = 0

    @property
    def is_file(self) -> bool:
        """Of this machine, made by us."""
        return self.pool is None and not self.device

    @property
    def size_bytes(self) -> int:
        """The guest's disk in whole sectors: QEMU knows no other sizes."""
        return -(-self.disk.size_bytes // SECTOR_BYTES) * SECTOR_BYTES

    @property
    def options(self) -> dict[str, str]:
        same = self.disk.format == self.format
        return dict(self.disk.image_options) if same else {}

    @property
    def partial(self) -> Path:
        """Where it is made; another one each time where it can't be looked up again."""
        if self.point is None:
            return partial_name(self.path)
        what = (*self.point, self.disk.target, self.format, self.size_bytes)
        return partial_path(self.path, (*what, *sorted(self.options.items())))

    @property
    def on_hand_bytes(self) -> int:
        """The room that it takes already, half-restored."""
        local = self.point is not None and self.pool is None
        return allocated_bytes(self.partial) if local else self.held_bytes


@dataclass(frozen=True, slots=True)
class MadeImage:
    """``path``: a partial name; ``disk``: as it was found, which may be in another generation of
    the point than was planned; ``written_bytes``: of the disk, not of the file."""

    path: Path
    disk: Disk
    written_bytes: int


def planned_in(
    directory: Path, disk: Disk, manifest: Manifest, image_format: str | None = None
) -> PlannedImage:
    """``<target>.<format>`` there; the disk's own format where none is given."""
    kind = image_format or disk.format
    path = directory / f"{disk.target}.{kind}"
    return PlannedImage(disk, path, kind, (manifest.vm_uuid, manifest.id))


class ImageRestorer:
    """Fills images of the host that drvm runs on."""

    def __init__(
        self,
        repository: Repository,
        processes: Processes,
        clock: Clock,
        trace: Trace = no_trace,
    ) -> None:
        self._repository = repository
        self._processes = processes
        self._clock = clock
        self._trace = trace
        self._tool = ImageTool(processes)

    def restore(self, image: PlannedImage, progress: Progress) -> int:
        """Write the whole disk; returns the bytes written. Durable when it returns.

        Every block is verified. Raises ``DamageFound`` and ``RestoreError``, having left nothing.
        Where the point was written anew since it was planned, its packs may be gone: then it is
        restored from where it is now. Where the store gives no more, or drvm is interrupted or
        killed, a partial image is left that the next restore of the same goes on with.
        """
        with self.made(image, progress) as made:
            self.name(made, image)
            return made.written_bytes

    def name(self, made: MadeImage, image: PlannedImage) -> None:
        """Give a whole image its own name: see ``give_name``."""
        give_name(made.path, image.path)
        self._trace(f"image-named-{image.disk.target}")

    @contextlib.contextmanager
    def made(self, image: PlannedImage, progress: Progress) -> Iterator[MadeImage]:
        """The same without its own name: whole and durable under a partial one, which is gone when
        the context ends, unless it ends by what a later restore may go on after. Also what goes
        wrong inside is raised as by ``restore``."""
        try:
            with self._partial(image) as partial:
                try:
                    written = self._fill(image, partial, progress)
                except DamageFound:
                    again = in_another_generation(self._repository, image)
                    if again is None:
                        raise
                    image = again
                    written = self._fill(image, replace(partial, is_new=False), progress)
                partial.sync()
                self._trace(f"image-whole-{image.disk.target}")
                yield MadeImage(partial.path, image.disk, written)
        except HostError as error:
            raise RestoreError(
                f"disk {image.disk.target} can't be restored: {error.message}",
                hint=error.hint or f"look at the room and the health of {image.path.parent}",
            ) from None

    @contextlib.contextmanager
    def _partial(self, image: PlannedImage) -> Iterator[Partial]:
        path, target = image.partial, image.disk.target
        what = image.format, image.size_bytes, self._tool
        partial = taken_over(path, *what, self._clock)
        if partial is not None:
            self._trace(f"image-taken-over-{target}")
        else:
            free = partial_name(image.path) if os.path.lexists(path) else path
            partial = new_partial(free, *what, image.options)
            self._trace(f"image-made-{target}")
        try:
            yield partial
        except PASSING as error:
            if partial.path != path:
                partial.remove()
            elif isinstance(error, DrvmError) and GOES_ON not in error.hint:
                error.hint = f"{error.hint}; {GOES_ON}" if error.hint else GOES_ON
            raise
        except BaseException:
            partial.remove()
            raise
        else:
            partial.remove()
        finally:
            partial.release()

    def turn_back(self, image: PlannedImage, progress: Progress) -> Differing:
        """Make of an image that is there, at ``image.path``, what the point says, by writing what
        differs. Durable when it returns; no QEMU can open it for writing meanwhile.

        Raises ``DamageFound`` and ``RestoreError``; then, as after a crash, the image is half of
        the one and half of the other, and this may be done again.
        """
        title = f"turning back {image.disk.target}"

        def attempt(image: PlannedImage) -> Differing:
            with self._opened(image.path, image, locked=True) as (writers, there):
                done = self._complete(image, title, writers, there, progress)
                self._trace(f"image-written-{image.disk.target}")
                writers.flush()
                self._trace(f"image-durable-{image.disk.target}")
                return done

        try:
            try:
                return attempt(image)
            except DamageFound:
                again = in_another_generation(self._repository, image)
                if again is None:
                    raise
                return attempt(again)
        except HostError as error:
            raise RestoreError(
                f"disk {image.disk.target} can't be turned back: {error.message}",
                hint=error.hint or f"look at the health of {image.path}",
            ) from None

    def compare(self, image: PlannedImage, progress: Progress) -> int:
        """How many bytes of the image at ``image.path`` are not the point's, in whole blocks.
        Changes nothing. Raises ``DamageFound`` and ``HostError``."""
        repository, disk_map = self._repository, self._repository.disk_map(image.disk)
        progress.stage(f"comparing {image.disk.target}", disk_map.size_bytes)
        with self._opened(image.path, image, writable=False) as (_, there):
            tools = repository.hasher, repository.tables, there, progress.advance
            with closing(differences(disk_map, *tools)) as found:
                return sum(difference.differing_bytes for difference in found)

    def _fill(self, image: PlannedImage, partial: Partial, progress: Progress) -> int:
        """Returns the bytes written."""
        disk_map = self._repository.disk_map(image.disk)
        with self._opened(partial.path, image) as (writers, held_there):
            if partial.is_new:
                progress.stage(f"restoring {image.disk.target}", mapped_bytes(disk_map))
                written = write_disk(
                    disk_map,
                    self._repository.packs,
                    self._repository.hasher,
                    self._begun(writers, image),
                    progress=progress.advance,
                )
            else:
                title = f"going on with {image.disk.target}"
                written = self._complete(image, title, writers, held_there, progress).written_bytes
            self._trace(f"image-written-{image.disk.target}")
            writers.flush()
        return written

    def _complete(
        self,
        image: PlannedImage,
        title: str,
        writers: Writers,
        there: HeldDisk,
        progress: Progress,
    ) -> Differing:
        """Write what differs."""
        repository, disk_map = self._repository, self._repository.disk_map(image.disk)
        progress.stage(title, disk_map.size_bytes + mapped_bytes(disk_map))
        found = differences(disk_map, repository.hasher, repository.tables, there, progress.advance)
        rest_bytes = image.size_bytes - disk_map.size_bytes
        if rest_bytes:  # of the last sector
            writers.zero(disk_map.size_bytes, rest_bytes)
        with closing(found):
            return write_differing(
                disk_map,
                repository.packs,
                repository.hasher,
                found,
                self._begun(writers, image),
                writers.zero,
                progress=progress.advance,
            )

    def _begun(self, writers: Writers, image: PlannedImage) -> Callable[[int, memoryview], None]:
        step = f"image-begun-{image.disk.target}"
        return at_first_write(writers.write, lambda: self._trace(step))

    @contextlib.contextmanager
    def _opened(
        self, path: Path, image: PlannedImage, *, writable: bool = True, locked: bool = False
    ) -> Iterator[tuple[Writers, HeldDisk]]:
        """To write an image that is at ``path``, and to read what it holds. ``locked``: against
        every QEMU, where no server does it."""
        with ExitStack() as stack:
            open_writer: Callable[[], BlockWriter]
            open_reader: Callable[[], BlockReader]
            if image.format == "raw":
                if locked:
                    stack.enter_context(write_locked(path))
                open_writer = partial(RawFileWriter, path, image.size_bytes)
                open_reader = partial(RawFileReader, path, image.size_bytes)
                extents = partial(raw_extents, path, image.size_bytes)
            else:
                export = NbdExport(
                    self._processes, path, image.format, writable=writable, clock=self._clock
                )
                socket = stack.enter_context(export).socket
                open_writer, open_reader = partial(NbdWriter, socket), partial(NbdReader, socket)
                extents = partial(nbd_extents, socket)
            writers = stack.enter_context(closing(Writers(open_writer)))
            there = HeldDisk(open_reader, extents, image.disk.size_bytes)
            yield writers, stack.enter_context(closing(there))


def in_another_generation(repository: Repository, image: PlannedImage) -> PlannedImage | None:
    """The same disk in another generation of its point, if there is one."""
    vm_uuid, point_id = image.point or ("", "")
    listed = repository.points(vm_uuid).points if image.point is not None else ()
    for disk in (d for point in listed if point.id == point_id for d in point.manifest.streams):
        same = (disk.target, disk.size_bytes) == (image.disk.target, image.disk.size_bytes)
        if same and disk.root != image.disk.root:
            return replace(image, disk=disk)
    return None
