"""After a backup was killed: what doctor says, and the next backup does. test_kills has every
step."""

from __future__ import annotations

from pathlib import Path

import pytest

from drvm.lab.services import S3Server
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest

pytestmark = [pytest.mark.guest, pytest.mark.s3]


@pytest.fixture(scope="module")
def appliance(
    seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory, libvirt_uri: str
) -> Appliance:
    directory = tmp_path_factory.mktemp("killed")
    made = make_appliance(directory, f"s3://{seaweedfs.bucket}/killed", seaweedfs)
    made.drvm("init")
    return made


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("killed")


def assert_on_its_own_images(guest: Guest, appliance: Appliance) -> None:
    for flags in ((), ("--inactive",)):
        listing = guest.virsh("domblklist", *flags)
        assert {line.split()[1] for line in listing.strip().splitlines()[-2:]} == {
            str(path) for path in guest.disks.values()
        }
    assert [path.name for path in guest.directory.iterdir() if "overlay" in path.name] == []
    assert list(Path(appliance.directory, "state", "journal").glob("*.json")) == []
    assert guest.agent("guest-fsfreeze-status") == "thawed"


def test_doctor_names_what_is_half_done_and_fixes_it_when_asked(
    guest: Guest, appliance: Appliance
) -> None:
    appliance.backup_killed_at(guest.name, "reading")
    named = appliance.json("doctor", expect=1)["findings"]
    assert [f["name"] for f in named if not f["ok"]] == [f"half-done {guest.name}"]
    fixed = appliance.json("doctor", "--fix")["findings"]
    assert f"repair {guest.name}" in [finding["name"] for finding in fixed]
    assert_on_its_own_images(guest, appliance)


def test_the_backup_after_a_kill_first_puts_right_what_was_left(
    guest: Guest, appliance: Appliance
) -> None:
    appliance.backup_killed_at(guest.name, "reading")
    appliance.backup(guest.name)
    assert_on_its_own_images(guest, appliance)


def test_what_a_killed_backup_had_uploaded_is_not_stored_again(
    guest: Guest, appliance: Appliance
) -> None:
    guest.run("dd if=/dev/urandom of=/data/fresh bs=1M count=16 2>/dev/null; sync")
    appliance.backup_killed_at(guest.name, "data-stored")
    point = appliance.backup(guest.name)
    assert sum(disk["new_bytes"] for disk in point["disks"]) < 2 << 20
