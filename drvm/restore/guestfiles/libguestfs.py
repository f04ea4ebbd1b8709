"""The door to libguestfs, by its C interface: names of files are bytes there, and Debian's Python
module takes and gives UTF-8 only.

Nothing but ``inside`` imports this, in a process of its own: what a call does can't be interrupted.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from drvm.restore.guestfiles.wire import Entry, FileSystem, System

_LIBRARY = "libguestfs.so.0"
_READ_ONLY, _FORMAT, _PROTOCOL, _SERVER = 1 << 0, 1 << 1, 1 << 5, 1 << 6
_LOCAL_READ_ONLY, _LOCAL_OPTIONS = 1 << 0, 1 << 1
_TAIL_CHARS = 400

# of guestfs.h: what a function returns, and how that says that it failed
_NUMBER, _LONG, _TEXT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


class _DriveOptions(ctypes.Structure):
    """``struct guestfs_add_drive_opts_argv`` up to what is used, and room for what is not."""

    _fields_ = (
        ("bitmask", ctypes.c_uint64),
        ("readonly", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("iface", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("protocol", ctypes.c_char_p),
        ("server", ctypes.POINTER(ctypes.c_char_p)),
        ("rest", ctypes.c_uint64 * 16),
    )


class _LocalOptions(ctypes.Structure):
    """``struct guestfs_mount_local_argv``."""

    _fields_ = (
        ("bitmask", ctypes.c_uint64),
        ("readonly", ctypes.c_int),
        ("options", ctypes.c_char_p),
        ("rest", ctypes.c_uint64 * 8),
    )


class _Stat(ctypes.Structure):
    """``struct guestfs_statns``."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
            *("atime_s", "atime_ns", "mtime_s", "mtime_ns", "ctime_s", "ctime_ns"),
            *(f"spare{number}" for number in range(1, 7)),
        )
    )


class _Stats(ctypes.Structure):
    """``struct guestfs_statns_list``."""

    _fields_ = (("len", ctypes.c_uint32), ("val", ctypes.POINTER(_Stat)))


