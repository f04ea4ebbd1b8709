"""The main job on a real guest and a real S3 server: back up, lose, restore, clone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.process import Processes
from drvm.lab import guest as lab
from drvm.lab.services import S3Server
from tests import chain
from tests.appliance import Appliance, make_appliance
from tests.capturing import image_digest
from tests.guests import Guest, MakeGuest, unique_name
from tests.proving import proven_point

pytestmark = [pytest.mark.guest, pytest.mark.s3]


@pytest.fixture(scope="module")
def appliance(
    seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str
) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    made = make_appliance(directory, f"s3://{seaweedfs.bucket}/main-job", seaweedfs)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("main")


@pytest.fixture(scope="module")
def pool(processes: Processes, libvirt_uri: str) -> Iterator[str]:
    """A storage pool in a directory that QEMU can reach."""
    name = unique_name("pool")
    with lab.workspace(name) as directory:
        virsh = ["virsh", "-q", "-c", libvirt_uri]
        create = [*virsh, "pool-create-as", name, "dir", "--target", str(directory)]
        processes.run(create, timeout_s=60)
        try:
            yield name
        finally:
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)


def restored(
    appliance: Appliance, processes: Processes, guest: Guest, name: str, *arguments: str
) -> Guest:
    """Restore or clone; the machine that came of it, booted."""
    document = appliance.json(*arguments, "--start")["restored"]
    files = [Path(path) for path in document["files"]]
    machine = Guest(name, guest.directory, {"vda": files[0], "vdb": files[1]}, processes)
    machine.wait_for_agent()
    return machine


def disk(point: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = [disk for disk in point["disks"] if disk["target"] == target]
    return dict(found)


def test_the_second_point_stores_only_what_changed(guest: Guest, appliance: Appliance) -> None:
    guest.run("dd if=/dev/urandom of=/data/big bs=1M count=24 2>/dev/null; sync")
    first = appliance.backup(guest.name)
    guest.run("dd if=/dev/urandom of=/data/big bs=4096 seek=9 count=16 conv=notrunc; sync")
    second = appliance.backup(guest.name)
    assert first["consistency"] == second["consistency"] == "filesystem"
    assert disk(first, "vdb")["new_bytes"] >= 24 << 20
    assert 16 * 4096 <= disk(second, "vdb")["new_bytes"] <= 40 * 4096
    assert second["stored_bytes"] < first["stored_bytes"] / 50
    assert second["parent"] == first["id"]


def test_what_is_restored_is_what_was_frozen_and_a_chain_of_records_without_a_gap(
    guest: Guest,
    appliance: Appliance,
    processes: Processes,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in appliance.env.items():
        monkeypatch.setenv(variable, value)
    chain.start(guest)
    with appliance.wiring() as wiring:
        point = proven_point(wiring, guest, appliance.directory)
    written = chain.stop(guest)
    name = unique_name("chain")
    clone = restored(appliance, processes, guest, name, "clone", point.id, name, "--pool", pool)
    try:
        counts = chain.verify([clone.run(f"cat {path}") for path in chain.FILES])
        chain.assert_one_instant(counts)
        assert 0 < min(counts) <= written
        live = chain.verify([guest.run(f"cat {path}") for path in chain.FILES])
        assert live == [written, written], "the guest itself lost records"
    finally:
        clone.remove()


def test_zeroed_and_trimmed_ranges_come_back_as_zeroes(
    guest: Guest, appliance: Appliance, tmp_path: Path
) -> None:
    guest.run("dd if=/dev/urandom of=/data/gone bs=1M count=8; cp /data/gone /root/gone; sync")
    marker = guest.run("head -c 4096 /data/gone | sha256sum").split()[0]
    appliance.backup(guest.name)
    guest.run("rm /data/gone; dd if=/dev/zero of=/root/gone bs=1M count=8 conv=notrunc; sync")
    guest.run("fstrim /data; fstrim /; sync")
    point = appliance.backup(guest.name)
    appliance.drvm("restore", point["id"], "--output", str(tmp_path / "out"), "--format", "raw")
    for target in ("vda", "vdb"):
        with (tmp_path / "out" / f"{target}.raw").open("rb") as image:
            while block := image.read(4096):
                assert hashlib.sha256(block).hexdigest() != marker, f"{target}: old data is back"


def test_restored_images_are_byte_for_byte_what_was_stored_of_a_machine_that_is_off(
    guest: Guest, appliance: Appliance, processes: Processes, tmp_path: Path
) -> None:
    guest.shutdown()
    try:
        point = appliance.backup(guest.name)
        assert (point["consistency"], point["engine"]) == ("offline", "offline")
        out = tmp_path / "out"
        for image_format in ("raw", "qcow2"):
            appliance.drvm("restore", point["id"], "--output", str(out), "--format", image_format)
            for target, source_format in (("vda", "qcow2"), ("vdb", "raw")):
                found = image_digest(
                    out / f"{target}.{image_format}", image_format, tmp_path, processes
                )
                live = image_digest(guest.disks[target], source_format, tmp_path, processes)
                assert found == live, f"{target} as {image_format}"
            shutil.rmtree(out)
    finally:
        guest.start()


def test_a_lost_machine_comes_back_with_its_identity_and_a_clone_gets_its_own(
    make_guest: MakeGuest, appliance: Appliance, processes: Processes, pool: str
) -> None:
    lost = make_guest("lost")
    lost.run("echo precious > /data/file; echo too > /root/file; sync")
    uuid = lost.virsh("domuuid").strip()
    appliance.backup(lost.name)
    lost.remove()
    for path in lost.disks.values():
        path.unlink()
    back = restored(appliance, processes, lost, lost.name, "restore", lost.name, "--pool", pool)
    name = unique_name("copy")
    clone = restored(appliance, processes, lost, name, "clone", lost.name, name, "--pool", pool)
    try:
        assert back.virsh("domuuid").strip() == uuid != clone.virsh("domuuid").strip()
        for machine in (back, clone):
            assert machine.run("cat /data/file /root/file") == "precious\ntoo\n"
        assert not set(back.disks.values()) & set(clone.disks.values())
        assert str(lost.directory) not in clone.virsh("dumpxml")
        refused = appliance.drvm("restore", lost.name, "--pool", pool, expect=1)
        assert "exists on" in refused.err
        back.virsh("destroy")
        appliance.drvm("restore", lost.name, "--replace", "--yes", "--pool", pool)
        assert back.virsh("domuuid").strip() == uuid
    finally:
        clone.remove()
        back.remove()
