"""What a machine keeps outside its disks comes back as it was at the point, not as it is now."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from defusedxml.ElementTree import fromstring

from drvm.core.process import Processes
from drvm.host import tpm
from drvm.lab import guest as lab
from tests import firmware
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name

pytestmark = pytest.mark.guest

SECRET = "hunter2"  # of a screen that nobody listens to


@dataclasses.dataclass(frozen=True)
class Protected:
    """A machine with UEFI and a TPM that goes on running, and its points ``first`` and
    ``second``. ``live`` is what lay outside its disks when the first was taken."""

    guest: Guest
    appliance: Appliance
    pool: str
    first: dict[str, Any]
    second: dict[str, Any]
    live: tuple[bytes, dict[str, bytes]]

    def copy(self, *arguments: str, name: str | None = None) -> Guest:
        options = ("--pool", self.pool)
        document = self.appliance.json(*arguments, *options)["restored"]
        disks = dict(zip(("vda", "sda"), map(Path, document["files"]), strict=False))
        return Guest(name or self.guest.name, self.guest.directory, disks, self.guest.processes)


def special(xml: str) -> str:
    """With a password, and the data on a SCSI disk."""
    screen = f"<graphics type='vnc' port='-1' autoport='yes' passwd='{SECRET}'/>"
    controller = "<controller type='scsi' model='virtio-scsi'/>"
    disk = "<target dev='sda' bus='scsi'/>"
    xml = xml.replace("<target dev='vdb' bus='virtio'/>", disk)
    return xml.replace("</devices>", f"{controller}{screen}</devices>")


def outside(guest: Guest) -> tuple[bytes, dict[str, bytes]]:
    """UEFI variables and TPM state, by libvirt's word for where they lie."""
    tree = fromstring(guest.virsh("dumpxml", "--inactive"))
    state = tpm.state_directory(tpm.ROOT, tree.findtext("uuid", ""), None)
    chosen = f"/var/lib/libvirt/qemu/nvram/{guest.name}_VARS.fd"
    variables = Path(tree.findtext("os/nvram", chosen))
    return variables.read_bytes(), tpm.read_state(state)


@pytest.fixture(scope="module")
def machine(
    make_module_guest: MakeGuest,
    tmp_path_factory: pytest.TempPathFactory,
    processes: Processes,
    libvirt_uri: str,
) -> Iterator[Protected]:
    guest = make_module_guest("uefi", uefi=True, edit=special)
    directory = tmp_path_factory.mktemp("whole")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    appliance.drvm("init")
    firmware.write(guest, "first")
    first = appliance.backup(guest.name)
    live = outside(guest)
    firmware.write(guest, "second")
    second = appliance.backup(guest.name)
    name = unique_name("pool")
    virsh = ["virsh", "-q", "-c", libvirt_uri]
    with lab.workspace(name) as pool:
        create = [*virsh, "pool-create-as", name, "dir", "--target", str(pool)]
        processes.run(create, timeout_s=60)
        try:
            yield Protected(guest, appliance, name, first, second, live)
        finally:
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)


def test_a_point_holds_the_whole_machine_without_a_warning(machine: Protected) -> None:
    for point in (machine.first, machine.second):
        assert (point["consistency"], point["warnings"]) == ("filesystem", [])
        assert "/data (ext4" in point["guest"]["file_systems"]


def test_an_older_point_brings_back_its_own_variables_and_tpm_state(machine: Protected) -> None:
    name = unique_name("older")
    older = machine.copy("clone", machine.first["id"], name, name=name)
    try:
        variables, state = outside(older)
        assert (variables, state) == machine.live
        assert outside(machine.guest) != machine.live
        assert b"first..." in b"".join(state.values())
        directory = tpm.ROOT / older.virsh("domuuid").strip() / "tpm2"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    finally:
        older.remove()
    assert not directory.exists()


