"""The process that holds the appliance: ``python -m drvm.restore.guestfiles.inside DIRECTORY``.
Without DIRECTORY it only looks whether libguestfs is installed.

It is a process of its own because a call of libguestfs can't be interrupted, because libguestfs
forks, and drvm holds keys, and because it understands what a hostile guest may have written. It
connects to ``socket`` in DIRECTORY, does what it is asked, and ends when drvm does: a thread sees
the socket hang up, however busy the library is, and removes DIRECTORY. libguestfs's own watcher
then ends the appliance within two seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec

from drvm.restore.guestfiles import wire
from drvm.restore.guestfiles.libguestfs import Guestfs, GuestfsError, load

_NAMES_BYTES = 32 << 20
"""Of one directory: some millions of names."""
_LEAVE_LIMIT_S = 30
_SOCKET_DIRECTORY = re.compile(rb"path=(/[^,\0]{1,80}/libguestfs[A-Za-z0-9]{6})/guestfsd\.sock")
_WAYS = {
    b"xfs": (b"ro", b"ro,nouuid", b"ro,nouuid,norecovery"),
    **dict.fromkeys((b"ext2", b"ext3", b"ext4"), (b"ro", b"ro,noload")),
}
"""How a file system is mounted: as it is first; then beside a copy of itself; then without its
journal, where that can't be replayed."""


class Inside:
    """Does what is asked, one thing at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._guestfs: Guestfs | None = None
        self._listed: tuple[bytes, list[bytes]] = (b"", [])

    def answer(self, request: wire.Request) -> object:
        match request:
            case wire.Launch():
                self._launch(request)
            case wire.FileSystems():
                return self._appliance.file_systems()
            case wire.Systems():
                return self._appliance.systems()
            case wire.Mount(mounts):
                return self._mount(mounts)
            case wire.TypeOf(device):
                return self._appliance.type_of(device)
            case wire.Stat(path, follow):
                return self._appliance.stat(path, follow=follow)
            case wire.List(path, page, targets):
                return self._page(path, page, targets=targets)
            case wire.Read(path, offset, length):
                return self._appliance.read(path, offset, min(length, wire.READ_BYTES))
            case wire.Close():
                self._appliance.close()
        return None

    @property
    def _appliance(self) -> Guestfs:
        assert self._guestfs is not None, "launch comes first"
        return self._guestfs

    def _launch(self, request: wire.Launch) -> None:
        scratch = os.fsencode(self._directory)
        self._guestfs = Guestfs(scratch=scratch, cache=request.cache, emulated=request.emulated)
        for export in request.exports:
            self._guestfs.add_disk(request.socket, export)
        self._guestfs.launch()
        # the appliance's files are bigger, and are there by now
        resource.setrlimit(resource.RLIMIT_FSIZE, (_NAMES_BYTES, _NAMES_BYTES))

    def _mount(self, mounts: tuple[tuple[bytes, bytes], ...]) -> tuple[str, ...]:
        """Problems with what is not the root are told, not raised."""
        self._appliance.unmount_all()
        self._listed = (b"", [])
        problems = []
        for device, at in sorted(mounts, key=lambda mount: (len(mount[1]), mount[1])):
            try:
                mount_somehow(self._appliance, device, at)
            except GuestfsError as error:
                if at == b"/":
                    raise
                problems.append(f"{os.fsdecode(at)}: {error}")
        return tuple(problems)

    def _page(self, path: bytes, page: int, *, targets: bool) -> wire.Page:
        if page == 0 or self._listed[0] != path:
            self._listed = (path, self._names(path))
        names = self._listed[1]
        start, end = page * wire.PAGE_NAMES, (page + 1) * wire.PAGE_NAMES
        entries = self._appliance.entries(path, names[start:end])
        if targets:
            entries = [self._with_target(path, entry) for entry in entries]
        return wire.Page(tuple(entries), end < len(names))

    def _names(self, path: bytes) -> list[bytes]:
        with tempfile.NamedTemporaryFile(dir=self._directory) as file:
            self._appliance.names(path, os.fsencode(file.name))
            names = file.read().split(b"\0")[:-1]
        return sorted(names)

    def _with_target(self, directory: bytes, entry: wire.Entry) -> wire.Entry:
        if entry.mode & 0o170000 != 0o120000:
            return entry
        with contextlib.suppress(GuestfsError):
            target = self._appliance.link_target(directory.rstrip(b"/") + b"/" + entry.name)
            return msgspec.structs.replace(entry, target=target)
        return entry


def mount_somehow(appliance: Guestfs, device: bytes, at: bytes) -> None:
    """Raises ``GuestfsError``."""
    first: GuestfsError | None = None
    for options in _WAYS.get(appliance.type_of(device), (b"ro",)):
        try:
            return appliance.mount(options, device, at)
        except GuestfsError as error:
            first = first or error
    raise first or AssertionError("there is at least one way")


def main(directory: Path) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(directory / "socket"))
    leaving = threading.Thread(target=_leave_with, args=(connection, directory), daemon=True)
    leaving.start()
    inside = Inside(directory)
    while (data := wire.receive(connection)) is not None:
        asked = msgspec.msgpack.decode(data, type=wire.Asked)
        signal.alarm(asked.limit_s)  # nobody handles it: it ends the process
        wire.send(connection, _answer(inside, asked.request))
        signal.alarm(0)
        if isinstance(asked.request, wire.Close):
            return
    leaving.join()


def _answer(inside: Inside, request: wire.Request) -> wire.Answer:
    try:
        result: Any = inside.answer(request)
    except GuestfsError as error:
        return wire.Answer(failed=wire.Failed(str(error), error.errno))
    except OSError as error:
        return wire.Answer(failed=wire.Failed(error.strerror or str(error), error.errno or 0))
    return wire.Answer(result=msgspec.Raw(msgspec.msgpack.encode(result)))


def _leave_with(connection: socket.socket, directory: Path) -> None:
    """Wait until drvm has hung up, and end this process and what it made."""
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP)
    watch.poll()
    signal.alarm(_LEAVE_LIMIT_S)
    for made in [*_socket_directories(), directory]:
        shutil.rmtree(made, ignore_errors=True)
    os._exit(1)


def _socket_directories() -> list[Path]:
    """Where libguestfs keeps the sockets of our appliance; for root it takes no other place."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                command = Path("/proc", child, "cmdline").read_bytes()
                found += [Path(os.fsdecode(match)) for match in _SOCKET_DIRECTORY.findall(command)]
    return found


if __name__ == "__main__":
    load()
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
