"""The engine for images of other hypervisors, which may be hostile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError, HostError
from drvm.core.extents import ExtentKind
from drvm.core.pace import Pace
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.core.units import format_bytes
from drvm.host.disks import ImageInfo
from drvm.host.foreign import LIMITS, ForeignImage, examine
from drvm.host.images import in_use
from drvm.host.nbd import NbdExport
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.snapshot.frozen import ChangeGuard, FrozenImage
from drvm.snapshot.imagefiles import ImageFilesEngine, machine_uuid
from drvm.snapshot.reading import Reading

_METHOD = "full-read"
_MAX_EXTENTS = 1 << 24
"""Of 128 KiB each, 2 TiB where every other grain of a VMDK is there."""
_PLAIN = frozenset({"raw", "vhdx"})
_MOST_TIMES = 1100
"""deflate makes 1032 bytes of one at most (zlib's technical details)."""


@dataclass(frozen=True, slots=True)
class Import:
    """``images``: by target. ``definition_xml``: of a machine around them, ``None`` for images
    only."""

    images: Mapping[str, ForeignImage]
    definition_xml: str | None = None


class ImportEngine:
    """Captures images as the disks of a machine that is called as the request says; one name has
    one UUID for ever, the same as of ``ImageFilesEngine``. Nothing is made and nothing is locked;
    whatever is written to meanwhile is an error."""

    name = ImageFilesEngine.name

    def __init__(
        self,
        what: Import,
        processes: Processes,
        clock: Clock,
        trace: Trace = no_trace,
    ) -> None:
        self._what = what
        self._processes = processes
        self._clock = clock
        self._trace = trace

    def look(self) -> dict[str, ImageInfo]:
        """What would be captured. Raises ``HostError``."""
        found = {target: examine(one, self._processes) for target, one in self._what.images.items()}
        if not found:
            raise CaptureError("there is no image to import")
        return found

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        reading = Reading(Pace(request.read_bandwidth_mib_s, self._clock))
        with contextlib.ExitStack() as exports:
            disks = tuple(
                self._disk(target, info, exports, reading) for target, info in self.look().items()
            )
            taken_at = self._clock.now()
            for target, image in self._what.images.items():
                if in_use(image.path):
                    raise CaptureError(f"{image.path} ({target}) is in use")
            self._trace("reading")
            yield FrozenMachine(
                name=request.vm,
                uuid=machine_uuid(request.vm),
                taken_at=taken_at,
                consistency="offline",
                engine=self.name,
                disks=disks,
                definition_xml=self._what.definition_xml,
            )

    def _disk(
        self, target: str, info: ImageInfo, exports: contextlib.ExitStack, reading: Reading
    ) -> FrozenImage:
        image = self._what.images[target]
        guard = ChangeGuard([info.path], self._clock)
        export = NbdExport(
            self._processes,
            info.path,
            info.format,
            part=image.part,
            limits=LIMITS,
            clock=self._clock,
        )
        disk = FrozenImage(
            target,
            info,
            guard,
            reading=reading,
            socket=exports.enter_context(export).socket,
            method=_METHOD,
            own=replace(info, format="raw" if info.format == "raw" else "qcow2"),
        )
        _check_honest(disk, info)
        return disk


def _check_honest(disk: FrozenImage, info: ImageInfo) -> None:
    """A table of a small file may point to one compressed grain for ever, so that reading it never
    ends. Raises ``HostError``. QEMU does not tell which blocks of a VHDX are there; none is
    compressed, so what is not there reads as fast as memory."""
    data_bytes = 0
    for number, extent in enumerate(disk.extents()):
        data_bytes += extent.length if extent.kind is ExtentKind.DATA else 0
        if number >= _MAX_EXTENTS:
            raise HostError(f"{info.path} says that it has more than {_MAX_EXTENTS} ranges")
    if info.format not in _PLAIN and data_bytes > _MOST_TIMES * info.allocated_bytes:
        raise HostError(
            f"{info.path} has {format_bytes(info.allocated_bytes)} and says that it holds "
            f"{format_bytes(data_bytes)} of data: no honest image does"
        )
