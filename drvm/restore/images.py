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
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import HostError, RestoreError
from drvm.core.files import sync_directory
from drvm.core.process import Processes
from drvm.core.progress import Progress
from drvm.host.images import ImageTool
from drvm.host.model import BlockWriter
from drvm.host.nbd import NbdExport, NbdWriter
from drvm.host.rawfile import RawFileWriter
from drvm.repository.manifest import Disk
from drvm.repository.reader import read_disk, stored_bytes
from drvm.repository.repository import Repository

SECTOR_BYTES = 512
_PARTIAL = ".drvm-partial"


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """``path`` is absolute and does not exist yet; ``format`` is ``raw`` or ``qcow2``."""

    disk: Disk
    path: Path
    format: str

    @property
    def size_bytes(self) -> int:
        """The guest's disk in whole sectors: QEMU knows no other sizes."""
        return -(-self.disk.size_bytes // SECTOR_BYTES) * SECTOR_BYTES


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
        """
        try:
            return self._restore(image, progress)
        except HostError as error:
            raise RestoreError(
                f"disk {image.disk.target} can't be restored: {error.message}",
                hint=error.hint or f"look at the room and the health of {image.path.parent}",
            ) from None

    def _restore(self, image: PlannedImage, progress: Progress) -> int:
        partial = image.path.with_name(f".{image.path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        options = image.disk.image_options if image.disk.format == image.format else {}
        self._tool.create_image(partial, image.format, image.size_bytes, options)
        try:
            with _held(partial):
                written = self._fill(image, partial, progress)
            _give_name(partial, image.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        return written

    def _fill(self, image: PlannedImage, path: Path, progress: Progress) -> int:
        disk_map = self._repository.disk_map(image.disk)
        progress.stage(f"restoring {image.disk.target}", stored_bytes(disk_map))
        written = 0
        with self._writer(path, image) as writer:
            parts = read_disk(disk_map, self._repository.packs, self._repository.hasher)
            for offset, data in parts:
                writer.write(offset, data)
                written += len(data)
                progress.advance(len(data))
            writer.flush()
        return written

    @contextlib.contextmanager
    def _writer(self, path: Path, image: PlannedImage) -> Iterator[BlockWriter]:
        with ExitStack() as stack:
            writer: BlockWriter
            if image.format == "raw":
                writer = RawFileWriter(path, image.size_bytes)
            else:
                export = NbdExport(
                    self._processes, path, image.format, writable=True, clock=self._clock
                )
                writer = NbdWriter(stack.enter_context(export).socket)
            stack.callback(writer.close)
            yield writer


def sweep_partial(directory: Path) -> list[Path]:
    """Remove partial images that nobody writes any more; returns what was removed."""
    removed = []
    for path in sorted(directory.glob(f".*{_PARTIAL}")):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _held(path):
            path.unlink()
            removed.append(path)
    return removed


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """A lock that ends with us, however we end: it tells a sweep that the image is in work."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_name(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path, follow_symlinks=False)
    except FileExistsError:
        raise RestoreError(f"{path} exists: it was made while the restore ran") from None
    except OSError as error:
        raise HostError(f"{path} can't be made: {error.strerror}") from None
    partial.unlink()
    sync_directory(path.parent)
