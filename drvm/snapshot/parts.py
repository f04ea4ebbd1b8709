"""What every capture engine is made of, and the parts that they share."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.host.images import ImageTool
from drvm.host.model import Host, ImageInfo
from drvm.host.nbd import NbdExport
from drvm.snapshot.capture import FrozenDisk
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.frozen import ChangeGuard, FrozenImage
from drvm.snapshot.journal import Journal
from drvm.snapshot.putback import Limits, PutBack

_MAX_NVRAM_BYTES = 64 * 1024 * 1024
_LOCAL_HOSTS = frozenset({None, "", "localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Parts:
    """What the engines work with. ``overlay_dir``: where overlays of block devices go.
    ``overlay_reserve_bytes``: room that must be free where an overlay is made."""

    host: Host
    images: ImageTool
    processes: Processes
    journal: Journal
    clock: Clock
    trace: Trace = no_trace
    limits: Limits = field(default_factory=Limits)
    overlay_dir: Path | None = None
    overlay_reserve_bytes: int = 1024 * 1024 * 1024

    def put_back(self) -> PutBack:
        return PutBack(self.host, self.images, self.journal, self.clock, self.trace, self.limits)


@dataclass(frozen=True, slots=True)
class Image:
    """One disk's images, the one that is read first."""

    target: str
    chain: tuple[ImageInfo, ...]

    @property
    def info(self) -> ImageInfo:
        return self.chain[0]


def require_local(host: Host) -> None:
    """Images are read as local files, so a capture runs on the KVM host itself."""
    if urlsplit(host.uri).hostname not in _LOCAL_HOSTS:
        raise CaptureError(
            f"the disks of {host.uri} are not on this machine",
            hint="run drvm on the KVM host itself",
        )


def freeze(
    images: Sequence[Image],
    processes: Processes,
    clock: Clock,
    stack: contextlib.ExitStack,
    method: str,
) -> tuple[FrozenDisk, ...]:
    """Readable disks of images that nobody may write to from now on; exports end with ``stack``.

    No lock keeps a writer away, as it would keep a guest from starting. Instead every read, and
    the end of the extents, looks whether any image of the chain was written to since this call,
    and raises ``CaptureError`` if one was: what has been read without error is one instant.
    """
    disks: list[FrozenDisk] = []
    for image in images:
        guard = ChangeGuard([layer.path for layer in image.chain], clock)
        socket = None
        if image.info.format != "raw":
            export = NbdExport(processes, image.info.path, image.info.format)
            socket = stack.enter_context(export).socket
        disks.append(FrozenImage(image.target, image.info, guard, socket=socket, method=method))
    return tuple(disks)


def read_nvram(path: Path | None) -> bytes | None:
    """``None`` where the machine has none, or has not been started yet."""
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise CaptureError(f"the NVRAM {path} can't be read: {problem.strerror}") from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CaptureError(f"the NVRAM {path} is not a file")
        data = stream.read(_MAX_NVRAM_BYTES + 1)
    if len(data) > _MAX_NVRAM_BYTES:
        raise CaptureError(f"the NVRAM {path} has more than {_MAX_NVRAM_BYTES} bytes")
    return data


def state_warnings(machine: Machine) -> list[str]:
    words = {
        "tpm": "the state of its emulated TPM is not captured",
        "nvram": "its UEFI variables are not in a local file and are not captured",
    }
    return [words[name] for name in machine.special]
