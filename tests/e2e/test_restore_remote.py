"""Restores to another machine, through nothing but its libvirt's URI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.process import Processes
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name
from tests.second_host import IMAGES, SecondHost, second_host

pytestmark = pytest.mark.guest

SUMS = "cat /data/proof /root/proof; sha256sum /data/noise /root/noise"


@pytest.fixture(scope="module")
def second(processes: Processes, libvirt_uri: str) -> Iterator[SecondHost]:
    with second_host(processes) as host:
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


@pytest.mark.parametrize(
    ("image_format", "way"),
    [
        pytest.param("qcow2", "tcp"),
        pytest.param("raw", "ssh", marks=pytest.mark.long),
        pytest.param("raw", "tcp", marks=pytest.mark.long),
        pytest.param("qcow2", "ssh", marks=pytest.mark.long),
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
    uri = second.uri if way == "tcp" else second.ssh_uri
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
