"""A real qemu-storage-daemon before a real server that is killed."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import HostError
from drvm.core.extents import Extent, ExtentKind
from drvm.core.process import Child, SystemProcesses
from drvm.core.units import MIB
from drvm.host import nbd_front
from drvm.host.nbd import NbdReader, nbd_extents
from drvm.host.nbd_front import NbdFront

SIZE = 4 * MIB
_processes, _clock = SystemProcesses(), SystemClock()


class Server:
    """qemu-nbd on a raw image, under the name ``vda``."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "server"
        self.image = directory / "image.raw"
        self.data = random.Random(1).randbytes(MIB) + bytes(SIZE - MIB)
        with self.image.open("wb") as stream:
            stream.write(self.data[:MIB])
            stream.truncate(SIZE)
        self.child: Child | None = None

    def start(self) -> None:
        argv = ["qemu-nbd", "--read-only", "--persistent", "--shared=8", "--format=raw"]
        argv += ["--export-name=vda", f"--socket={self.socket}", str(self.image)]
        self.child = _processes.spawn(argv)
        for _ in range(500):
            with contextlib.suppress(HostError):
                NbdReader(self.socket, "vda").close()
                return
            _clock.sleep(0.02)
        raise AssertionError("qemu-nbd does not answer")

    def kill(self) -> None:
        assert self.child is not None
        self.child.stop(0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def front(tmp_path: Path, server: Server) -> Iterator[NbdFront]:
    made = NbdFront(tmp_path / "nbd")
    made.start(_processes, _clock, server.socket, ["vda"], None)
    yield made
    made.stop()


def test_it_gives_what_the_server_has_and_tells_its_holes(front: NbdFront, server: Server) -> None:
    with contextlib.closing(NbdReader(front.socket, "vda")) as reader:
        found = bytearray(SIZE)
        reader.read_into(0, memoryview(found))
    assert found == server.data
    assert list(nbd_extents(front.socket, "vda")) == [
        Extent(0, MIB, ExtentKind.DATA),
        Extent(MIB, SIZE - MIB, ExtentKind.ZERO),
    ]


def test_a_read_waits_for_a_server_that_is_killed_and_started_anew(
    front: NbdFront, server: Server
) -> None:
    found = bytearray(MIB)
    with contextlib.closing(NbdReader(front.socket, "vda")) as reader:
        server.kill()
        thread = threading.Thread(target=reader.read_into, args=(0, memoryview(found)))
        thread.start()
        server.start()
        thread.join(60)
        assert not thread.is_alive()
    assert found == server.data[:MIB]


def test_it_tells_whether_a_server_that_was_away_for_long_gives_again_what_is_read(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU asks for it less and less often, and lets every read fail at once until then."""
    monkeypatch.setattr(nbd_front, "RECONNECT_S", 1)
    front = NbdFront(tmp_path / "nbd")
    front.start(_processes, _clock, server.socket, ["vda"], None)
    try:
        assert front.reads("vda")
        server.kill()
        assert not front.reads("vda")
        server.start()
        deadline_s = _clock.monotonic_s() + 40
        while not front.reads("vda"):
            assert _clock.monotonic_s() < deadline_s
            _clock.sleep(0.1)
    finally:
        front.stop()


def test_it_is_found_and_ended_by_whoever_knows_its_socket(front: NbdFront) -> None:
    other = NbdFront(front.socket)
    assert other.runs()
    other.stop()
    assert not front.runs()
    assert not front.socket.exists()
    other.stop()


def test_without_a_server_nothing_is_left(tmp_path: Path) -> None:
    front = NbdFront(tmp_path / "nbd")
    with pytest.raises(HostError, match="does not serve"):
        front.start(_processes, _clock, tmp_path / "absent", ["vda"], None)
    assert not front.runs()
