"""Restores to another machine, through nothing but its libvirt's URI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.process import Processes
from tests import firmware
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name
from tests.second_host import IMAGES, POOL, SecondHost, second_host

pytestmark = pytest.mark.guest

SUMS = "cat /data/proof /root/proof; sha256sum /data/noise /root/noise"


@pytest.fixture(scope="module")
def second(processes: Processes, libvirt_uri: str) -> Iterator[SecondHost]:
    with second_host(processes, tls=True) as host:
        yield host


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    made = make_appliance(directory, f"file://{directory}/repository", None)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    """With something of its own on each disk."""
    guest = make_module_guest("travels")
    guest.run(
        "echo root > /root/proof; echo data > /data/proof;"
        "for d in /root /data; do head -c 3000000 /dev/urandom > $d/noise; done; sync"
    )
    return guest


@pytest.fixture(scope="module")
def point(guest: Guest, appliance: Appliance) -> dict[str, Any]:
    return appliance.backup(guest.name)


@pytest.fixture(scope="module")
def sums(guest: Guest, point: dict[str, Any]) -> str:
    return guest.run(SUMS)


def arrived(
    second: SecondHost, appliance: Appliance, name: str, *arguments: str
) -> tuple[Guest, list[str]]:
    """A machine there, and its files, as their host sees them."""
    document = appliance.json(*arguments)["restored"]
    files = [str(path) for path in document["files"]]
    assert all(Path(path).parent == IMAGES for path in files)
    machine = Guest(name, second.images, {}, second.libvirtd.processes, second.uri)
    assert_no_lease(second)
    return machine, files


def assert_no_lease(second: SecondHost) -> None:
    assert not list(second.images.glob("drvm-restore-*"))


def test_the_second_host_is_another_machine(second: SecondHost, processes: Processes) -> None:
    """Its storage is its own, and its libvirtd comes back."""
    for uri in (second.uri, second.ssh_uri, second.tls_uri):
        said = processes.run(["virsh", "-q", "-c", uri, "hostname"], timeout_s=60)
        assert said.stdout.strip() == b"second"
    second.virsh("vol-create-as", POOL, "there", "4096", "--format", "raw")
    assert (second.images / "there").stat().st_size == 4096
    assert second.run(["ls", str(IMAGES)]).stdout == b"there\n"
    assert not Path(IMAGES, "there").exists()
    second.libvirtd.kill()
    second.libvirtd.wait()
    second.virsh("vol-delete", "there", POOL)


@pytest.mark.parametrize(
    ("image_format", "way"),
    [
        pytest.param("qcow2", "tcp"),
        pytest.param("raw", "ssh", marks=pytest.mark.long),
        pytest.param("raw", "tcp", marks=pytest.mark.long),
        pytest.param("qcow2", "ssh", marks=pytest.mark.long),
        pytest.param("qcow2", "tls", marks=pytest.mark.long),
    ],
)
def test_a_machine_runs_on_another_host_with_what_it_held(
    second: SecondHost,
    guest: Guest,
    appliance: Appliance,
    point: dict[str, Any],
    sums: str,
    image_format: str,
    way: str,
) -> None:
    uri = {"tcp": second.uri, "ssh": second.ssh_uri, "tls": second.tls_uri}[way]
    what = ("restore", point["id"], "--to", uri, "--format", image_format, "--verify", "--start")
    machine, files = arrived(second, appliance, guest.name, *what)
    try:
        for file in files:
            there = second.run(["qemu-img", "info", "-U", "-f", image_format, file])
            assert b"backing" not in there.stdout
        machine.wait_for_agent()
        assert machine.run(SUMS) == sums
        assert machine.virsh("domuuid") == guest.virsh("domuuid")
        assert str(guest.directory) not in machine.virsh("dumpxml")
    finally:
        machine.remove()
    for file in files:
        image = second.images / Path(file).name
        if image_format == "qcow2":
            second.run(["qemu-img", "check", "-q", "-f", "qcow2", file])
        assert image.stat().st_blocks * 512 < 200 << 20
        image.unlink()
    second.virsh("pool-refresh", "default")


@pytest.mark.long
def test_a_clone_on_another_host_has_an_identity_of_its_own(
    second: SecondHost, guest: Guest, appliance: Appliance, point: dict[str, Any], sums: str
) -> None:
    name = unique_name("afar")
    what = ("clone", point["id"], name, "--to", second.ssh_uri, "--start")
    clone, files = arrived(second, appliance, name, *what)
    try:
        clone.wait_for_agent()
        assert clone.run(SUMS) == sums
        assert clone.virsh("domuuid") != guest.virsh("domuuid")
        assert all(name in file for file in files)
    finally:
        clone.remove()


@pytest.mark.long
def test_uefi_variables_travel_and_what_a_tpm_holds_is_said_not_to(
    second: SecondHost, make_guest: MakeGuest, appliance: Appliance
) -> None:
    guest = make_guest("uefi", uefi=True)
    firmware.write(guest, "far")
    point = appliance.backup(guest.name)
    what = ("restore", point["id"], "--to", second.uri)
    told = appliance.drvm(*what, "--start")
    assert "the state of its emulated TPM can't be carried" in told.err
    machine = Guest(guest.name, second.images, {}, guest.processes, second.uri)
    try:
        assert_no_lease(second)
        (variables,) = second.images.glob(f"{guest.name}-nvram-*.fd")
        assert f"{IMAGES}/{variables.name}</nvram>" in machine.virsh("dumpxml")
        machine.wait_for_agent()
        assert "/far-" in machine.run("ls /sys/firmware/efi/efivars/*")
    finally:
        machine.remove()


def test_what_can_not_be_reached_is_told_with_what_helps(
    second: SecondHost, appliance: Appliance, point: dict[str, Any]
) -> None:
    no_key = second.ssh_uri.replace("root@", "nobody@")
    for uri, said in (
        (f"qemu+tcp://{second.address}:1/system", "does libvirtd listen there"),
        (f"qemu+tls://{second.address}/system?pkipath=/nonexistent", "/etc/pki/libvirt"),
        (no_key, "ssh-copy-id"),
    ):
        failed = appliance.drvm("restore", point["id"], "--to", uri, expect=1)
        assert "no connection to libvirt" in failed.err and said in failed.err, failed.err
    missing = appliance.drvm("restore", point["id"], "--to", second.uri, "--pool", "none", expect=1)
    assert "pool 'none' does not exist" in missing.err and "there are: default" in missing.err
