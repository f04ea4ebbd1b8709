"""Disks that a machine's own QEMU serves as they were when its pull backup began."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError, DrvmError, HostError
from drvm.core.extents import Extent, cover
from drvm.host.disks import ImageInfo
from drvm.host.model import Domain, DomainState
from drvm.host.nbd import NbdReader, nbd_changes, nbd_extents
from drvm.snapshot.capture import FrozenDisk
from drvm.snapshot.changes import agreed, bounded, combine
from drvm.snapshot.checkpoints import Hint, Image
from drvm.snapshot.reading import Reading

_LOOKS = 10
_PAUSE_S = 0.2


def pulled(
    domain: Domain,
    images: Sequence[Image],
    socket: Path,
    hints: Mapping[str, Hint],
    reading: Reading,
    clock: Clock,
) -> tuple[FrozenDisk, ...]:
    """Readable disks, each an export that is called as its target. What its hint's bitmap marks is
    read now; where it can't be, the whole disk will be. Raises ``HostError`` where a disk is not
    served, ``CaptureError`` where it is served in another size than its image has."""
    disks: list[FrozenDisk] = []
    lost = _Lost(domain, clock)
    for image in images:
        reader = NbdReader(socket, image.target)
        size_bytes = reader.size_bytes
        reader.close()
        if size_bytes != image.info.virtual_size_bytes:
            raise CaptureError(f"{image.target} was resized a moment ago", hint="try again")
        hint, changes = hints[image.target], None
        if hint.bitmap is not None:
            try:
                found = nbd_changes(socket, hint.bitmap, image.target)
                changes = bounded(found, "it marks")
            except HostError as problem:
                hint = Hint(doubt=f"the bitmap can't be read: {problem.message}")
        disks.append(PulledDisk(image.target, image.info, socket, hint, changes, reading, lost))
    return tuple(disks)


class PulledDisk:
    """Implements ``FrozenDisk``."""

    def __init__(
        self,
        target: str,
        info: ImageInfo,
        socket: Path,
        hint: Hint,
        changes: Sequence[Extent] | None,
        reading: Reading,
        lost: _Lost,
    ) -> None:
        self.target = target
        self.size_bytes = info.virtual_size_bytes
        self.format = info.format
        self.image_options: Mapping[str, str] = info.options
        self.method = hint.method
        self._lost = lost
        self._socket = socket
        self._changes = changes
        self._reading = reading

    def extents(self) -> Iterator[Extent]:
        """Asked twice. An answer of QEMU's about one range is put together from two images, the
        scratch file and below it the guest's own. If the guest zeroes the range between these two
        looks, it may be told as zeroes though it was not; but then its old bytes are in the scratch
        file before the answer is given, and the second answer tells them."""
        try:
            first = list(nbd_extents(self._socket, self.target))
            second = list(nbd_extents(self._socket, self.target))
        except HostError as problem:
            raise self._lost.error(problem) from None
        found = agreed(first, second, self.size_bytes)
        if self._changes is not None:
            found = combine(found, self._changes, self.size_bytes)
        yield from cover(found, self.size_bytes)
        self._reading.still_frozen()

    def open(self) -> _PulledReader:
        try:
            inner = NbdReader(self._socket, self.target)
        except HostError as problem:
            raise self._lost.error(problem) from None
        return _PulledReader(inner, self._reading, self._lost)


class _PulledReader:
    """Implements ``BlockReader``. A read that QEMU answers is one of the instant."""

    def __init__(self, inner: NbdReader, reading: Reading, lost: _Lost) -> None:
        self._inner = inner
        self._reading = reading
        self._lost = lost

    def read_into(self, offset: int, target: memoryview) -> None:
        self._reading.pace.wait(len(target))
        try:
            self._inner.read_into(offset, target)
        except HostError as problem:
            raise self._lost.error(problem) from None
        self._reading.still_frozen()

    def close(self) -> None:
        self._inner.close()


class _Lost:
    """What has ended an export, as far as libvirt tells. It learns of a QEMU's death a moment
    later than whoever reads."""

    def __init__(self, domain: Domain, clock: Clock) -> None:
        self._domain = domain
        self._clock = clock

    def error(self, problem: HostError) -> CaptureError:
        domain, ended = self._domain, False
        with contextlib.suppress(DrvmError):
            for _ in range(_LOOKS):
                if domain.state() not in (DomainState.RUNNING, DomainState.PAUSED):
                    return CaptureError(
                        f"{domain.name} was switched off, or its QEMU died, while it was read",
                        hint="take the point anew: of a machine that is off, the images are read",
                    )
                ended = domain.domain_job() is None
                self._clock.sleep(_PAUSE_S)
        if ended:
            return CaptureError(
                f"somebody ended the backup job of {domain.name} while it was read",
                hint="try again",
            )
        return CaptureError(f"{domain.name} can't be read any more: {problem.message}")
