"""Images from elsewhere: hostile, and looked at before any program of QEMU's opens them.

A description of an image may name other files: extents, backing files, data files. QEMU would
open them, as whoever runs it. So the formats that can do that are read here first, as far as
needed to know that they don't.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvm.core.errors import HostError, ProcessFailed
from drvm.core.process import Processes
from drvm.core.text import printable
from drvm.core.units import GIB, MIB, TIB, format_bytes
from drvm.host.disks import ImageInfo
from drvm.host.images import FOREIGN_FORMATS, FORMATS, Part, image_options

MAX_DISK_BYTES = 64 * TIB
"""The largest disk of VMware, VirtualBox and Hyper-V alike."""
LIMITS = ("prlimit", f"--data={2 * GIB}", "--core=0", "--")
"""For whatever of QEMU opens such an image: tables of the largest honest one take 0.5 GiB."""

_SECTOR_BYTES = 512
_INFO_S = 60.0
_MAX_INFO_BYTES = MIB
_VMDK = struct.Struct("<4sII QQQQ I QQQ B4sH")
"""``SparseExtentHeader``, "Virtual Disk Format 5.0", VMware."""
_VMDK_MAGIC = b"KDMV"
_VMDK_TABLE_ENTRIES = 512
_VMDK_GRAINS = frozenset(1 << bits for bits in range(3, 12))
_VMDK_AT_END = (1 << 64) - 1
_VMDK_FOOTER_BYTES = 3 * _SECTOR_BYTES
_VMDK_DESCRIPTOR_BYTES = 64 * 1024
_VMDK_KINDS = frozenset({b"monolithicSparse", b"streamOptimized"})
_VMDK_KIND = re.compile(rb'^[ \t]*createType[ \t]*=[ \t]*"([^"\n]{0,40})"', re.MULTILINE)
_QCOW2 = struct.Struct(">4sIQIIQI")
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_FEATURES_AT = 72
_QCOW2_DATA_FILE = 1 << 2
_ONE_FILE = "export it as one file there: a stream-optimised or monolithic VMDK, or an OVA"

SUFFIXES = {
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhdx": "vhdx",
    ".qcow2": "qcow2",
    ".raw": "raw",
    ".img": "raw",
}
"""What a file's name says that it is; what it holds decides nothing."""


@dataclass(frozen=True, slots=True)
class ForeignImage:
    """A file, or, where ``part`` is given, a part of one. ``path`` is absolute."""

    path: Path
    format: str
    part: Part | None = None


