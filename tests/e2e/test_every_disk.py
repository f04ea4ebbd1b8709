"""Every kind of disk that drvm captures, on real devices: virtio and SCSI, files and block devices,
512 and 4096 byte sectors, sizes that end inside a block; and media that it leaves out."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from drvm.core.errors import ProcessFailed
from drvm.core.process import Processes
from drvm.core.units import MIB
from drvm.lab import guest as lab
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, unique_name
from tests.loops import loop_device

pytestmark = pytest.mark.guest

ODD = 3 * MIB + 512


@dataclass(frozen=True)
class Kind:
    bus: str
    format: str
    size_bytes: int
    sector_bytes: int = 0
    """Of the block device that it lies on; 0: it is a file."""


DISKS = {
    "vda": Kind("virtio", "raw", ODD),
    "vdb": Kind("virtio", "raw", ODD, 512),
    "vdc": Kind("virtio", "raw", 3 * MIB + 4096, 4096),
    "sda": Kind("scsi", "qcow2", ODD),
    "sdb": Kind("scsi", "raw", ODD, 512),
    "sdc": Kind("scsi", "qcow2", MIB, 512),
}


@dataclass(frozen=True)
class Everything:
    machine: Guest
    appliance: Appliance
    contents: Mapping[str, str]
    overlays: Path


def content(target: str, size_bytes: int) -> bytes:
    """Noise, zeroes, and noise up to the last byte."""
    noise = random.Random(target).randbytes
    return noise(MIB // 4) + bytes(size_bytes - MIB // 2) + noise(MIB // 4)


def element(target: str, kind: Kind, path: Path) -> str:
    where = ("block", "dev") if path.is_block_device() else ("file", "file")
    return (
        f"<disk type='{where[0]}' device='disk'><driver name='qemu' type='{kind.format}'/>"
        f"<source {where[1]}='{path}'/><target dev='{target}' bus='{kind.bus}'/></disk>"
    )


def medium(target: str, source: str) -> str:
    return (
        f"<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>{source}"
        f"<target dev='{target}' bus='sata'/><readonly/></disk>"
    )


def make_disk(
    target: str, kind: Kind, directory: Path, processes: Processes, cleanup: contextlib.ExitStack
) -> Path:
    raw = directory / f"{target}.content"
    raw.write_bytes(content(target, kind.size_bytes))
    path = directory / f"{target}.{kind.format}"
    if kind.sector_bytes:
        below = directory / f"{target}.device"
        below.touch()
        with below.open("r+b") as file:
            file.truncate(kind.size_bytes if kind.format == "raw" else 4 * MIB)
        path = cleanup.enter_context(loop_device(below, processes))
        argv = ["losetup", "--sector-size", str(kind.sector_bytes), str(path)]
        try:
            processes.run(argv, timeout_s=30)
        except ProcessFailed as problem:
            pytest.skip(f"no loop device with sectors of {kind.sector_bytes}: {problem}")
    argv = ["qemu-img", "convert", "-f", "raw", "-O", kind.format]
    argv += ["-n"] if kind.format == "raw" and kind.sector_bytes else []
    processes.run([*argv, str(raw), str(path)], timeout_s=30)
    raw.unlink()
    return path


@pytest.fixture(scope="module")
def everything(
    libvirt_uri: str, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Everything]:
    name = unique_name("every")
    with contextlib.ExitStack() as cleanup:
        directory = cleanup.enter_context(lab.workspace(name))
        overlays = directory / "overlays"
        overlays.mkdir()
        overlays.chmod(0o711)
        disks = {
            target: make_disk(target, kind, directory, processes, cleanup)
            for target, kind in DISKS.items()
        }
        seed = directory / "seed.iso"
        seed.write_bytes(bytes(MIB))
        definition = directory / "domain.xml"
        definition.write_text(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
            "<controller type='scsi' model='virtio-scsi'/>"
            + "".join(element(target, kind, disks[target]) for target, kind in DISKS.items())
            + medium("sdx", f"<source file='{seed}'/>")
            + medium("sdy", "")
            + "</devices></domain>"
        )
        machine = Guest(name, directory, disks, processes)
        processes.run(["virsh", "-q", "-c", libvirt_uri, "define", str(definition)], timeout_s=30)
        cleanup.callback(machine.remove)
        machine.virsh("start")
        home = tmp_path_factory.mktemp("every")
        more = f"overlay_dir: {overlays}\noverlay_reserve: 16 MiB\n"
        appliance = make_appliance(home, f"file://{home}/repository", None, more)
        appliance.drvm("init")
        contents = {
            target: hashlib.sha256(content(target, kind.size_bytes)).hexdigest()
            for target, kind in DISKS.items()
        }
        yield Everything(machine, appliance, contents, overlays)


@pytest.mark.parametrize("engine", ["external", "offline"])
def test_every_disk_comes_back_byte_for_byte(
    everything: Everything, tmp_path: Path, engine: str
) -> None:
    machine, appliance = everything.machine, everything.appliance
    if engine == "offline":
        machine.virsh("destroy")
    point = appliance.backup(machine.name)
    assert point["engine"] == engine
    assert {disk["target"]: disk["size_bytes"] for disk in point["disks"]} == {
        target: kind.size_bytes for target, kind in DISKS.items()
    }
    media = [line for line in point["warnings"] if "medium" in line]
    assert media == ["sdx is a removable medium and is not captured"]
    out = tmp_path / "out"
    appliance.drvm("restore", point["id"], "--output", str(out), "--format", "raw")
    for target, expected in everything.contents.items():
        with (out / f"{target}.raw").open("rb") as image:
            assert hashlib.file_digest(image, "sha256").hexdigest() == expected, target
    named = machine.virsh("domblklist", "--inactive").split()
    assert {str(path) for path in machine.disks.values()} <= set(named)
    assert list(everything.overlays.iterdir()) == []
    assert [path.name for path in machine.directory.iterdir() if "drvm-" in path.name] == []


@pytest.mark.long
def test_block_devices_come_back_as_images_on_the_same_buses(
    everything: Everything, processes: Processes, libvirt_uri: str
) -> None:
    name = unique_name("copy")
    virsh = ["virsh", "-q", "-c", libvirt_uri]
    everything.appliance.backup(everything.machine.name)
    with lab.workspace(name) as pool:
        create = [*virsh, "pool-create-as", name, "dir", "--target", str(pool)]
        processes.run(create, timeout_s=60)
        copy = Guest(name, pool, {}, processes)
        try:
            everything.appliance.drvm(
                "clone", everything.machine.name, name, "--pool", name, "--start"
            )
            for disk in fromstring(copy.virsh("dumpxml")).iter("disk"):
                target = disk.find("target").get("dev")
                if target not in DISKS:
                    assert disk.find("source") is None
                    continue
                assert disk.find("target").get("bus") == DISKS[target].bus
                assert disk.find("source").get("file").startswith(f"{pool}/")
                assert disk.find("driver").get("type") == DISKS[target].format
        finally:
            copy.remove()
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)
