"""Images that reach for other files, or that never end, are refused before QEMU sees them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from drvm.core.errors import HostError, ProcessFailed
from drvm.core.process import SystemProcesses
from drvm.core.units import MIB
from drvm.host.foreign import ForeignImage, examine
from drvm.host.images import Part

SHADOW = b"/etc/shadow"


class NoProcesses:
    """Whatever would run a tool has failed the test: it must not see such a file."""

    def run(self, argv, **_):
        raise AssertionError(f"{argv[0]} was shown a hostile image")

    def spawn(self, argv, **_):
        raise AssertionError(f"{argv[0]} was shown a hostile image")


def made(path: Path, image_format: str, *options: str) -> Path:
    argv = ["qemu-img", "create", "-q", "-f", image_format, *options, str(path), "8M"]
    SystemProcesses().run(argv, timeout_s=60)
    return path


def stream_vmdk(directory: Path) -> Path:
    raw, path = directory / "raw", directory / "disk.vmdk"
    raw.write_bytes(os.urandom(MIB) + bytes(7 * MIB))
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    SystemProcesses().run([*argv, str(raw), str(path)], timeout_s=60)
    return path


def patched(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)
    return path


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx", "qcow2", "raw"])
def test_images_as_qemu_makes_them_are_taken(tmp_path, image_format):
    path = made(tmp_path / "disk", image_format)
    info = examine(ForeignImage(path, image_format), SystemProcesses())
    assert (info.virtual_size_bytes, info.format) == (8 * MIB, image_format)


def test_a_part_of_a_file_is_an_image_by_itself(tmp_path):
    image = stream_vmdk(tmp_path).read_bytes()
    archive = tmp_path / "a.ova"
    archive.write_bytes(b"?" * 1536 + image + b"?" * 1000)
    part = Part(1536, len(image))
    info = examine(ForeignImage(archive, "vmdk", part), SystemProcesses())
    assert info.virtual_size_bytes == 8 * MIB
    with pytest.raises(HostError, match="cut off"):
        examine(ForeignImage(archive, "vmdk", Part(1536, 1 << 40)), NoProcesses())


def descriptor(kind: bytes, *extents: bytes, parent: bytes = b"") -> bytes:
    lines = [b"# Disk DescriptorFile", b"version=1", b"CID=12345678", b"parentCID=ffffffff"]
    return b"\n".join([*lines, b'createType="%s"' % kind, parent, *extents, b""])


@pytest.mark.parametrize(
    "text",
    [
        descriptor(b"monolithicFlat", b'RW 8 FLAT "/etc/shadow" 0'),
        descriptor(b"monolithicFlat", b'RW 8 FLAT "../../../etc/shadow" 0'),
        descriptor(b"vmfs", b'RW 8 VMFS "/etc/shadow"'),
        descriptor(b"twoGbMaxExtentFlat", b'RW 8 FLAT "/dev/tty" 0'),
        descriptor(b"twoGbMaxExtentSparse", b'RW 8 SPARSE "/proc/kcore"'),
        descriptor(b"monolithicSparse", b'RW 8 SPARSE "nbd:unix:/run/x"'),
        descriptor(b"monolithicFlat", b'RW 8 FLAT "json:{}" 0'),
        b"\n\n" + descriptor(b"monolithicFlat", b'RW 8 FLAT "/etc/shadow" 0'),
        b"COWD" + bytes(600),
        b"",
        b"KDMV",
    ],
)
def test_a_vmdk_that_names_its_data_elsewhere_is_refused_unseen(tmp_path, text):
    path = tmp_path / "disk.vmdk"
    path.write_bytes(text)
    with pytest.raises(HostError):
        examine(ForeignImage(path, "vmdk"), NoProcesses())


CAPACITY, GRAIN, DESCRIPTOR, ENTRIES, DIRECTORY = 12, 20, 28, 44, 56


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (CAPACITY, bytes(8)),
        (CAPACITY, struct.pack("<Q", 1 << 60)),
        (GRAIN, struct.pack("<Q", 1 << 21)),
        (GRAIN, struct.pack("<Q", 0)),
        (GRAIN, struct.pack("<Q", 127)),
        (DESCRIPTOR, struct.pack("<Q", 1 << 40)),
        (ENTRIES, struct.pack("<I", 1 << 31)),
        (DIRECTORY, b"\xff" * 8),
        (512, descriptor(b"custom", b'RW 8 FLAT "/etc/shadow" 0') + bytes(400)),
        (512, descriptor(b"streamOptimized", parent=b'parentFileNameHint="/etc/shadow"')),
        (512, bytes(10240)),
    ],
)
def test_a_vmdk_with_a_header_that_lies_is_refused_unseen(tmp_path, at, data):
    path = patched(stream_vmdk(tmp_path), at, data)
    with pytest.raises(HostError):
        examine(ForeignImage(path, "vmdk"), NoProcesses())


def test_a_footer_that_lies_is_refused_unseen(tmp_path):
    """Where the header says so, QEMU believes the second one, at the end."""
    path = stream_vmdk(tmp_path)
    head = path.read_bytes()[:512]
    lie = head[:CAPACITY] + bytes(8) + head[CAPACITY + 8 :]
    patched(path, DIRECTORY, b"\xff" * 8)
    with path.open("ab") as stream:
        stream.write(bytes(512) + lie + bytes(512))
    with pytest.raises(HostError):
        examine(ForeignImage(path, "vmdk"), NoProcesses())


def test_a_qcow2_on_another_image_is_refused_unseen(tmp_path):
    base = tmp_path / "base"
    base.write_bytes(bytes(8 * MIB))
    path = made(tmp_path / "disk", "qcow2", "-b", str(base), "-F", "raw")
    with pytest.raises(HostError, match="differs from another"):
        examine(ForeignImage(path, "qcow2"), NoProcesses())


def test_a_qcow2_with_its_data_elsewhere_is_refused_unseen(tmp_path):
    path = made(tmp_path / "disk", "qcow2", "-o", f"data_file={tmp_path / 'data'}")
    with pytest.raises(HostError, match="another file"):
        examine(ForeignImage(path, "qcow2"), NoProcesses())


def test_links_pipes_and_devices_are_not_opened(tmp_path):
    (tmp_path / "link.vmdk").symlink_to(stream_vmdk(tmp_path))
    os.mkfifo(tmp_path / "pipe.vmdk")
    for path in (tmp_path / "link.vmdk", tmp_path / "pipe.vmdk", tmp_path, Path("/dev/zero")):
        with pytest.raises(HostError):
            examine(ForeignImage(path, "raw"), NoProcesses())


@pytest.mark.parametrize("image_format", ["vdi", "vhdx"])
def test_tables_that_would_fill_the_memory_are_refused(tmp_path, image_format):
    """The limit is that of the tool; what it says is told."""
    path = made(tmp_path / "disk", image_format)
    if image_format == "vdi":  # disk size and number of blocks: 512 TiB
        patched(path, 0x170, struct.pack("<Q", 0x1FFFFFFF << 20))
        patched(path, 0x180, struct.pack("<I", 0x1FFFFFFF))
        os.truncate(path, 3 << 30)
    else:
        patched(path, 192 * 1024, os.urandom(64 * 1024))
    with pytest.raises(HostError):
        examine(ForeignImage(path, image_format), SystemProcesses())


def test_another_format_than_was_said_is_refused(tmp_path):
    for said, is_really in (("vdi", "vmdk"), ("vhdx", "vdi"), ("qcow2", "vhdx")):
        path = made(tmp_path / f"disk.{said}", is_really)
        with pytest.raises((HostError, ProcessFailed)):
            examine(ForeignImage(path, said), SystemProcesses())
