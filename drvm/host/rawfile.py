"""Raw images and block devices, read and written as what they are: files."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from drvm.core.errors import HostError
from drvm.core.extents import Extent, ExtentKind
from drvm.host.images import is_block_device

_SECTOR_BYTES = 512
_BLKZEROOUT = 0x127F  # linux/fs.h
_FS_IOC_UNRESVSP64 = 0x4030582B  # linux/falloc.h; of every file system that has holes since 5.5
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})
_ZEROES = bytes(1024 * 1024)
_DIRECT = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT
_DIRECT_BYTES = 256 * 1024


class RawFileReader:
    """Implements ``BlockReader``. ``size_bytes`` is what the guest sees: a file that ends inside
    a sector is read as if zeroes filled it up, as QEMU does."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._descriptor = _open(path, os.O_RDONLY)

    def read_into(self, offset: int, target: memoryview) -> None:
        while target:
            count = self._pread(offset, target)
            if not count:
                if offset <= self._size_bytes - _SECTOR_BYTES:
                    raise HostError(f"{self._path} ends before its {self._size_bytes} bytes")
                count = len(target)
                target[:] = bytes(count)
            target = target[count:]
            offset += count

    def close(self) -> None:
        os.close(self._descriptor)

    def _pread(self, offset: int, target: memoryview) -> int:
        try:
            return os.preadv(self._descriptor, [target], offset)
        except OSError as problem:
            raise HostError(f"{self._path} can't be read at {offset}: {problem.strerror}") from None


def raw_extents(path: Path, size_bytes: int) -> Iterator[Extent]:
    """Holes are ZERO, all else is DATA; a block device is DATA throughout."""
    if is_block_device(path):
        yield Extent(0, size_bytes, ExtentKind.DATA)
        return
    descriptor = _open(path, os.O_RDONLY)
    try:
        position = 0
        while position < size_bytes:
            data_start = min(_seek(descriptor, position, os.SEEK_DATA, size_bytes), size_bytes)
            if data_start > position:
                yield Extent(position, data_start - position, ExtentKind.ZERO)
            position = data_start
            if position < size_bytes:
                data_end = min(_seek(descriptor, position, os.SEEK_HOLE, size_bytes), size_bytes)
                yield Extent(position, data_end - position, ExtentKind.DATA)
                position = data_end
    finally:
        os.close(descriptor)


class RawFileWriter:
    """Implements ``BlockWriter`` on an image or device that exists, inside ``size_bytes``."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._descriptor = _open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            self._direct: int | None = os.open(path, _DIRECT)
        except OSError:
            self._direct = None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        done = self._write_direct(offset, view) if len(view) >= _DIRECT_BYTES else 0
        while done < len(view):
            try:
                done += os.pwrite(self._descriptor, view[done:], offset + done)
            except OSError as problem:
                raise self._failed(offset + done, problem) from None

    def zero(self, offset: int, length: int) -> None:
        """A hole in a file; what a device makes of it. Written where neither can be had."""
        self._check(offset, length)
        end = offset + length
        whole = _SECTOR_BYTES if is_block_device(self._path) else 1
        first, last = -(-offset // whole) * whole, end // whole * whole
        if first >= last or not self._deallocated(first, last - first, device=whole > 1):
            first = last = end
        self._write_zeroes(offset, first)
        self._write_zeroes(last, end)

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _write_direct(self, offset: int, view: memoryview) -> int:
        """Whole pages past the page cache, which is for the guests; returns how many bytes.
        Memory that does not begin with a page, and some file systems, are not taken so."""
        end = len(view) - len(view) % mmap.PAGESIZE
        done = 0
        if self._direct is None or offset % mmap.PAGESIZE:
            return done
        try:
            while done < end:
                done += os.pwrite(self._direct, view[done:end], offset + done)
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise self._failed(offset + done, problem) from None
        return done

    def _failed(self, offset: int, problem: OSError) -> HostError:
        return HostError(f"{self._path} can't be written at {offset}: {problem.strerror}")

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self._size_bytes:
            raise ValueError(f"{length} bytes at {offset} of {self._size_bytes}")

    def _deallocated(self, offset: int, length: int, *, device: bool) -> bool:
        """False where it can't be done: nothing has changed then. A device that is claimed does not
        take it while the page cache has anything to write to its pages (block/ioctl.c)."""
        request = struct.pack("=QQ", offset, length) if device else _hole(offset, length)
        number = _BLKZEROOUT if device else _FS_IOC_UNRESVSP64
        for written_back in (False, True):
            try:
                fcntl.ioctl(self._descriptor, number, request)
            except OSError as problem:
                if problem.errno == errno.EBUSY and device and not written_back:
                    os.fsync(self._descriptor)
                elif problem.errno in _NO_HOLES or problem.errno == errno.EBUSY:
                    return False
                else:
                    words = f"{self._path} can't be zeroed at {offset}: {problem.strerror}"
                    raise HostError(words) from None
            else:
                return True
        return False

    def _write_zeroes(self, start: int, end: int) -> None:
        for at in range(start, end, len(_ZEROES)):
            self.write(at, memoryview(_ZEROES)[: end - at])


def _hole(offset: int, length: int) -> bytes:
    """``struct space_resv`` of linux/falloc.h: from the start of the file, so many bytes."""
    return struct.pack("@hh4xqqiI4i", os.SEEK_SET, os.SEEK_SET, offset, length, 0, 0, 0, 0, 0, 0)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as problem:
        raise HostError(f"{path} can't be opened: {problem.strerror}") from None


def _seek(descriptor: int, position: int, whence: int, size_bytes: int) -> int:
    """Where the next data or hole begins; the end of the disk where there is none."""
    try:
        return os.lseek(descriptor, position, whence)
    except OSError as problem:
        if problem.errno == errno.ENXIO:
            return size_bytes
        raise HostError(f"seeking in an image failed: {problem.strerror}") from None
