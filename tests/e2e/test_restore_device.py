"""Disks restored onto block devices of this machine: only onto such that nobody uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.process import Processes
from drvm.lab import guest as lab
from tests.appliance import Appliance, make_appliance
from tests.bare import MIB, Bare, bare_machine
from tests.guests import Guest, unique_name
from tests.loops import loop_device

pytestmark = pytest.mark.guest

SIZE = 64 * MIB


@pytest.fixture(scope="module")
def machine(processes: Processes, libvirt_uri: str) -> Iterator[Bare]:
    with bare_machine(processes, "device") as machine:
        machine.io("vda", "write -P 1 0 4M", "write -P 2 40M 1M")
        machine.io("vdb", "write -P 3 1M 2M")
        yield machine


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    made = make_appliance(directory, f"file://{directory}/repository", None)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def point(machine: Bare, appliance: Appliance) -> dict[str, Any]:
    return appliance.backup(machine.name)


@pytest.fixture
def pool(processes: Processes, libvirt_uri: str) -> Iterator[str]:
    name = unique_name("pool")
    virsh = ["virsh", "-q", "-c", libvirt_uri]
    with lab.workspace(name) as directory:
        create = [*virsh, "pool-create-as", name, "dir", "--target", str(directory)]
        processes.run(create, timeout_s=60)
        yield name
        processes.run([*virsh, "pool-destroy", name], timeout_s=60)


@pytest.fixture
def device(tmp_path: Path, processes: Processes) -> Iterator[Path]:
    """A little larger than the disks, and full of something else."""
    image = tmp_path / "device.raw"
    image.write_bytes(b"\xaa" * (SIZE + MIB))
    with loop_device(image, processes) as device:
        yield device


def test_a_disk_is_all_that_is_left_on_its_device(
    appliance: Appliance,
    machine: Bare,
    point: dict[str, Any],
    pool: str,
    device: Path,
    tmp_path: Path,
    processes: Processes,
) -> None:
    name = unique_name("device")
    what = ("clone", point["id"], name, "--pool", pool, "--device", f"vda={device}")
    asked = appliance.drvm(*what, expect=2)
    assert f"overwrite {device}" in asked.err or "add --yes" in asked.err
    appliance.drvm(*what, "--yes", "--start")
    clone = Guest(name, tmp_path, {}, processes)
    try:
        assert f"<source dev='{device}'" in clone.virsh("dumpxml")
        refused = appliance.drvm(
            *("clone", point["id"], unique_name("again"), "--pool", pool),
            *("--device", f"vdb={device}", "--yes"),
            expect=1,
        )
        assert f"the VM {name!r} has it as a disk" in refused.err
    finally:
        clone.remove()
    held = (tmp_path / "device.raw").read_bytes()
    assert held[:SIZE] == machine.disks["vda"].read_bytes()
    assert not any(held[SIZE:]), "what the device held before is behind the disk"


def test_a_device_that_can_not_be_had_is_refused_with_all_else(
    appliance: Appliance,
    point: dict[str, Any],
    pool: str,
    device: Path,
    tmp_path: Path,
    processes: Processes,
) -> None:
    what = ("clone", point["id"], unique_name("no"), "--pool", pool, "--dry-run")

    def refused(*devices: str) -> str:
        switches = [word for one in devices for word in ("--device", one)]
        return appliance.drvm(*what, *switches, expect=1).err

    both = refused(f"vda={device}", f"vdb={device}")
    assert both.count("another disk goes there too") == 2
    assert "no such file or directory" in refused("vda=/dev/drvm-none")
    assert "it is no block device" in refused(f"vda={tmp_path}/device.raw")
    small = tmp_path / "small.raw"
    small.write_bytes(bytes(MIB))
    with loop_device(small, processes) as little:
        assert "it has 1.0 MiB and the disk 64.0 MiB" in refused(f"vda={little}")
    processes.run(["mkfs.ext4", "-q", "-F", str(device)], timeout_s=60)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    processes.run(["mount", str(device), str(mounted)], timeout_s=30)
    try:
        assert "it is in use" in refused(f"vda={device}")
    finally:
        processes.run(["umount", str(mounted)], timeout_s=30)
    assert appliance.drvm(*what, "--device", f"vdz={device}", expect=2).err
