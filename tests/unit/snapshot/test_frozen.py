from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError
from drvm.core.process import SystemProcesses
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.frozen import ChangeGuard
from drvm.snapshot.imagefiles import ImageFile, ImageFilesEngine
from tests.capturing import digest
from tests.reading import read


def _overwrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"new")


def _replace(path: Path) -> None:
    status = path.stat()
    path.with_suffix(".new").write_bytes(path.read_bytes())
    os.utime(path.with_suffix(".new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_suffix(".new").replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": _overwrite,
    "cut": lambda path: os.truncate(path, 10),
    "replaced": _replace,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_an_image_is_noticed(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 4096)
    guard = ChangeGuard([path], SystemClock())
    guard.check()
    change(path)
    with pytest.raises(CaptureError):
        guard.check()


def engine(*files: ImageFile) -> ImageFilesEngine:
    processes = SystemProcesses()
    return ImageFilesEngine(ImageTool(processes), processes, SystemClock(), files)


def request(name: str = "legacy") -> CaptureRequest:
    return CaptureRequest(vm=name, point_id="0123456789abcdef")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB + bytes(MIB) + b"y" * 512)
    return path


@pytest.fixture
def qcow2(tmp_path: Path, raw: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    SystemProcesses().run(argv, timeout_s=30)
    return path


def test_one_disk_as_raw_and_as_qcow2_reads_the_same(raw: Path, qcow2: Path) -> None:
    with engine(ImageFile(raw), ImageFile(qcow2)).capture(request()) as machine:
        assert [(d.target, d.format) for d in machine.disks] == [
            ("disk0", "raw"),
            ("disk1", "qcow2"),
        ]
        assert digest(machine.disks[0]) == digest(machine.disks[1])
        assert {disk.size_bytes for disk in machine.disks} == {2 * MIB + 512}
        assert machine.definition_xml is None


def test_a_name_has_one_uuid_for_ever(raw: Path) -> None:
    uuids = []
    for name in ("legacy", "legacy", "other"):
        with engine(ImageFile(raw)).capture(request(name)) as machine:
            uuids.append(machine.uuid)
    assert uuids[0] == uuids[1] != uuids[2]


def test_no_byte_is_given_out_that_may_be_of_a_later_instant(raw: Path, qcow2: Path) -> None:
    with engine(ImageFile(raw), ImageFile(qcow2)).capture(request()) as machine:
        for path, disk in zip((raw, qcow2), machine.disks, strict=True):
            _overwrite(path)
            with contextlib.closing(disk.open()) as reader, pytest.raises(CaptureError):
                read(reader, 0, 4096)
            with pytest.raises(CaptureError):
                list(disk.extents())


def test_what_a_file_holds_never_decides_its_format(tmp_path: Path, qcow2: Path) -> None:
    unknown = tmp_path / "disk.backup"
    unknown.write_bytes(bytes(MIB))
    misnamed = tmp_path / "cloud.img"
    misnamed.write_bytes(qcow2.read_bytes())
    for path in (unknown, misnamed, tmp_path / "missing.img"):
        with pytest.raises(CaptureError), engine(ImageFile(path)).capture(request()):
            pytest.fail(f"captured {path}")
    with engine(ImageFile(misnamed, "qcow2"), ImageFile(unknown, "raw")).capture(request()) as two:
        assert [disk.format for disk in two.disks] == ["qcow2", "raw"]


def test_an_image_that_a_qemu_has_open_is_refused(qcow2: Path, tmp_path: Path) -> None:
    argv = ["qemu-nbd", "-t", "-f", "qcow2", "-k", str(tmp_path / "socket"), str(qcow2)]
    writer = SystemProcesses().spawn(argv)
    try:
        while not (tmp_path / "socket").exists():
            assert writer.returncode() is None
        with (
            pytest.raises(CaptureError, match="in use"),
            engine(ImageFile(qcow2)).capture(request()),
        ):
            pytest.fail("captured")
    finally:
        writer.stop()
    with engine(ImageFile(qcow2)).capture(request()) as machine:
        assert len(machine.disks) == 1
