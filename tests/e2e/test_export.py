"""A real guest leaves for another hypervisor, and comes back from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.process import Processes
from drvm.lab import guest as lab
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name
from tests.unit.restore.export.envelopes import checked_envelope, items

pytestmark = [pytest.mark.guest, pytest.mark.long]


@pytest.fixture
def appliance(tmp_path: Path) -> Appliance:
    made = make_appliance(tmp_path, f"file://{tmp_path / 'repository'}", None)
    made.drvm("init")
    return made


def test_a_guest_that_was_exported_and_imported_again_boots_with_its_data(
    appliance: Appliance,
    make_guest: MakeGuest,
    processes: Processes,
    virt_type: lab.VirtType,
    tmp_path: Path,
) -> None:
    guest = make_guest("leaves")
    guest.run("head -c 3000000 /dev/urandom > /data/file; cp /data/file /root/file; sync")
    told = guest.run("sha256sum /data/file /root/file")
    appliance.backup(guest.name)
    out = tmp_path / "out"
    exported = appliance.json("export", guest.name, "--format", "vmdk", "--output", str(out))
    assert exported["exported"]["verified"] is True
    root = checked_envelope(out / f"{guest.name}.ovf")
    assert items(root, 4)[0]["VirtualQuantity"] == "256"
    name = unique_name("returned")
    with lab.workspace(name) as directory:
        pool = [("pool-create-as", name, "dir", "--target", str(directory)), ("pool-destroy", name)]
        virsh = ["virsh", "-q", "-c", lab.URI]
        processes.run([*virsh, *pool[0]], timeout_s=60)
        returned = Guest(name, directory, {}, processes)
        try:
            appliance.drvm("import", str(out / f"{guest.name}.ovf"), "--name", name, "--virtio")
            how = ("--pool", name, "--virt-type", virt_type, "--start")
            appliance.drvm("restore", name, *how)
            returned.wait_for_agent()
            assert returned.run("sha256sum /data/file /root/file") == told
        finally:
            returned.remove()
            processes.run([*virsh, *pool[1]], timeout_s=60)
