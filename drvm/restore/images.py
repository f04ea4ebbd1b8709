"""Disk images brought back from the repository: made by drvm itself, empty, then filled.

An image is written under a name that nobody else uses (``.NAME.<random>.drvm-partial``), made
durable, and only then given its own name, without ever replacing a file. After a crash a partial
image is left; ``sweep_partial`` removes those whose writer is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import DamageFound, HostError, RestoreError
from drvm.core.files import sync_directory
from drvm.core.process import Processes
from drvm.core.progress import Progress
from drvm.host.disks import BlockWriter
from drvm.host.images import ImageTool
from drvm.host.nbd import NbdExport, NbdWriter
from drvm.host.rawfile import RawFileWriter
from drvm.repository.manifest import Disk, Manifest
from drvm.repository.reader import write_disk
from drvm.repository.repository import Repository
from drvm.repository.window import mapped_bytes
from drvm.restore.sinks import Writers

SECTOR_BYTES = 512
_PARTIAL = ".drvm-partial"


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """``path`` is absolute and does not exist yet; ``format`` is ``raw`` or ``qcow2``. ``point``:
    (UUID of the machine, id) of what is restored, where it may be looked up again."""

    disk: Disk
    path: Path
    format: str
    point: tuple[str, str] | None = None

    @property
    def size_bytes(self) -> int:
        """The guest's disk in whole sectors: QEMU knows no other sizes."""
        return -(-self.disk.size_bytes // SECTOR_BYTES) * SECTOR_BYTES


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

    def __init__(self, repository: Repository, processes: Processes, clock: Clock) -> None:
        self._repository = repository
        self._processes = processes
        self._clock = clock
        self._tool = ImageTool(processes)

    def restore(self, image: PlannedImage, progress: Progress) -> int:
        """Write the whole disk; returns the bytes written. Durable when it returns.

        Every block is verified. Raises ``DamageFound`` and ``RestoreError``, having left nothing.
        Where the point was written anew since it was planned, its packs may be gone: then it is
        restored from where it is now.
        """
        with self.made(image, progress) as made:
            give_name(made.path, image.path)
            return made.written_bytes

    @contextlib.contextmanager
    def made(self, image: PlannedImage, progress: Progress) -> Iterator[MadeImage]:
        """The same without its own name: whole and durable under a partial one, which is gone when
        the context ends. Also what goes wrong inside is raised as by ``restore``."""
        try:
            with ExitStack() as stack:
                try:
                    made = stack.enter_context(self._made(image, progress))
                except DamageFound:
                    again = self._as_it_is_now(image)
                    if again is None:
                        raise
                    made = stack.enter_context(self._made(again, progress))
                yield made
        except HostError as error:
            raise RestoreError(
                f"disk {image.disk.target} can't be restored: {error.message}",
                hint=error.hint or f"look at the room and the health of {image.path.parent}",
            ) from None

    def _as_it_is_now(self, image: PlannedImage) -> PlannedImage | None:
        """The same disk in another generation of the point, if there is one."""
        vm_uuid, point_id = image.point or ("", "")
        listed = self._repository.points(vm_uuid).points if image.point is not None else ()
        for disk in (d for point in listed if point.id == point_id for d in point.manifest.disks):
            same = (disk.target, disk.size_bytes) == (image.disk.target, image.disk.size_bytes)
            if same and disk.root != image.disk.root:
                return replace(image, disk=disk)
        return None

    @contextlib.contextmanager
    def _made(self, image: PlannedImage, progress: Progress) -> Iterator[MadeImage]:
        partial = partial_name(image.path)
        options = image.disk.image_options if image.disk.format == image.format else {}
        self._tool.create_image(partial, image.format, image.size_bytes, options)
        try:
            with held(partial) as descriptor:
                written = self._fill(image, partial, progress)
                os.fsync(descriptor)
                yield MadeImage(partial, image.disk, written)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()

    def _fill(self, image: PlannedImage, path: Path, progress: Progress) -> int:
        repository = self._repository
        disk_map = repository.disk_map(image.disk)
        progress.stage(f"restoring {image.disk.target}", mapped_bytes(disk_map))
        with self._writers(path, image) as writers:
            written = write_disk(
                disk_map,
                repository.packs,
                repository.hasher,
                writers.write,
                progress=progress.advance,
            )
            writers.flush()
        return written

    @contextlib.contextmanager
    def _writers(self, path: Path, image: PlannedImage) -> Iterator[Writers]:
        with ExitStack() as stack:
            open_writer: Callable[[], BlockWriter]
            if image.format == "raw":
                open_writer = partial(RawFileWriter, path, image.size_bytes)
            else:
                export = NbdExport(
                    self._processes, path, image.format, writable=True, clock=self._clock
                )
                open_writer = partial(NbdWriter, stack.enter_context(export).socket)
            yield stack.enter_context(closing(Writers(open_writer)))


def partial_name(path: Path) -> Path:
    """Where a file is made that will be called ``path``: a name that nobody else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")


def sweep_partial(directory: Path) -> list[Path]:
    """Remove partial images that nobody writes any more; returns what was removed."""
    removed = []
    for path in sorted(directory.glob(f".*{_PARTIAL}")):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), held(path):
            path.unlink()
            removed.append(path)
    return removed


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """A lock that ends with us, however we end: it tells a sweep that the image is in work. Gives
    a descriptor, for reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def give_name(partial: Path, path: Path) -> None:
    """Durable when it returns. Raises ``RestoreError`` where there is such a file, and
    ``HostError``; ``partial`` is still there then."""
    try:
        os.link(partial, path, follow_symlinks=False)
    except FileExistsError:
        raise RestoreError(f"{path} exists: it was made while the restore ran") from None
    except OSError as error:
        raise HostError(f"{path} can't be made: {error.strerror}") from None
    partial.unlink()
    sync_directory(path.parent)
