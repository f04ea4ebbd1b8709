"""The engine for images that belong to no machine of this host."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError
from drvm.core.pace import Pace
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.host.images import FORMATS, ImageTool, in_use, is_block_device
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.snapshot.checkpoints import Image
from drvm.snapshot.parts import readable
from drvm.snapshot.reading import Reading

_FORMATS = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}
_QCOW2_MAGIC = b"QFI\xfb"
_NAMESPACE = uuid.UUID("8f6a2c1e-5d0b-5c5e-9a34-6d72766d0001")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """``format`` is ``None`` where the file's suffix is to say it."""

    path: Path
    format: str | None = None


class ImageFilesEngine:
    """Captures ``files`` as the disks ``disk0``, ``disk1``, ... of a machine that is called as
    the request says; one name has one UUID for ever. Nothing is made and nothing is locked."""

    name = "images"

    def __init__(
        self,
        images: ImageTool,
        processes: Processes,
        clock: Clock,
        files: Sequence[ImageFile],
        trace: Trace = no_trace,
    ) -> None:
        self._images = images
        self._processes = processes
        self._clock = clock
        self._files = tuple(files)
        self._trace = trace

    @contextlib.contextmanager
    def capture(self, request: CaptureRequest) -> Iterator[FrozenMachine]:
        with contextlib.ExitStack() as exports:
            images = tuple(
                Image(f"disk{number}", self._images.chain(file.path.absolute(), _format(file)))
                for number, file in enumerate(self._files)
                if f"disk{number}" not in request.exclude_disks
            )
            if not images:
                raise CaptureError("there is no image to capture")
            reading = Reading(Pace(request.read_bandwidth_mib_s, self._clock))
            disks = readable(images, self._processes, self._clock, exports, reading)
            taken_at = self._clock.now()
            for image in images:
                if in_use(image.info.path):
                    raise CaptureError(
                        f"{image.info.path} is in use",
                        hint="back the running machine up by its name instead",
                    )
            self._trace("reading")
            yield FrozenMachine(
                name=request.vm,
                uuid=machine_uuid(request.vm),
                taken_at=taken_at,
                consistency="offline",
                engine=self.name,
                disks=disks,
            )


def machine_uuid(name: str) -> str:
    """One name is one machine for ever, on whichever host its images lie."""
    return str(uuid.uuid5(_NAMESPACE, name))


def _format(file: ImageFile) -> str:
    """Said, or by the suffix; what the file holds decides nothing. But a qcow2 that would be
    read as a raw disk is surely a mistake."""
    if not file.path.exists():
        raise CaptureError(f"there is no image {file.path}", hint="check its path")
    hint = "say what it is: --format raw or --format qcow2"
    block = is_block_device(file.path)
    if not block and not file.path.is_file():
        raise CaptureError(
            f"{file.path} is neither a file nor a block device", hint="name the image file itself"
        )
    found = file.format or ("raw" if block else _FORMATS.get(file.path.suffix.lower()))
    if found not in FORMATS:
        raise CaptureError(f"the format of {file.path} is not known", hint=hint)
    if found == "raw" and file.format is None:
        with file.path.open("rb") as stream:
            if stream.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC:
                raise CaptureError(f"{file.path} is named like a raw image, and is none", hint=hint)
    return found
