"""Readers of raw files and of NBD exports keep one contract: the disk's bytes, and extents that
cover it and promise zeroes only where zeroes are."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.core.clock import SystemClock
from drvm.core.errors import HostError
from drvm.core.extents import Extent, ExtentKind, cover
from drvm.core.process import Child, SystemProcesses
from drvm.core.progress import Trace
from drvm.core.units import KIB, MIB
from drvm.host import nbd as nbd_module
from drvm.host import rawfile
from drvm.host.disks import BlockReader
from drvm.host.images import ImageTool, in_use
from drvm.host.nbd import (
    NbdExport,
    NbdReader,
    NbdWriter,
    await_unused,
    dead_exports,
    nbd_extents,
    sweep_exports,
)
from drvm.host.rawfile import RawFileReader, RawFileWriter, raw_extents
from tests.killing import killed_at
from tests.loops import loop_device
from tests.reading import read

SIZE = 5 * MIB + 512


@dataclass
class Source:
    content: bytes
    open: Callable[[], BlockReader]
    extents: Callable[[], Iterator[Extent]]


def _content() -> bytes:
    content = bytearray(SIZE)
    content[0 : 64 * KIB] = random.Random(1).randbytes(64 * KIB)
    content[2 * MIB : 4 * MIB] = random.Random(2).randbytes(2 * MIB)
    content[SIZE - 512 :] = b"e" * 512
    return bytes(content)


def _sparse(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.truncate(len(content))
        for start in range(0, len(content), 4096):
            block = content[start : start + 4096]
            if any(block):
                stream.seek(start)
                stream.write(block)


@pytest.fixture(scope="module", params=["file", "nbd-raw", "nbd-qcow2"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    raw = tmp_path_factory.mktemp("source") / "disk,one.img"
    _sparse(raw, _content())
    processes = SystemProcesses()
    if request.param == "file":
        yield Source(_content(), lambda: RawFileReader(raw, SIZE), lambda: raw_extents(raw, SIZE))
        return
    image, image_format = raw, "raw"
    if request.param == "nbd-qcow2":
        image, image_format = raw.with_suffix(".qcow2"), "qcow2"
        argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
        processes.run(argv, timeout_s=30)
    with NbdExport(processes, image, image_format) as export:
        yield Source(
            _content(),
            lambda: NbdReader(export.socket),
            lambda: nbd_extents(export.socket),
        )


def test_a_reader_gives_the_bytes_of_the_disk(source: Source) -> None:
    with contextlib.closing(source.open()) as reader:
        assert bytes(read(reader, 0, SIZE)) == source.content


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_any_range_reads_as_the_disk_does(source: Source, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, SIZE - 1))
    length = data.draw(st.integers(1, SIZE - offset))
    with contextlib.closing(source.open()) as reader:
        assert bytes(read(reader, offset, length)) == source.content[offset : offset + length]


def test_extents_cover_the_disk_and_promise_zeroes_only_where_they_are(source: Source) -> None:
    extents = list(cover(source.extents(), SIZE))
    zeroes = [e for e in extents if e.kind is ExtentKind.ZERO]
    assert sum(e.length for e in zeroes) >= 2 * MIB
    assert all(not any(source.content[e.offset : e.end]) for e in zeroes)


def test_a_file_that_ends_inside_a_sector_is_filled_up_with_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    with contextlib.closing(RawFileReader(path, 1024)) as reader:
        assert read(reader, 512, 512) == b"x" * 488 + bytes(24)


def test_a_file_that_was_cut_is_not_read_as_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(b"x" * 4096)
    with contextlib.closing(RawFileReader(path, 8192)) as reader, pytest.raises(HostError):
        read(reader, 0, 8192)


def test_an_nbd_writer_writes_what_a_reader_reads(tmp_path: Path) -> None:
    processes = SystemProcesses()
    image = tmp_path / "new.qcow2"
    ImageTool(processes).create_image(image, "qcow2", SIZE, {})
    content = _content()
    with NbdExport(processes, image, "qcow2", writable=True) as export:
        with contextlib.closing(NbdWriter(export.socket)) as writer:
            writer.write(0, content[:MIB])
            writer.write(2 * MIB, memoryview(content)[2 * MIB :])
            writer.write(MIB, b"gone" * 2048)
            writer.zero(MIB, 8192)
            writer.flush()
        with contextlib.closing(NbdReader(export.socket)) as reader:
            assert bytes(read(reader, 0, SIZE)) == content
    ImageTool(processes).check(image, "qcow2")


def test_a_raw_writer_stays_inside_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    ImageTool(SystemProcesses()).create_image(path, "raw", MIB, {})
    with contextlib.closing(RawFileWriter(path, MIB)) as writer:
        writer.write(MIB - 3, b"end")
        with pytest.raises(ValueError, match="of 1048576"):
            writer.write(MIB - 2, b"end")
        writer.flush()
    assert path.stat().st_size == MIB
    assert path.read_bytes().endswith(b"end")


@pytest.mark.parametrize("direct", [True, False])
def test_a_raw_writer_takes_pieces_of_every_size_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:  # as file systems refuse it
        monkeypatch.setattr(rawfile, "_DIRECT", os.O_WRONLY | os.O_DIRECTORY)
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MIB))
    expected, source = bytearray(8 * MIB), random.Random(7)
    memory = memoryview(mmap.mmap(-1, 4 * MIB))  # begins with a page
    memory[:] = source.randbytes(4 * MIB)
    pieces = [(0, 0, 4 * MIB), (4 * MIB, 4096, MIB), (5 * MIB + 512, 0, MIB), (MIB, 3, 300_001)]
    pieces += [(source.randrange(4 * MIB), source.randrange(MIB), 70_000) for _ in range(20)]
    with contextlib.closing(RawFileWriter(path, 8 * MIB)) as writer:
        for offset, start, length in pieces:
            writer.write(offset, memory[start : start + length])
            expected[offset : offset + length] = memory[start : start + length]
        writer.flush()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("length", [1, MIB])
def test_what_a_raw_writer_cannot_write_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * MIB))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    with contextlib.closing(RawFileWriter(path, 4 * MIB)) as writer:
        monkeypatch.setattr(rawfile.os, "pwrite", full)
        with pytest.raises(HostError, match="at 2097152: no room"):
            writer.write(2 * MIB, memoryview(mmap.mmap(-1, length)))


def _zeroed(path: Path, content: bytes, ranges: list[tuple[int, int]]) -> None:
    """Zero the ranges of what holds ``content``, and compare."""
    expected = bytearray(content)
    with contextlib.closing(RawFileWriter(path, len(content))) as writer:
        for offset, length in ranges:
            writer.zero(offset, length)
            expected[offset : offset + length] = bytes(length)
        with pytest.raises(ValueError, match="of"):
            writer.zero(len(content) - 1, 2)
        writer.flush()
    assert path.read_bytes() == expected


_RANGES = [(0, 5000), (10_000, 3), (MIB - 700, 1400), (2 * MIB, 2 * MIB)]


@pytest.mark.parametrize("holes", [True, False])
def test_zeroes_become_holes_of_a_file_where_it_can_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holes: bool
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 4 * MIB)
    if not holes:
        monkeypatch.setattr(rawfile.RawFileWriter, "_deallocated", lambda *_, device: False)
    _zeroed(path, b"x" * 4 * MIB, _RANGES)
    assert (path.stat().st_blocks * 512 < 3 * MIB) is holes


def test_a_file_that_cannot_have_holes_gets_zeroes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(rawfile.fcntl, "ioctl", refuses)
    (tmp_path / "disk").write_bytes(b"x" * MIB)
    _zeroed(tmp_path / "disk", b"x" * MIB, [(1000, 10_000)])


def test_a_block_device_is_zeroed_to_the_byte(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 4 * MIB)
    with loop_device(image, SystemProcesses()) as device:
        _zeroed(device, b"x" * 4 * MIB, _RANGES)


def test_an_export_ends_with_its_context_and_leaves_no_socket(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with NbdExport(SystemProcesses(), tmp_path / "disk", "raw") as export:
        assert export.socket.exists()
    assert not export.socket.parent.exists()


def test_what_killed_processes_left_is_swept_away_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "disk").write_bytes(bytes(MIB))
    old, young = tmp_path / "drvm-nbd-old", tmp_path / "drvm-nbd-young"
    for directory in (old, young):
        directory.mkdir()
        (directory / "log").touch()
    os.utime(old, (1, 1))
    with NbdExport(SystemProcesses(), tmp_path / "disk", "raw") as export:
        os.utime(export.socket.parent, (1, 1))
        with NbdExport(SystemProcesses(), tmp_path / "disk", "raw"):
            assert export.socket.exists()
    assert (old.exists(), young.exists()) == (False, True)


def test_zeroes_next_to_what_a_claimed_device_still_has_to_write_come_to_be(
    tmp_path: Path,
) -> None:
    """In one page: the kernel refuses them until that is written (seen: EBUSY)."""
    (tmp_path / "image").write_bytes(b"\xaa" * MIB)
    with loop_device(tmp_path / "image", SystemProcesses()) as device:
        claim = os.open(device, os.O_RDWR | os.O_EXCL)
        writer = RawFileWriter(device, MIB)
        writer.write(8192, b"\x01" * 700)
        writer.zero(8192 + 700, MIB - 8892)
        writer.flush()
        writer.close()
        os.close(claim)
        held = device.read_bytes()
    assert held == b"\xaa" * 8192 + b"\x01" * 700 + bytes(MIB - 8892)


def test_a_server_that_never_had_a_client_is_ended_by_whoever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client was killed right after it had started it; it has the image locked."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    disk, clock = tmp_path / "disk", SystemClock()
    disk.write_bytes(bytes(MIB))

    def first_connection(self: NbdExport, child: Child, log: Path) -> None:
        deadline_s = clock.monotonic_s() + 30
        while not in_use(disk) and clock.monotonic_s() < deadline_s:
            clock.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def work(_: Trace) -> None:
        with NbdExport(SystemProcesses(), disk, "raw", writable=True):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(NbdExport, "_first_connection", first_connection)
        killed_at("by itself", work)
    assert in_use(disk)
    (dead,) = dead_exports()
    assert dead.parent == tmp_path and sweep_exports(clock) == 1
    assert await_unused(disk, clock, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]
    assert sweep_exports(clock) == 0


def test_a_dead_server_that_says_nothing_stops_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose storage is gone: it is left for a time when it answers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(nbd_module, "_GREETING_S", 0.1)
    directory = tmp_path / f"{nbd_module._PREFIX}1"
    directory.mkdir()
    (directory / "owner").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(directory / "socket"))
        server.listen()
        assert sweep_exports(SystemClock()) == 1
        assert dead_exports() == [directory]
    assert sweep_exports(SystemClock()) == 1
    assert not directory.exists()


def test_an_image_that_is_no_image_is_refused_with_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * MIB)
    with (
        pytest.raises(HostError, match="qcow2"),
        NbdExport(SystemProcesses(), tmp_path / "disk", "qcow2"),
    ):
        pass


def test_the_server_ends_when_the_exporting_process_is_killed(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with NbdExport(SystemProcesses(), tmp_path / "disk", "raw") as export:
            os.write(writing, str(export.socket).encode())
            os.kill(os.getpid(), 9)
    os.close(writing)
    os.waitpid(child, 0)
    socket = Path(os.read(reading, 4096).decode())
    os.close(reading)
    argv = ["timeout", "5", "sh", "-c", 'while pgrep -f "$0" >/dev/null; do sleep 0.05; done']
    SystemProcesses().run([*argv, f"[q]emu-nbd.*{socket}"], timeout_s=10)
    for leftover in socket.parent.iterdir():
        leftover.unlink()
    socket.parent.rmdir()


def test_the_end_of_a_disk_may_be_no_whole_sector_where_only_those_are_taken(tmp_path):
    path, processes = tmp_path / "disk.vhdx", SystemProcesses()
    ImageTool(processes).create_image(path, "vhdx", 1024, {})
    with (
        NbdExport(processes, path, "vhdx", writable=True) as export,
        contextlib.closing(NbdWriter(export.socket)) as writer,
        contextlib.closing(NbdReader(export.socket)) as reader,
    ):
        writer.write(0, b"a" * 1024)
        writer.zero(700, 100)
        found = memoryview(bytearray(1024))
        reader.read_into(0, found[:700])
        assert found[:700] == b"a" * 700
        reader.read_into(0, found)
        assert found == b"a" * 700 + bytes(324)
        writer.write(512, b"b" * 10)
        reader.read_into(512, found[:20])
        assert found[:20] == b"b" * 10 + bytes(10)