class GuestfsError(Exception):
    """libguestfs, or the appliance, said no. ``errno`` is the guest kernel's, or 0."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


@functools.cache
def load() -> Any:
    """Raises ``OSError`` where it is not installed."""
    return ctypes.CDLL(_LIBRARY)


class Guestfs:
    """One appliance with some disks, read-only. Raises ``GuestfsError``."""

    def __init__(self, *, scratch: bytes, cache: bytes, emulated: bool) -> None:
        library = load()
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = (ctypes.c_void_p,)
        library.guestfs_create.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(library.guestfs_create())
        library.guestfs_last_error.restype = ctypes.c_char_p
        library.guestfs_set_error_handler(self._handle, None, None)
        self._number("set_backend", b"direct")
        self._number("set_backend_settings", _strings([b"force_tcg"] if emulated else []))
        self._number("set_tmpdir", scratch)
        self._number("set_cachedir", cache)

    def close(self) -> None:
        """The appliance is ended, and what it made is removed."""
        if self._handle:
            load().guestfs_close(self._handle)
            self._handle = ctypes.c_void_p(None)

    def add_disk(self, socket: bytes, export: bytes) -> None:
        """A disk behind an NBD server: what the appliance writes goes to an overlay of its own."""
        options = _DriveOptions(
            bitmask=_READ_ONLY | _FORMAT | _PROTOCOL | _SERVER,
            readonly=1,
            format=b"raw",
            protocol=b"nbd",
            server=_strings([b"unix:" + socket]),
        )
        self._number("add_drive_opts_argv", export, ctypes.byref(options))

    def launch(self) -> None:
        self._number("launch")

    def file_systems(self) -> tuple[FileSystem, ...]:
        """Of each partition, logical volume and array, and of disks without partitions. By a few
        calls: libguestfs's own listing takes several times as long, and leaves out LUKS."""
        partitions = self._texts("list_partitions")
        divided = {re.sub(rb"p?[0-9]+$", b"", partition) for partition in partitions}
        disks = [disk for disk in self._texts("list_devices") if disk not in divided]
        others = self._texts("list_md_devices") + self._texts("lvs")
        return tuple(self._file_system(device) for device in disks + partitions + others)

    def _file_system(self, device: bytes) -> FileSystem:
        try:
            pairs = self._texts("blkid", device)
        except GuestfsError:  # nothing is known of it
            pairs = []
        told = dict(zip(pairs[0::2], pairs[1::2], strict=True))
        kind, label, uuid = (told.get(name, b"") for name in (b"TYPE", b"LABEL", b"UUID"))
        return FileSystem(device, kind, label, uuid, self._size(device))

    def systems(self) -> tuple[System, ...]:
        return tuple(self._system(root) for root in self._texts("inspect_os"))

    def _system(self, root: bytes) -> System:
        pairs = self._texts("inspect_get_mountpoints", root)
        return System(
            root=root,
            type=self._or_nothing("inspect_get_type", root),
            product=self._or_nothing("inspect_get_product_name", root),
            hostname=self._or_nothing("inspect_get_hostname", root),
            mounts=tuple(zip(pairs[1::2], pairs[0::2], strict=True)),
        )

    def unmount_all(self) -> None:
        self._number("umount_all")

    def mount(self, options: bytes, device: bytes, at: bytes) -> None:
        self._number("mount_options", options, device, at)

    def make_mount_point(self, at: bytes) -> None:
        """Where nothing is mounted at the root."""
        self._number("mkmountpoint", at)

    def show_at(self, directory: bytes, options: bytes) -> None:
        """All that is mounted, read-only at a directory of this host, by FUSE with these options;
        until somebody unmounts it there."""
        local = _LocalOptions(bitmask=_LOCAL_READ_ONLY | _LOCAL_OPTIONS, readonly=1)
        local.options = options
        self._number("mount_local_argv", directory, ctypes.byref(local))
        self._number("mount_local_run")

    def type_of(self, device: bytes) -> bytes:
        return self._or_nothing("vfs_type", device)

    def names(self, directory: bytes, into: bytes) -> None:
        """The names in a directory, each ended by a zero byte, into the file ``into``."""
        self._number("ls0", directory, into)

    def stat(self, path: bytes, *, follow: bool) -> Entry:
        """With the last component of the path for a name."""
        library = load()
        function = library.guestfs_statns if follow else library.guestfs_lstatns
        function.restype = ctypes.POINTER(_Stat)
        found = function(self._handle, path)
        if not found:
            raise self._problem()
        try:
            return _entry(path.rpartition(b"/")[2], found.contents)
        finally:
            library.guestfs_free_statns(found)

    def entries(self, directory: bytes, names: Sequence[bytes]) -> list[Entry]:
        """Of names in a directory, no symbolic link followed; those that are gone are left out."""
        library = load()
        library.guestfs_lstatnslist.restype = ctypes.POINTER(_Stats)
        found = library.guestfs_lstatnslist(self._handle, directory, _strings(names))
        if not found:
            raise self._problem()
        try:
            told = min(found.contents.len, len(names))
            pairs = zip(names, found.contents.val[:told], strict=False)
            return [_entry(name, stat) for name, stat in pairs if stat.ino != -1]
        finally:
            library.guestfs_free_statns_list(found)

    def link_target(self, path: bytes) -> bytes:
        return self._text("readlink", path)

    def read(self, path: bytes, offset: int, length: int) -> bytes:
        """At most ``length`` bytes; none at the end of the file."""
        function = load().guestfs_pread
        function.restype = _TEXT
        function.argtypes = (
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64),
            ctypes.POINTER(ctypes.c_size_t),
        )
        size = ctypes.c_size_t()
        found = function(self._handle, path, length, offset, ctypes.byref(size))
        if not found:
            raise self._problem()
        try:
            return ctypes.string_at(found, min(size.value, length))
        finally:
            self._free(found)

    def _size(self, device: bytes) -> int | None:
        """``None`` for what is no block device, such as a subvolume."""
        function = load().guestfs_blockdev_getsize64
        function.restype = _LONG
        size = int(function(self._handle, device))
        return size if size >= 0 else None

    def _number(self, name: str, *arguments: Any) -> None:
        function = getattr(load(), f"guestfs_{name}")
        function.restype = _NUMBER
        if function(self._handle, *arguments) == -1:
            raise self._problem()

    def _text(self, name: str, *arguments: Any) -> bytes:
        function = getattr(load(), f"guestfs_{name}")
        function.restype = _TEXT
        found = function(self._handle, *arguments)
        if not found:
            raise self._problem()
        try:
            return ctypes.string_at(found)
        finally:
            self._free(found)

    def _or_nothing(self, name: str, *arguments: Any) -> bytes:
        try:
            return self._text(name, *arguments)
        except GuestfsError:
            return b""

    def _texts(self, name: str, *arguments: Any) -> list[bytes]:
        function = getattr(load(), f"guestfs_{name}")
        function.restype = ctypes.POINTER(ctypes.c_void_p)
        found = function(self._handle, *arguments)
        if not found:
            raise self._problem()
        texts: list[bytes] = []
        while (text := found[len(texts)]) is not None:
            texts.append(ctypes.string_at(text))
        for index in range(len(texts)):
            self._free(found[index])
        self._free(found)
        return texts

    def _problem(self) -> GuestfsError:
        library = load()
        said = library.guestfs_last_error(self._handle) or b"it does not say why"
        errno = int(library.guestfs_last_errno(self._handle))
        return GuestfsError(said[-_TAIL_CHARS:].decode(errors="backslashreplace"), errno)


def _entry(name: bytes, stat: _Stat) -> Entry:
    return Entry(
        name=name,
        mode=stat.mode,
        size_bytes=stat.size,
        used_bytes=stat.blocks * 512,
        uid=stat.uid,
        gid=stat.gid,
        mtime_s=stat.mtime_s,
    )


def _strings(texts: Iterable[bytes]) -> Any:
    """``char **``, ended by a null pointer."""
    kept = list(texts)
    return (ctypes.c_char_p * (len(kept) + 1))(*kept, None)
