"""Where the parts of a machine are that comes as OVF: beside the description, or in an OVA, which
is a tar archive of the same. Nothing is unpacked."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from drvm.core.errors import UsageError
from drvm.core.progress import Progress
from drvm.core.text import printable
from drvm.core.units import MIB
from drvm.host.foreign import SUFFIXES, ForeignImage
from drvm.host.images import Part
from drvm.restore.export import digests
from drvm.restore.export.appliance import Appliance, read_appliance
from drvm.restore.export.digests import Digest
from drvm.restore.machine.source import MAX_BYTES

_MAX_MEMBERS = 1000
_MAX_HEADER_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Package:
    """``images``: of the appliance's files, in their order. ``digests``: of what the manifest of
    the package names, as far as that is its description or an image: where it is, and what it
    must be."""

    appliance: Appliance
    images: tuple[ForeignImage, ...]
    digests: Mapping[str, tuple[_Place, Digest]]

    def check(self, progress: Progress) -> None:
        """Is everything what the manifest says? Nothing where there is none. Raises
        ``UsageError``."""
        total_bytes = sum(place.size_bytes() for place, _ in self.digests.values())
        if self.digests:
            progress.stage("comparing with the manifest", total_bytes)
        for name, (place, digest) in self.digests.items():
            with place.opened() as stream:
                part = Part(place.offset, place.size_bytes())
                digests.compare(name, stream, part, digest, progress)


def is_package(path: Path) -> bool:
    return path.suffix.lower() in (".ovf", ".ova")


def open_package(path: Path) -> Package:
    """``path`` is absolute. Raises ``UsageError`` and ``RestoreError``; the images are not looked
    at."""
    if path.suffix.lower() == ".ovf":
        described, beside = path.name, path.with_suffix(".mf")
        found = {described: _Place(path)}
        if os.path.lexists(beside):
            found[beside.name] = _Place(beside)
        appliance = read_appliance(found[described].text())
        found |= {name: _Place(path.parent / name) for name in appliance.files}
    else:
        found = {name: _Place(path, part) for name, part in _members(path).items()}
        names = [name for name in found if name.lower().endswith(".ovf")]
        if len(names) != 1:
            raise UsageError(f"{path} has not exactly one OVF in it", hint="is it an OVA?")
        described = names[0]
        appliance = read_appliance(found[described].text())
    images = tuple(_image(found, name) for name in appliance.files)
    manifest = found.get(str(Path(described).with_suffix(".mf")))
    told = digests.read(manifest.text()) if manifest is not None else {}
    names = [name for name in (described, *appliance.files) if name in told]
    wanted = {name: (found[name], told[name]) for name in names}
    return Package(appliance, images, wanted)


@dataclass(frozen=True, slots=True)
class _Place:
    """A file, or a part of one."""

    path: Path
    part: Part | None = None

    @property
    def offset(self) -> int:
        return self.part.offset if self.part is not None else 0

    def size_bytes(self) -> int:
        if self.part is not None:
            return self.part.size_bytes
        with self.opened() as stream:
            return os.fstat(stream.fileno()).st_size

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb", opener=_plainly) as stream:
                yield stream
        except OSError as error:
            raise UsageError(f"{self.path} can't be read: {error.strerror}") from None

    def text(self) -> str:
        """At most one byte more than an OVF may have, as text."""
        with self.opened() as stream:
            stream.seek(self.offset)
            data = stream.read(min(self.size_bytes(), MAX_BYTES + 1))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UsageError(f"{self.path} is not UTF-8", hint="convert it, then import") from None


def _image(found: Mapping[str, _Place], name: str) -> ForeignImage:
    place, image_format = found.get(name), SUFFIXES.get(Path(name).suffix.lower())
    if place is None:
        raise UsageError(f"the OVF names a file that is not there: {name}")
    if image_format is None:
        raise UsageError(
            f"what {name} is can't be told by its name",
            hint=f"drvm reads {', '.join(sorted(SUFFIXES))}",
        )
    return ForeignImage(place.path, image_format, place.part)


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


def _plainly(path: str, flags: int) -> int:
    """No pipe is waited for, and no link followed."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a file")
    return descriptor
