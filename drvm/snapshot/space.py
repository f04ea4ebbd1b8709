"""Room for what a guest writes during a capture: asked for before, watched while it is needed.

The guest writes to files of ours. Where they can't grow any more, QEMU pauses it. What is in them
has to go into the images at the end, which then grow too: so as much as is in them must stay free,
and a reserve for what is written until the end. See ``docs/adr/020-room-for-overlays.md``.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from drvm.core.errors import CaptureError, DrvmError, Interrupted, OutOfSpace
from drvm.core.threads import in_context
from drvm.core.units import format_bytes
from drvm.snapshot.journal import Entry, Journal

_POLL_S = 0.25
_STAT_BLOCK_BYTES = 512
_HINT = (
    "make room there, or back up when the guest writes less; overlay_reserve in the config says"
    " how much must stay free"
)


@dataclass(frozen=True, slots=True)
class Growth:
    """A file of ours that grows as the guest writes. What is in it goes ``into`` that image at
    the end; ``None``: nowhere."""

    path: Path
    into: Path | None = None
    into_format: str = "qcow2"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """``owed_bytes``: what images in it will at most grow by when overlays go into them."""

    directory: Path
    free_bytes: int
    owed_bytes: int = 0


def growths(entry: Entry) -> Iterator[Growth]:
    for disk in (*entry.disks, *entry.standing):
        into = Path(disk.base) if disk.base_kind == "file" else None
        yield Growth(Path(disk.overlay), into, disk.base_format)
    if entry.pull is not None:
        yield from (Growth(Path(scratch)) for scratch in entry.pull.scratches.values())


def measure(files: Iterable[Growth]) -> dict[int, FileSystem]:
    """The file systems of ``files`` and of the images that they go into, by device number. Files
    that are not there yet are empty. Raises ``OSError``."""
    directories: dict[int, Path] = {}
    owed: dict[int, int] = {}
    for growth in files:
        device = growth.path.parent.stat().st_dev
        directories.setdefault(device, growth.path.parent)
        image = None if growth.into is None else growth.into.stat()
        if growth.into is not None and image is not None and stat.S_ISREG(image.st_mode):
            directories.setdefault(image.st_dev, growth.into.parent)
            owing = allocated_bytes(growth.path)
            if growth.into_format == "raw":
                owing = min(owing, max(0, image.st_size - image.st_blocks * _STAT_BLOCK_BYTES))
            owed[image.st_dev] = owed.get(image.st_dev, 0) + owing
    return {
        device: FileSystem(directory, free_bytes(directory), owed.get(device, 0))
        for device, directory in directories.items()
    }


class Room:
    """What all captures of ``journal`` together need, and at least ``reserve_bytes`` free on every
    file system in which their files grow."""

    def __init__(self, journal: Journal, reserve_bytes: int) -> None:
        self._journal = journal
        self._reserve_bytes = reserve_bytes

    def require(self, entry: Entry) -> None:
        """Before anything is made. Raises ``OutOfSpace``."""
        short = self.shortage(entry)
        if short:
            raise OutOfSpace(
                f"{short}; what the guest writes during a backup must fit there", hint=_HINT
            )

    def shortage(self, entry: Entry, *, committing: bool = False) -> str:
        """In words where room is short for the capture of ``entry``; empty where it is not. While
        overlays go into their images, what they owe is being paid: then the reserve alone counts.
        """
        own = list(growths(entry))
        try:
            wanted = measure(own)
            found = measure([*own, *self._others(entry)])
        except OSError as problem:
            return f"the overlays can't be looked at: {problem.strerror or problem}"
        for device in wanted:
            place = found[device]
            owed_bytes = 0 if committing else place.owed_bytes
            if place.free_bytes < owed_bytes + self._reserve_bytes:
                words = f"{place.directory} has {format_bytes(place.free_bytes)} left"
                owed = f"{format_bytes(owed_bytes)} to merge overlays and " if owed_bytes else ""
                return f"{words}, and needs {owed}{format_bytes(self._reserve_bytes)} in reserve"
        return ""

    def _others(self, entry: Entry) -> Iterator[Growth]:
        """Of captures that other threads and processes do, or did when they were killed. What
        stands between captures is not about to be merged."""
        for uuid in self._journal.machines():
            try:
                other = None if uuid == entry.vm_uuid else self._journal.read(uuid)
            except (CaptureError, OSError):
                continue  # not understood, or gone: it can't be counted
            for growth in () if other is None or other.at_rest else growths(other):
                if growth.path.exists() and (growth.into is None or growth.into.exists()):
                    yield growth


class SpaceWatch:
    """Gives a capture up when something threatens its guest.

    While the context lasts a thread asks ``trouble`` a few times a second. At the first words that
    it says, ``still_frozen`` raises from then on, in every thread; only then ``release`` is called,
    by the watch's own thread: the guest is helped although the capture's own thread may hang in
    an upload. What ``release`` returns is told in the error; what it raises is not, the end of
    the capture calls it again.

    A capture that was given up leaves the context with ``OutOfSpace``, in place of any other
    ``DrvmError`` but ``Interrupted``. Leaving waits for ``release``. ``trouble`` may raise
    ``Interrupted``, where an end is wanted: then that takes the place of ``OutOfSpace``.
    """

    def __init__(
        self, vm: str, trouble: Callable[[], str], release: Callable[[], Iterable[str]]
    ) -> None:
        self._vm = vm
        self._trouble = trouble
        self._release = release
        self._reason = ""
        self._notes: tuple[str, ...] = ()
        self._is_wanted = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=in_context(self._watch), name="space", daemon=True)

    def still_frozen(self) -> None:
        if self._reason:
            raise self._error()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        own = isinstance(error, DrvmError) and not isinstance(error, Interrupted)
        if self._reason and (error is None or own):
            raise self._error() from error

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                reason = self._trouble()
            except Interrupted as error:
                reason, self._is_wanted = error.message, True
            if reason:
                self._reason = reason
                try:
                    self._notes = tuple(self._release())
                except DrvmError:
                    return
                return

    def _error(self) -> DrvmError:
        reasons = "; ".join([self._reason, *self._notes])
        words = f"the backup of {self._vm} was given up: {reasons}"
        return Interrupted(words) if self._is_wanted else OutOfSpace(words, hint=_HINT)


def allocated_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * _STAT_BLOCK_BYTES
    except FileNotFoundError:
        return 0


def free_bytes(directory: Path) -> int:
    """For users other than root, as QEMU is one."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
