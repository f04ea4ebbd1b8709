"""Storage pools through libvirt: streams of volumes, sparse where the host can."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drvm.core.errors import HostError
from drvm.core.units import MIB
from drvm.host import libvirt_xml
from drvm.host.libvirt_connection import Connection
from drvm.host.storage import Hole, Piece, Volume

_MAX_VOLUMES = 100_000
_SENT_BYTES = MIB
_RECEIVED_BYTES = MIB
_AT_HOLE = -3  # virStreamRecvFlags
_ZEROES = bytes(_SENT_BYTES)
_NOT_SPARSE = frozenset(
    {
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_INVALID_ARG,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    }
)


class LibvirtStorage:
    """Implements ``Storage``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def names(self, pool: str) -> frozenset[str]:
        def ask(connection: Any) -> list[str]:
            found = connection.storagePoolLookupByName(pool)
            try:
                found.refresh()
            except libvirt.libvirtError as problem:
                # it says so of one where volumes are being made, and knows of those; a pool that
                # can't be looked at otherwise is not active any more, so it lists nothing
                if problem.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
                    raise
            names: list[str] = found.listVolumes()
            return names

        names = self._connection.call(ask, repeatable=True)
        if len(names) > _MAX_VOLUMES:
            raise HostError(f"{len(names)} volumes in pool {pool} are not believed")
        return frozenset(names)

    def volume(self, pool: str, name: str) -> Volume | None:
        def ask(connection: Any) -> str | None:
            found = connection.storagePoolLookupByName(pool)
            try:
                return str(found.storageVolLookupByName(name).XMLDesc())
            except libvirt.libvirtError as problem:
                if problem.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise
                return None

        described = self._connection.call(ask, repeatable=True)
        return libvirt_xml.volume(described) if described is not None else None

    def create(self, pool: str, name: str, size_bytes: int) -> Volume:
        wanted = _volume_xml(name, size_bytes)
        return libvirt_xml.volume(
            self._connection.call(
                lambda c: c.storagePoolLookupByName(pool).createXML(wanted).XMLDesc(),
                repeatable=False,
            )
        )

    def upload(
        self, pool: str, name: str, length: int, pieces: Iterable[Piece], *, offset: int = 0
    ) -> None:
        def send(connection: Any) -> None:
            volume = connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
            with _stream(connection) as stream:
                sparse = _begun(
                    lambda flags: volume.upload(stream, offset, length, flags),
                    libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM,
                )
                sent = 0
                for piece in pieces:
                    sent += _send(stream, piece, sparse=sparse)
                assert sent == length, f"{sent} bytes of {length}"

        self._connection.call(send, repeatable=False)

    def download(
        self, pool: str, name: str, length: int, *, offset: int = 0
    ) -> Generator[Piece, None, None]:
        received = _Receiver(self._connection, pool, name, offset, length)
        try:
            while (piece := received.next()) is not None:
                yield piece
        finally:
            received.close()

    def remove(self, pool: str, name: str) -> None:
        def remove(connection: Any) -> None:
            try:
                connection.storagePoolLookupByName(pool).storageVolLookupByName(name).delete()
            except libvirt.libvirtError as problem:
                if problem.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise

        self._connection.call(remove, repeatable=True)


class _Receiver:
    """A download under way; every step is a call of the connection, so that errors are told in
    drvm's words."""

    def __init__(
        self, connection: Connection, pool: str, name: str, offset: int, length: int
    ) -> None:
        self._connection = connection
        self._sparse = False
        self._stream = connection.call(
            lambda c: self._begin(c, pool, name, offset, length), repeatable=True
        )

    def next(self) -> Piece | None:
        return self._connection.call(lambda _: self._receive(), repeatable=False)

    def close(self) -> None:
        """Whatever is left of it is not wanted."""
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.abort()

    def _begin(self, connection: Any, pool: str, name: str, offset: int, length: int) -> Any:
        volume = connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
        stream = connection.newStream()
        self._sparse = _begun(
            lambda flags: volume.download(stream, offset, length, flags),
            libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM,
        )
        return stream

    def _receive(self) -> Piece | None:
        if not self._sparse:
            return self._stream.recv(_RECEIVED_BYTES) or None
        data = self._stream.recvFlags(_RECEIVED_BYTES, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
        if data == _AT_HOLE:
            return Hole(int(self._stream.recvHole()))
        return bytes(data) or None


@contextlib.contextmanager
def _stream(connection: Any) -> Iterator[Any]:
    """Finished where all went well: only then has the host taken everything. Else given up."""
    stream = connection.newStream()
    try:
        yield stream
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise


def _begun(begin: Any, sparse: int) -> bool:
    """Whether the transfer is sparse; a host that can't do that is asked for a plain one."""
    try:
        begin(sparse)
    except libvirt.libvirtError as problem:
        if problem.get_error_code() not in _NOT_SPARSE:
            raise
        begin(0)
        return False
    return True


def _send(stream: Any, piece: Piece, *, sparse: bool) -> int:
    if isinstance(piece, Hole):
        if sparse:
            stream.sendHole(piece.length)
            return piece.length
        for start in range(0, piece.length, _SENT_BYTES):
            _send_all(stream, _ZEROES[: piece.length - start])
        return piece.length
    for start in range(0, len(piece), _SENT_BYTES):
        _send_all(stream, bytes(piece[start : start + _SENT_BYTES]))
    return len(piece)


def _send_all(stream: Any, data: bytes) -> None:
    while data:
        data = data[stream.send(data) :]


def _volume_xml(name: str, size_bytes: int) -> str:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size_bytes)
    ET.SubElement(volume, "allocation", {"unit": "bytes"}).text = "0"
    ET.SubElement(ET.SubElement(volume, "target"), "format", {"type": "raw"})
    return ET.tostring(volume, encoding="unicode")
