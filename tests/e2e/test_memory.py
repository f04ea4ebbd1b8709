"""A machine is captured with its memory, lost, and goes on from there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drvm.core.process import Processes
from drvm.lab import guest as lab
from drvm.snapshot import memory, space
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, unique_name

pytestmark = pytest.mark.guest

_LOOK = "cat /proc/sys/kernel/random/boot_id /run/only-in-memory; md5sum < /data/kept"


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str) -> Appliance:
    directory = tmp_path_factory.mktemp("appliance")
    made = make_appliance(directory, f"file://{directory}/repository", None)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def pool(processes: Processes, libvirt_uri: str) -> Iterator[str]:
    name = unique_name("pool")
    with lab.workspace(name) as directory:
        virsh = ["virsh", "-q", "-c", libvirt_uri]
        create = [*virsh, "pool-create-as", name, "dir", "--target", str(directory)]
        processes.run(create, timeout_s=60)
        try:
            yield name
        finally:
            processes.run([*virsh, "pool-destroy", name], timeout_s=60)


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("memory")


def test_a_guest_that_outruns_the_capture_of_its_memory_goes_on_without_a_point(
    appliance: Appliance, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_TIMES_ITS_SIZE", 0)
    monkeypatch.setattr(space, "_POLL_S", 0.005)  # the call may take as little as 0.3 s
    given_up = appliance.drvm("backup", "--memory", guest.name, expect=None)
    assert given_up.code not in (0, 3)
    assert "faster than it can be written" in given_up.err
    assert not [*guest.directory.glob("*drvm-*")]
    for stored in ([], ["--inactive"]):
        assert "drvm-" not in guest.virsh("domblklist", *stored).replace(str(guest.directory), "")
    guest.run("true")
    assert appliance.json("points", guest.name, expect=None).get("points", []) == []


def test_a_lost_machine_goes_on_where_it_was_captured(
    appliance: Appliance, guest: Guest, pool: str
) -> None:
    guest.run("echo told > /run/only-in-memory; head -c 3000000 /dev/urandom > /data/kept")
    before = guest.run(_LOOK)
    point = appliance.backup(guest.name, "--memory")
    assert guest.run(_LOOK) == before
    assert not [*guest.directory.glob("*drvm-*")]
    assert point["memory_bytes"] > 0

    guest.remove()
    plan = appliance.json("restore", guest.name, "--pool", pool, "--dry-run")["plan"]
    assert plan["has_memory"] and not plan["running"]
    appliance.drvm("restore", guest.name, "--pool", pool, "--running")
    assert guest.run(_LOOK) == before
    guest.run("sync; echo 3 > /proc/sys/vm/drop_caches")
    assert guest.run(_LOOK) == before, "it is on the disks too"
    for stored in ([], ["--inactive"]):
        assert str(guest.directory) not in guest.virsh("domblklist", *stored)
