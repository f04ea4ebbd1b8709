"""A frozen disk that is an image file or block device of this host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError
from drvm.core.extents import Extent, cover
from drvm.host.disks import BlockReader, ImageInfo
from drvm.host.nbd import NbdReader, nbd_extents
from drvm.host.rawfile import RawFileReader, raw_extents
from drvm.snapshot.changes import combine
from drvm.snapshot.reading import Reading

# longer than the kernel's coarse clock, by which files are stamped, stands still
_CLOCK_TICK_S = 0.02

Stamp = tuple[int, ...]


class ChangeGuard:
    """Knows whether somebody wrote to one of ``paths`` since it was made.

    For files by size and time of modification; for block devices by the kernel's count of
    sectors written. A write later than the guard always changes one of them.
    """

    def __init__(self, paths: Sequence[Path], clock: Clock) -> None:
        self._paths = tuple(paths)
        self._stamps = self._look()
        clock.sleep(_CLOCK_TICK_S)
        self.check()

    def check(self) -> None:
        """Raises ``CaptureError`` if what was read may belong to two instants."""
        for path, before, now in zip(self._paths, self._stamps, self._look(), strict=True):
            if before != now:
                raise CaptureError(
                    f"{path} was written to while it was being read",
                    hint="the machine was started, or another program works on its disks; "
                    "try again",
                )

    def _look(self) -> tuple[Stamp, ...]:
        try:
            return tuple(_stamp(path) for path in self._paths)
        except OSError as problem:
            raise CaptureError(f"an image can't be looked at: {problem}") from None


class FrozenImage:
    """Implements ``FrozenDisk``. ``socket`` is that of an export of the image; raw images
    without one are read as files. ``changes``: what was written to since the parent point, as
    ``combine`` takes it, where that is known. ``own``: the machine's image, where ``info`` is that
    of an overlay on it."""

    def __init__(
        self,
        target: str,
        info: ImageInfo,
        guard: ChangeGuard,
        *,
        reading: Reading,
        socket: Path | None,
        method: str,
        changes: Sequence[Extent] | None = None,
        own: ImageInfo | None = None,
    ) -> None:
        self.target = target
        self.size_bytes = info.virtual_size_bytes
        self.format = (own or info).format
        self.image_options: Mapping[str, str] = (own or info).options
        self.method = method
        self._path = info.path
        self._socket = socket
        self._guard = guard
        self._reading = reading
        self._changes = changes

    def extents(self) -> Iterator[Extent]:
        if self._socket is None:
            found = raw_extents(self._path, self.size_bytes)
        else:
            found = nbd_extents(self._socket)
        if self._changes is not None:
            found = combine(found, self._changes, self.size_bytes)
        yield from cover(found, self.size_bytes)
        self._reading.still_frozen()
        self._guard.check()

    def open(self) -> BlockReader:
        inner: BlockReader
        if self._socket is None:
            inner = RawFileReader(self._path, self.size_bytes)
        else:
            inner = NbdReader(self._socket)
        return _GuardedReader(inner, self._guard, self._reading)


class _GuardedReader:
    """Gives no byte away before it has seen that the image is still the same, and the capture
    not given up."""

    def __init__(self, inner: BlockReader, guard: ChangeGuard, reading: Reading) -> None:
        self._inner = inner
        self._guard = guard
        self._reading = reading

    def read_into(self, offset: int, target: memoryview) -> None:
        self._reading.pace.wait(len(target))
        self._inner.read_into(offset, target)
        self._reading.still_frozen()
        self._guard.check()

    def close(self) -> None:
        self._inner.close()


def sectors_written(status: os.stat_result) -> int | None:
    """To a block device since the host was started, by the kernel's count; ``None`` for a file."""
    if not stat.S_ISBLK(status.st_mode):
        return None
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return int((Path("/sys/dev/block") / device / "stat").read_text().split()[6])


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    written = sectors_written(status)
    if written is not None:
        return (status.st_rdev, written)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