def test_secrets_of_a_definition_are_stored_and_never_shown(
    machine: Protected, tmp_path: Path
) -> None:
    point, name = machine.first["id"], unique_name("dry")
    for arguments in (
        ("show", point, "--xml"),
        ("--json", "show", point, "--xml"),
        ("clone", point, name, "--pool", machine.pool, "--dry-run"),
        ("--json", "clone", point, name, "--pool", machine.pool, "--dry-run"),
    ):
        result = machine.appliance.drvm(*arguments)
        assert SECRET not in result.out + result.err
        assert "[hidden]" in result.out
    machine.appliance.drvm("restore", point, "--output", str(tmp_path / "out"))
    stored = tmp_path / "out" / "domain.xml"
    assert SECRET in stored.read_text()
    files = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert {"nvram.fd", "tpm2-00.permall"} <= files.keys()
    assert {stat.S_IMODE(mode) for mode in files.values()} == {0o600}
    repository = machine.appliance.directory / "repository"
    for path in repository.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


@pytest.mark.long
def test_a_restored_machine_boots_with_its_own_variables_and_tpm(machine: Protected) -> None:
    name = unique_name("booted")
    older = machine.copy("clone", machine.first["id"], name, "--start", name=name)
    try:
        older.wait_for_agent()
        assert firmware.read(older) == (["first"], "first")
        assert firmware.read(machine.guest) == (["first", "second"], "second")
    finally:
        older.remove()


@pytest.mark.long
def test_a_replaced_machine_gets_the_state_of_the_point_and_keeps_the_old_one_beside(
    machine: Protected, tmp_path: Path
) -> None:
    machine.guest.virsh("destroy")
    before = outside(machine.guest)
    off = machine.appliance.backup(machine.guest.name)
    machine.appliance.drvm("restore", off["id"], "--output", str(tmp_path / "off"))
    assert (tmp_path / "off" / "nvram.fd").read_bytes() == before[0]
    old = Path(f"/var/lib/libvirt/qemu/nvram/{machine.guest.name}_VARS.fd")
    arguments = ("restore", machine.first["id"], "--replace", "--yes", "--pool", machine.pool)
    said = machine.appliance.drvm(*arguments)
    replaced = machine.guest
    assert str(old) in said.out + said.err
    old.unlink()
    assert outside(replaced) == machine.live
    state = tpm.ROOT / replaced.virsh("domuuid").strip()
    (aside,) = state.glob("tpm2.before-*")
    assert tpm.read_state(aside) == before[1]
    replaced.start()
    assert firmware.read(replaced) == (["first"], "first")


@pytest.mark.long
def test_a_drill_boots_the_points_own_state_and_leaves_none(machine: Protected) -> None:
    states = set(tpm.ROOT.iterdir())
    document = machine.appliance.json("drill", machine.first["id"])
    (drill,) = document["drills"]
    assert drill["passed"]
    assert set(tpm.ROOT.iterdir()) == states


@pytest.mark.long
def test_a_machine_of_an_older_build_of_the_firmware_boots_where_it_is_restored(
    machine: Protected, make_guest: MakeGuest
) -> None:
    """Its chip has 2 MiB, and libvirt would choose a firmware for one of 4."""

    def older(xml: str) -> str:
        code, variables = (Path(f"/usr/share/OVMF/OVMF_{part}.fd") for part in ("CODE", "VARS"))
        if not code.exists():
            pytest.skip(f"there is no {code}")
        start, end = xml.index("<os firmware"), xml.index("<boot")
        return (
            f"{xml[:start]}<os><type arch='x86_64' machine='q35'>hvm</type>"
            f"<loader readonly='yes' type='pflash'>{code}</loader>"
            f"<nvram template='{variables}'/>{xml[end:]}"
        )

    guest = make_guest("older", uefi=True, edit=older)
    firmware.write(guest, "older")
    machine.appliance.backup(guest.name)
    name = unique_name("older")
    options = ("--pool", machine.pool, "--start")
    machine.appliance.drvm("clone", guest.name, name, *options)
    copy = Guest(name, guest.directory, {}, guest.processes)
    try:
        copy.wait_for_agent()
        assert firmware.read(copy) == (["older"], "older")
        assert "/OVMF_CODE.fd" in copy.virsh("dumpxml")
    finally:
        copy.remove()
