"""What is imported is what the image holds, and an image that never ends is not begun."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, HostError
from drvm.core.ids import new_point_id
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, no_trace
from drvm.core.units import MIB
from drvm.host.foreign import ForeignImage
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.imagefiles import machine_uuid
from drvm.snapshot.imported import Import, ImportEngine
from tests.unit.repository.conftest import Vault, cheap_key_derivation, vault
from tests.unit.repository.test_round_trip import noise

__all__ = ["cheap_key_derivation", "vault"]  # fixtures

CONTENT = noise(MIB) + bytes(70 * MIB) + noise(5 * 512, 1)


def image(directory: Path, image_format: str, content: bytes = CONTENT) -> Path:
    raw, path = directory / "raw", directory / f"disk.{image_format}"
    raw.write_bytes(content)
    options = ["-o", "subformat=streamOptimized"] if image_format == "vmdk" else []
    argv = ["qemu-img", "convert", "-f", "raw", "-O", image_format, *options, str(raw), str(path)]
    SystemProcesses().run(argv, timeout_s=60)
    return path


def engine(path: Path, image_format: str) -> ImportEngine:
    images = {"sda": ForeignImage(path, image_format)}
    return ImportEngine(Import(images, "<domain/>"), SystemProcesses(), SystemClock())


def request() -> CaptureRequest:
    return CaptureRequest(vm="web1", point_id=new_point_id())


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx", "qcow2", "raw"])
def test_a_point_of_an_imported_image_holds_what_the_image_holds(
    vault: Vault, tmp_path, image_format
):
    backup = Backup(
        vault.repository,
        writer="here",
        level=1,
        clock=SystemClock(),
        progress=NoProgress(),
        trace=no_trace,
    )
    path = image(tmp_path, image_format)
    result = backup.run(engine(path, image_format), request(), machine_uuid("web1"))
    manifest = result.point.manifest
    assert vault.load(result.point) == [CONTENT]
    assert manifest.disks[0].format == ("raw" if image_format == "raw" else "qcow2")
    assert manifest.definition is not None
    assert (manifest.consistency, manifest.engine) == ("offline", "images")


def test_a_vmdk_as_vmware_streams_it_is_read(vault: Vault, tmp_path):
    """Its header says that the one that counts is at the end, as the directory of grains is."""
    path = image(tmp_path, "vmdk")
    data = path.read_bytes()
    footer = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + data[:512] + bytes(512)
    path.write_bytes(data[:56] + b"\xff" * 8 + data[64:] + footer)
    with engine(path, "vmdk").capture(request()) as frozen:
        found = memoryview(bytearray(len(CONTENT)))
        reader = frozen.disks[0].open()
        reader.read_into(0, found)
        reader.close()
    assert found == CONTENT


def test_tables_that_name_one_grain_for_ever_are_refused(tmp_path):
    """512 GiB of data, all of it the same 64 KiB, in a file of two."""
    path = image(tmp_path, "vmdk", os.urandom(128 * 1024) + bytes(64 * MIB))
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<Q", data, 56)
    (table,) = struct.unpack_from("<I", data, directory * 512)
    (grain,) = struct.unpack_from("<I", data, table * 512)
    struct.pack_into("<512I", data, table * 512, *[grain] * 512)
    end = -(-len(data) // 512)
    entries = 16384
    data += bytes(end * 512 - len(data)) + struct.pack("<I", table) * entries
    struct.pack_into("<Q", data, 12, entries * 512 * 128)
    struct.pack_into("<Q", data, 56, end)
    path.write_bytes(data)
    with pytest.raises(HostError, match="no honest image"), engine(path, "vmdk").capture(request()):
        pass


def test_an_image_that_is_written_to_meanwhile_is_no_point(vault: Vault, tmp_path):
    path = image(tmp_path, "vdi")
    with engine(path, "vdi").capture(request()) as frozen:
        reader = frozen.disks[0].open()
        with path.open("ab") as stream:
            stream.write(b"?")
        with pytest.raises(CaptureError, match="written to"):
            reader.read_into(0, memoryview(bytearray(4096)))
        reader.close()
