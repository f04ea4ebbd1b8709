"""What drvm and the process that holds the appliance say to each other: a length of four bytes, and
a message of msgpack. Names of files, devices and their labels are bytes.

The process may have been taken over by what it reads, so its side is checked like anything else
from outside: types, lengths, ranges of numbers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

READ_BYTES = 1 << 20
"""The most that one ``Read`` asks for: the appliance's own messages hold 4 MiB."""
PAGE_NAMES = 500
_FRAME_BYTES = 8 << 20
_LENGTH = struct.Struct(">I")

Name = Annotated[bytes, Meta(min_length=1, max_length=255)]
Path = Annotated[bytes, Meta(min_length=1, max_length=4096)]
Text = Annotated[bytes, Meta(max_length=4096)]
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Number = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]


class FileSystem(msgspec.Struct, frozen=True, array_like=True):
    """``type`` as ``blkid`` calls it. ``size_bytes``: ``None`` where it is no block device."""

    device: Path
    type: Text
    label: Text
    uuid: Text
    size_bytes: Size | None


class System(msgspec.Struct, frozen=True, array_like=True):
    """An operating system that was found. ``mounts``: (device, mount point) as it would mount
    them."""

    root: Path
    type: Text
    product: Text
    hostname: Text
    mounts: Annotated[tuple[tuple[Path, Path], ...], Meta(max_length=1000)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A file of any kind. ``mode``: with the bits of the kind; ``used_bytes``: without holes;
    ``target``: of a symbolic link, where it was asked for."""

    name: Text
    mode: Number
    size_bytes: Size
    used_bytes: Size
    uid: Number
    gid: Number
    mtime_s: int
    target: Text | None = None


class Launch(msgspec.Struct, frozen=True, tag=True):
    """``exports`` of the NBD server at ``socket``."""

    socket: bytes
    exports: tuple[bytes, ...]
    cache: bytes
    emulated: bool


class FileSystems(msgspec.Struct, frozen=True, tag=True):
    pass


class Systems(msgspec.Struct, frozen=True, tag=True):
    pass


class Mount(msgspec.Struct, frozen=True, tag=True):
    """What is to be mounted and nothing else: (device, mount point)."""

    mounts: tuple[tuple[bytes, bytes], ...]


class TypeOf(msgspec.Struct, frozen=True, tag=True):
    """What ``blkid`` calls a device, empty where it knows nothing of it."""

    device: bytes


class Stat(msgspec.Struct, frozen=True, tag=True):
    path: bytes
    follow: bool


class List(msgspec.Struct, frozen=True, tag=True):
    """A page of a directory, in the order of the names."""

    path: bytes
    page: int
    targets: bool


class Read(msgspec.Struct, frozen=True, tag=True):
    path: bytes
    offset: int
    length: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """End the appliance, and then yourself."""


Request = Launch | FileSystems | Systems | Mount | TypeOf | Stat | List | Read | Close


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """``limit_s``: when it is not done by then, the process ends itself."""

    request: Request
    limit_s: int


class Page(msgspec.Struct, frozen=True, array_like=True):
    entries: Annotated[tuple[Entry, ...], Meta(max_length=PAGE_NAMES)]
    more: bool


class Failed(msgspec.Struct, frozen=True):
    message: Annotated[str, Meta(max_length=4096)]
    errno: int


class Answer(msgspec.Struct, frozen=True):
    """``result`` of the type that the request has, or what went wrong."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    failed: Failed | None = None


class Broken(Exception):
    """The other side is gone, or says what is not understood."""


def send(connection: socket.socket, message: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(message)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _for_ever() -> None:
    return None


def receive(
    connection: socket.socket, left_s: Callable[[], float | None] = _for_ever
) -> bytes | None:
    """``None`` where the other side has hung up. ``left_s``: how long the whole message may take
    from now on. Raises ``Broken``, and ``TimeoutError``."""
    head = _exactly(connection, _LENGTH.size, left_s)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _FRAME_BYTES:
        raise Broken("a message is too long")
    return _exactly(connection, length, left_s)


def _exactly(
    connection: socket.socket, length: int, left_s: Callable[[], float | None]
) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        time_s = left_s()
        if time_s is not None and time_s <= 0:
            raise TimeoutError
        connection.settimeout(time_s)
        piece = connection.recv(min(length - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)
