"""Where the parts of a machine are that comes as OVF: beside the description, or in an OVA, which
is a tar archive of the same. Nothing is unpacked."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from drvm.core.errors import UsageError
from drvm.core.text import printable
from drvm.core.units import MIB
from drvm.host.foreign import SUFFIXES, ForeignImage
from drvm.host.images import Part
from drvm.restore.export.appliance import Appliance, read_appliance
from drvm.restore.source import MAX_BYTES

_MAX_MEMBERS = 1000
_MAX_HEADER_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Package:
    """``images``: of the appliance's files, in their order."""

    appliance: Appliance
    images: tuple[ForeignImage, ...]


def is_package(path: Path) -> bool:
    return path.suffix.lower() in (".ovf", ".ova")


def open_package(path: Path) -> Package:
    """``path`` is absolute. Raises ``UsageError`` and ``RestoreError``; the images are not looked
    at."""
    if path.suffix.lower() == ".ovf":
        appliance = read_appliance(_text(_read(path, None)))
        found = {name: ForeignImage(path.parent / name, "", None) for name in appliance.files}
    else:
        members = _members(path)
        described = [name for name in members if name.lower().endswith(".ovf")]
        if len(described) != 1:
            raise UsageError(f"{path} has not exactly one OVF in it", hint="is it an OVA?")
        appliance = read_appliance(_text(_read(path, members[described[0]])))
        found = {name: ForeignImage(path, "", part) for name, part in members.items()}
    return Package(appliance, tuple(_image(found, name) for name in appliance.files))


def _image(found: Mapping[str, ForeignImage], name: str) -> ForeignImage:
    image, image_format = found.get(name), SUFFIXES.get(Path(name).suffix.lower())
    if image is None:
        raise UsageError(f"the OVF names a file that is not there: {name}")
    if image_format is None:
        raise UsageError(
            f"what {name} is can't be told by its name",
            hint=f"drvm reads {', '.join(sorted(SUFFIXES))}",
        )
    return ForeignImage(image.path, image_format, image.part)


def _members(path: Path) -> dict[str, Part]:
    """The plain files of the archive. Everything else in it is passed over."""
    found: dict[str, Part] = {}
    try:
        with open(path, "rb", opener=_plainly) as stream:
            bounded = cast(BinaryIO, _Bounded(stream))
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                for number, member in enumerate(archive):
                    if number >= _MAX_MEMBERS:
                        raise UsageError(f"{path} has more than {_MAX_MEMBERS} members")
                    if member.isreg() and not member.issparse() and member.size >= 0:
                        if member.name in found:
                            raise UsageError(
                                f"{path} has two members called {printable(member.name, 80)}"
                            )
                        found[member.name] = Part(member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        words = printable(str(error), 200)
        raise UsageError(f"{path} can't be read as an OVA: {words}") from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    return found


class _Bounded:
    """A file whose reader can't be made to take more than headers need."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError("a header of a size that no archive has")
        return self._stream.read(size)


def _read(path: Path, part: Part | None) -> bytes:
    try:
        with open(path, "rb", opener=_plainly) as stream:
            stream.seek(part.offset if part is not None else 0)
            size_bytes = part.size_bytes if part is not None else MAX_BYTES + 1
            return stream.read(min(size_bytes, MAX_BYTES + 1))
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError("the OVF is not UTF-8", hint="convert it, then import") from None


def _plainly(path: str, flags: int) -> int:
    """No pipe is waited for, and no link followed."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a file")
    return descriptor
