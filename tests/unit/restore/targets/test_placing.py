"""Which disks go where by which way, and how the definition names them then."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from defusedxml.ElementTree import fromstring

from drvm.host.model import Pool
from drvm.repository.manifest import Disk, Manifest
from drvm.restore.machine.definition import DefinitionSpec, Identity, rebuild
from drvm.restore.targets.placing import by_volumes, disk_image, placing_problems, planned_volume

FILES = Pool("files", "dir", True, "/var/lib/images", 1 << 40)
VOLUMES = Pool("vg", "logical", True, "/dev/vg", 1 << 40)
TOKEN = "0123456789ab"
DISK: Any = SimpleNamespace(target="vda", format="qcow2", size_bytes=1 << 20)
MANIFEST: Any = SimpleNamespace(vm_uuid="u", id="i")
ORIGINAL = """<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2'/><source file='/old.qcow2'/><target dev='vda' bus='virtio'/>
</disk></devices></domain>"""


def planned(pool: Pool, image_format: str | None = None) -> Any:
    disk: Disk = DISK
    manifest: Manifest = MANIFEST
    return planned_volume(disk, pool, "web1", TOKEN, manifest, image_format)


@pytest.mark.parametrize(
    ("remote", "pool", "expected"),
    [(False, FILES, False), (False, VOLUMES, True), (False, None, False), (True, FILES, True)],
)
def test_files_of_this_machine_alone_are_made_as_files(
    remote: bool, pool: Pool | None, expected: bool
) -> None:
    host: Any = SimpleNamespace(remote=remote)
    assert by_volumes(host, pool) is expected


def test_a_volume_is_named_by_the_machine_the_disk_and_the_restore() -> None:
    assert str(planned(FILES).path) == f"/var/lib/images/web1-vda-{TOKEN}.qcow2"
    assert str(planned(VOLUMES, "raw").path) == f"/dev/vg/web1-vda-{TOKEN}.raw"


@pytest.mark.parametrize(
    ("pool", "kind", "source"),
    [
        (FILES, "file", f"/var/lib/images/web1-vda-{TOKEN}.raw"),
        (VOLUMES, "block", f"/dev/vg/web1-vda-{TOKEN}.raw"),
    ],
)
def test_the_definition_names_files_as_files_and_devices_as_devices(
    pool: Pool, kind: str, source: str
) -> None:
    images = {"vda": disk_image(planned(pool, "raw"))}
    identity = Identity("web1", "3f8b2c1e-5d0b-4c5e-9a34-6d72766d0001", keep_macs=False)
    made = fromstring(rebuild(ORIGINAL, DefinitionSpec(identity, images)).xml)
    (disk,) = made.iterfind("devices/disk")
    assert disk.get("type") == kind
    assert disk.find("driver").attrib["type"] == "raw"
    assert disk.find("source").attrib == {"dev" if kind == "block" else "file": source}


def test_a_device_of_this_machine_is_named_as_one() -> None:
    assert disk_image(replace(planned(FILES, "raw"), pool=None, device=True)).block


def test_block_devices_hold_raw_disks_and_no_variables() -> None:
    assert not list(placing_problems([planned(FILES), planned(VOLUMES, "raw")], FILES))
    found = list(placing_problems([planned(VOLUMES)], VOLUMES))
    assert ["--format raw" in line or "--pool NAME" in line for line in found] == [True, True]
