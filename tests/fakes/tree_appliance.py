"""An appliance in memory: one tree of files for whatever is mounted."""

from __future__ import annotations

import errno
import stat

import msgspec

from drvm.restore.guestfiles.appliance import FileProblem
from drvm.restore.guestfiles.wire import PAGE_NAMES, Entry, FileSystem, Page, System

DEBIAN = System(b"/dev/sda1", b"linux", b"Debian 12", b"web1", ((b"/dev/sda1", b"/"),))
EXT4 = FileSystem(b"/dev/sda1", b"ext4", b"root", b"", 1 << 30)


class TreeAppliance:
    """``unreadable``: paths of which nothing can be read."""

    def __init__(self, systems=(DEBIAN,), file_systems=(EXT4,)) -> None:
        self._systems, self._file_systems = systems, file_systems
        self._nodes: dict[bytes, tuple[Entry, bytes]] = {}
        self.mounted: list[tuple[tuple[bytes, bytes], ...]] = []
        self.unreadable: set[bytes] = set()
        self.directory(b"/")

    def directory(self, path: bytes, mode: int = 0o755) -> None:
        self.put(path, stat.S_IFDIR | mode)

    def file(self, path: bytes, data: bytes, mode: int = 0o644, **fields) -> None:
        self.put(path, stat.S_IFREG | mode, data, **fields)

    def link(self, path: bytes, target: bytes) -> None:
        self.put(path, stat.S_IFLNK | 0o777, target=target)

    def put(self, path: bytes, mode: int, data: bytes = b"", **fields) -> None:
        name = path.rpartition(b"/")[2]
        entry = Entry(name, mode, len(data), len(data), 0, 0, 1_700_000_000)
        self._nodes[path] = (msgspec.structs.replace(entry, **fields), data)

    def file_systems(self):
        return self._file_systems

    def systems(self):
        return self._systems

    def mount(self, mounts):
        if self.type_of(mounts[0][0]) in (b"", b"crypto_LUKS"):
            raise FileProblem("mount: /sysroot: no such device.\\x0a more", errno.ENODEV)
        self.mounted.append(tuple(mounts))
        return ()

    def type_of(self, device):
        return next((fs.type for fs in self._file_systems if fs.device == device), b"")

    def stat(self, path, *, follow):
        entry, _ = self._node(path)
        return entry

    def page(self, path, number, *, targets):
        self._node(path)
        if path in self.unreadable:
            raise FileProblem(f"ls0: {path!r}: Input/output error", errno.EIO)
        above = path.rstrip(b"/")
        names = sorted(
            inner for inner in self._nodes if inner.rpartition(b"/")[0] == above and inner != b"/"
        )
        start, end = number * PAGE_NAMES, (number + 1) * PAGE_NAMES
        entries = tuple(self._nodes[name][0] for name in names[start:end])
        return Page(entries, end < len(names))

    def read(self, path, offset, length):
        _, data = self._node(path)
        if path in self.unreadable:
            raise FileProblem(f"pread: {path!r}: Input/output error", errno.EIO)
        return data[offset : offset + length]

    def _node(self, path):
        if path not in self._nodes:
            raise FileProblem(f"statns: {path!r}: No such file or directory", errno.ENOENT)
        return self._nodes[path]
