"""The door to qemu-img convert: the one image that can't be written at random, VMware's
stream-optimised VMDK, is made of a raw one."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import HostError, ProcessFailed
from drvm.core.process import Child, Processes
from drvm.core.progress import Progress

VMDK_OPTIONS = "subformat=streamOptimized,adapter_type=lsilogic,hwversion=14"

_LIMIT_S = 24 * 3600.0
_LOOK_S = 0.2
_TAIL_BYTES = 2000
_DONE = re.compile(rb"\(([0-9]{1,3}\.[0-9]{2})/100%\)")
_VMDK_HEADER = struct.Struct("<4sIIQQQQ")
"""Magic, version, flags, capacity, grain size, offset and length of the descriptor: those three
and the lengths in sectors. "Virtual Disk Format 5.0", VMware."""
_SECTOR_BYTES = 512
_MAX_DESCRIPTOR_BYTES = 64 * 1024


def write_vmdk(
    raw: Path,
    target: Path,
    *,
    name: str,
    size_bytes: int,
    processes: Processes,
    clock: Clock,
    progress: Progress,
) -> None:
    """Write a stream-optimised VMDK of ``raw``, to which nobody may write, into the new and empty
    file ``target``. Durable when it returns. ``size_bytes`` is the raw image's, in which
    ``progress`` is told. ``name``: what it will be called, as its descriptor says that itself.
    Raises ``HostError``. qemu-img ends with us, also if we are killed.
    """
    argv = ["setpriv", "--pdeathsig", "SIGTERM", "qemu-img", "convert", "-p", "-f", "raw"]
    argv += ["-O", "vmdk", "-o", VMDK_OPTIONS, str(raw), str(target)]
    with _told() as told:
        try:
            child = processes.spawn(argv, log=Path(f"/proc/self/fd/{told}"))
        except ProcessFailed as problem:
            raise HostError(problem.message, hint=problem.hint) from None
        try:
            _follow(child, told, size_bytes, clock, progress)
        finally:
            child.stop()
    with target.open("r+b") as stream:
        _rename_inside(stream.fileno(), target.name, name)
        os.fsync(stream.fileno())


@contextmanager
def _told() -> Iterator[int]:
    """A file in memory for what it says: nothing of it is left, however we end."""
    descriptor = os.memfd_create("qemu-img", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _follow(child: Child, told: int, size_bytes: int, clock: Clock, progress: Progress) -> None:
    deadline_s, done_bytes = clock.monotonic_s() + _LIMIT_S, 0
    while not (ended := child.wait(_LOOK_S)) and clock.monotonic_s() < deadline_s:
        if shares := _DONE.findall(_tail(told)):
            now_bytes = min(size_bytes, int(float(shares[-1]) / 100 * size_bytes))
            progress.advance(max(0, now_bytes - done_bytes))
            done_bytes = max(done_bytes, now_bytes)
    if not ended:
        raise HostError(f"qemu-img did not end within {_LIMIT_S:g} s")
    if code := child.returncode():
        words = _tail(told).rpartition(b"\r")[2].decode(errors="replace").strip()
        raise HostError(f"qemu-img failed ({code}): {words}")
    progress.advance(size_bytes - done_bytes)


def _tail(told: int) -> bytes:
    return os.pread(told, _TAIL_BYTES, max(0, os.fstat(told).st_size - _TAIL_BYTES))


def _rename_inside(descriptor: int, old: str, new: str) -> None:
    """The image's descriptor names the file that it was made as: put its own name there. Other
    programs than QEMU look at it."""
    _, _, _, _, _, first, count = _VMDK_HEADER.unpack(os.pread(descriptor, _VMDK_HEADER.size, 0))
    at, length = first * _SECTOR_BYTES, count * _SECTOR_BYTES
    if not 0 < length <= _MAX_DESCRIPTOR_BYTES:
        raise HostError("qemu-img wrote a VMDK without a descriptor")
    text = os.pread(descriptor, length, at).rstrip(b"\0")
    named = text.replace(f'"{old}"'.encode(), f'"{new}"'.encode())
    if named.count(f'"{new}"'.encode()) != 1 or len(named) > length:
        raise HostError("qemu-img wrote a VMDK whose descriptor does not name it")
    os.pwrite(descriptor, named.ljust(length, b"\0"), at)