def examine(image: ForeignImage, processes: Processes) -> ImageInfo:
    """What it is, if it is a disk in one piece that names no other file. Raises ``HostError``.

    The tools that look at it have limits on memory and time.
    """
    if image.format not in FORMATS | FOREIGN_FORMATS:
        raise ValueError(f"no format {image.format}")
    descriptor = _opened(image.path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise HostError(f"{image.path} is not a file", hint="name the image file itself")
        part = image.part or Part(0, status.st_size)
        if part.offset + part.size_bytes > status.st_size:
            raise HostError(f"{image.path} is cut off")
        head = os.pread(descriptor, _VMDK_DESCRIPTOR_BYTES, part.offset)
        if image.format == "vmdk":
            _check_vmdk(descriptor, part, head, image.path)
        elif image.format == "qcow2":
            _check_qcow2(head, image.path)
    finally:
        os.close(descriptor)
    return _info(image, part, processes)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        hint = "name the image file itself, and check its path"
        raise HostError(f"{path} can't be opened: {problem.strerror}", hint=hint) from None


def _check_vmdk(descriptor: int, part: Part, head: bytes, path: Path) -> None:
    """QEMU takes whatever has not this magic, or has no capacity, for a text that names files."""
    at_end = _check_vmdk_header(head, path)
    if at_end:
        footer_at = part.offset + part.size_bytes - _VMDK_FOOTER_BYTES + _SECTOR_BYTES
        if footer_at < part.offset or _check_vmdk_header(
            os.pread(descriptor, _SECTOR_BYTES, footer_at), path
        ):
            raise HostError(f"{path} has no grain directory", hint="is it complete?")
    if b"parentFileNameHint" in head:
        raise HostError(
            f"{path} holds only what changed since another image",
            hint="delete the snapshots there, or export the machine anew",
        )
    kind = _VMDK_KIND.search(head)
    if kind is None or kind[1] not in _VMDK_KINDS:
        named = printable(kind[1].decode(errors="replace"), 40) if kind else "none that it names"
        raise HostError(
            f"{path} is a VMDK of a kind that drvm doesn't read: {named}", hint=_ONE_FILE
        )


def _check_vmdk_header(data: bytes, path: Path) -> bool:
    """Whether the grain directory is at the end, where a second header says where."""
    if len(data) < _VMDK.size or not data.startswith(_VMDK_MAGIC):
        text = data.lstrip().startswith(b"# Disk DescriptorFile")
        hint = "its data is in other files: import those (-flat.vmdk) by --format raw"
        raise HostError(
            f"{path} only describes a disk" if text else f"{path} is no VMDK in one file",
            hint=hint if text else _ONE_FILE,
        )
    _, _, _, capacity, grain, descriptor_at, _, entries, _, directory, *_ = _VMDK.unpack(
        data[: _VMDK.size]
    )
    if not 0 < capacity <= MAX_DISK_BYTES // _SECTOR_BYTES:
        raise HostError(f"{path} names no size that a disk can have")
    if grain not in _VMDK_GRAINS or entries != _VMDK_TABLE_ENTRIES:
        raise HostError(f"{path} has grains or tables of a size that no VMDK has")
    if descriptor_at * _SECTOR_BYTES >= _VMDK_DESCRIPTOR_BYTES:
        raise HostError(f"{path} has its description where no VMDK has it")
    return bool(directory == _VMDK_AT_END)


def _check_qcow2(head: bytes, path: Path) -> None:
    if len(head) < _QCOW2_FEATURES_AT + 8 or not head.startswith(_QCOW2_MAGIC):
        raise HostError(f"{path} is no qcow2", hint="say what it is by --format")
    _, version, backing_at, *_ = _QCOW2.unpack(head[: _QCOW2.size])
    (features,) = struct.unpack_from(">Q", head, _QCOW2_FEATURES_AT)
    if backing_at:
        raise HostError(
            f"{path} holds only what differs from another image",
            hint="qemu-img convert makes one image of a chain that you trust",
        )
    if version >= 3 and features & _QCOW2_DATA_FILE:
        raise HostError(f"{path} keeps its data in another file")


def _info(image: ForeignImage, part: Part, processes: Processes) -> ImageInfo:
    options = image_options(image.path, image.format, locking=False, part=image.part)
    text = ",".join(f"{name}={value}" for name, value in options.items())
    argv = [*LIMITS, "qemu-img", "info", "--output=json", "--image-opts", text]
    try:
        output = processes.run(argv, timeout_s=_INFO_S, max_output_bytes=_MAX_INFO_BYTES)
    except ProcessFailed as problem:
        words = f"{image.path} can't be read as {image.format}: {printable(problem.message, 500)}"
        raise HostError(words, hint=problem.hint or "say what it is by --format") from None
    try:
        told = json.loads(output.stdout)
        size_bytes, extents = int(told["virtual-size"]), _extents(told)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise HostError(f"qemu-img said nothing useful about {image.path}") from None
    if told.get("encrypted"):
        raise HostError(f"{image.path} is encrypted")
    if told.get("backing-filename") is not None or len(extents) > 1:
        raise HostError(f"{image.path} names other files", hint=_ONE_FILE)
    if not 0 < size_bytes <= MAX_DISK_BYTES:
        raise HostError(f"{image.path} has a disk of {format_bytes(size_bytes)}")
    return ImageInfo(
        path=image.path,
        format=image.format,
        virtual_size_bytes=size_bytes,
        allocated_bytes=part.size_bytes,
        backing_file=None,
        backing_format=None,
        options={},
    )


def _extents(told: Any) -> list[Any]:
    return list(told.get("format-specific", {}).get("data", {}).get("extents", ()))
