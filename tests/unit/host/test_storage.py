"""Streams of volumes where a host can't do sparse ones, and what is said of hosts out of reach."""

from __future__ import annotations

import threading
from typing import Any

import libvirt
import pytest

from drvm.core.errors import HostError, HostUnreachable
from drvm.host import libvirt_connection
from drvm.host.libvirt_connection import Connection
from drvm.host.libvirt_storage import LibvirtStorage
from drvm.host.reach import hint_for, is_remote
from drvm.host.storage import Hole, Piece


def refused(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("refused")
    error.err = (code, 0, "refused by a test", 0, "", "", "", 0, 0)
    return error


class PlainHost:
    """A connection, its pool, its volume and its stream in one: it takes no flags."""

    def __init__(self, *, code: int = libvirt.VIR_ERR_INVALID_ARG) -> None:
        self.code = code
        self.taken = bytearray()
        self.ended = ""
        self.most = 1000
        self.fails_at: int | None = None

    def storagePoolLookupByName(self, _name: str) -> PlainHost:
        return self

    def storageVolLookupByName(self, _name: str) -> PlainHost:
        return self

    def newStream(self) -> PlainHost:
        return self

    def isAlive(self) -> bool:
        return True

    def upload(self, _stream: Any, _offset: int, _length: int, flags: int) -> None:
        if flags:
            raise refused(self.code)

    def download(self, _stream: Any, _offset: int, _length: int, flags: int) -> None:
        self.upload(_stream, _offset, _length, flags)

    def send(self, data: bytes) -> int:
        if self.fails_at is not None and len(self.taken) >= self.fails_at:
            raise refused(libvirt.VIR_ERR_SYSTEM_ERROR)
        self.taken += data[: self.most]
        return min(len(data), self.most)

    def recv(self, count: int) -> bytes:
        part = bytes(self.taken[: min(count, self.most)])
        del self.taken[: len(part)]
        return part

    def finish(self) -> None:
        self.ended = "finished"

    def abort(self) -> None:
        self.ended = "aborted"


def storage(host: PlainHost, monkeypatch: pytest.MonkeyPatch) -> LibvirtStorage:
    monkeypatch.setattr(libvirt_connection, "_opened", lambda _uri: host)
    return LibvirtStorage(Connection("qemu:///system"))


def test_zeroes_are_sent_where_holes_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PlainHost()
    pieces: list[Piece] = [Hole(3000), b"x" * 2500, Hole(1)]
    storage(host, monkeypatch).upload("p", "v", 5501, pieces)
    assert host.taken == bytes(3000) + b"x" * 2500 + bytes(1)
    assert host.ended == "finished"


def test_a_plain_download_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PlainHost()
    host.taken += b"y" * 2500
    found = list(storage(host, monkeypatch).download("p", "v", 2500))
    assert b"".join(bytes(p) for p in found if not isinstance(p, Hole)) == b"y" * 2500
    assert host.ended == "aborted"


def test_other_refusals_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PlainHost(code=libvirt.VIR_ERR_NO_STORAGE_VOL)
    with pytest.raises(HostError, match="refused by a test"):
        storage(host, monkeypatch).upload("p", "v", 1, [b"x"])
    assert host.ended == "aborted"


class BusyPool(PlainHost):
    """Somebody makes a large volume there: libvirt does not look anew meanwhile."""

    def refresh(self) -> None:
        raise refused(self.code)

    def listVolumes(self) -> list[str]:
        return ["there"]


def test_a_pool_that_is_busy_has_the_volumes_that_libvirt_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = BusyPool(code=libvirt.VIR_ERR_INTERNAL_ERROR)
    assert storage(busy, monkeypatch).names("p") == {"there"}
    with pytest.raises(HostError, match="refused"):
        storage(BusyPool(code=libvirt.VIR_ERR_SYSTEM_ERROR), monkeypatch).names("p")


def test_an_upload_that_fails_half_way_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PlainHost()
    host.fails_at = 2000
    with pytest.raises(HostError, match="refused by a test"):
        storage(host, monkeypatch).upload("p", "v", 5000, [b"x" * 5000])
    assert host.ended == "aborted" and len(host.taken) == 2000


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("qemu:///system", False),
        ("qemu+unix:///system?socket=/run/x", False),
        ("qemu+ssh://root@kvm2/system", True),
        ("qemu+tcp://[::1]/system", True),
        ("qemu://kvm2/system", True),
    ],
)
def test_a_uri_is_remote_where_it_names_a_machine(uri: str, remote: bool) -> None:
    assert is_remote(uri) is remote


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("unable to connect to server at 'kvm2:16509': Connection refused", "does libvirtd listen"),
        ("Cannot recv data: Host key verification failed.: Connection reset", "fingerprint"),
        ("Cannot recv data: root@kvm2: Permission denied (publickey)", "ssh-copy-id"),
        ("unable to connect to 'kvm2:16509': No route to host", "firewall"),
        ("authentication failed: authentication failed", "auth_"),
        ("Cannot read CA certificate '/etc/pki/CA/cacert.pem'", "/etc/pki/libvirt"),
        ("unable to resolve address 'kvm2': Name or service not known", "name of the machine"),
        ("internal error: connection closed due to keepalive timeout", "gone away"),
        ("something new", "is libvirtd running"),
    ],
)
def test_a_host_out_of_reach_is_told_with_what_helps(words: str, said: str) -> None:
    assert said in hint_for("qemu+ssh://root@kvm2/system", words)


def test_nobody_there_is_an_error_with_a_hint() -> None:
    with pytest.raises(HostUnreachable) as found:
        Connection("qemu+tcp://127.0.0.1:1/system").call(lambda c: c, repeatable=True)
    assert "does libvirtd listen" in found.value.hint


def test_a_connection_is_not_closed_under_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt-python crashes there."""
    closed: list[str] = []

    class Host(PlainHost):
        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr(libvirt_connection, "_opened", lambda _uri: Host())
    connection = Connection("qemu:///system")
    connection.call(lambda _: connection.close(), repeatable=False)
    assert closed == []
    connection.call(lambda _: None, repeatable=False)
    connection.close()
    assert closed == ["closed"]


@pytest.mark.parametrize(
    ("uri", "connections"), [("qemu:///system", 1), ("qemu+tcp://kvm2/system", 2)]
)
def test_threads_share_no_connection_to_another_machine(
    monkeypatch: pytest.MonkeyPatch, uri: str, connections: int
) -> None:
    """libvirt's client crashes where a keep-alive ends one that two threads wait on."""
    monkeypatch.setattr(libvirt_connection, "_opened", lambda _uri: PlainHost())
    connection, seen = Connection(uri), []

    def call() -> None:
        seen.append(connection.call(lambda host: host, repeatable=False))

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    call()
    assert len(set(map(id, seen))) == connections
