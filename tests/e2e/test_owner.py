"""What a guest's owner does meanwhile: unplug a disk, reboot, shut down. With a real guest, as
libvirt only asks: the guest has to do it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.process import Processes
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.external import ExternalEngine
from drvm.snapshot.parts import Parts
from drvm.snapshot.recovery import recover
from tests.capturing import (
    assert_back_on_its_disks,
    capture,
    digest,
    file_in_image,
    make_parts,
    with_trace,
)
from tests.guests import BOOT_LIMIT_S, Guest, MakeGuest

pytestmark = [pytest.mark.guest, pytest.mark.long]

_clock = SystemClock()


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, tmp_path / "state", processes)


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Iterator[Guest]:
    yield make_module_guest("owner")


def unplug(guest: Guest) -> None:
    guest.virsh("detach-disk", "vdb", "--live")
    deadline_s = _clock.monotonic_s() + BOOT_LIMIT_S
    while "vdb" in guest.virsh("domblklist"):
        assert _clock.monotonic_s() < deadline_s, "the guest keeps the disk"
        _clock.sleep(0.1)


def plug(guest: Guest) -> None:
    path = str(guest.disks["vdb"])
    guest.virsh("attach-disk", path, "vdb", "--live", "--subdriver", "raw")
    guest.run("while [ ! -b /dev/vdb ]; do sleep 0.1; done; mount /dev/vdb /data")


def test_a_disk_that_is_unplugged_while_it_is_read_keeps_what_was_written_to_it(
    guest: Guest, parts: Parts
) -> None:
    with capture(parts, guest.name) as machine:
        before = [digest(disk) for disk in machine.disks]
        guest.run("echo unplugged > /data/word; sync; umount /data")
        unplug(guest)
        assert [digest(disk) for disk in machine.disks] == before
    assert str(guest.disks["vdb"]) not in guest.virsh("domblklist")
    assert [path.name for path in guest.directory.iterdir() if "drvm-" in path.name] == []
    assert recover(parts, guest.name) == []
    plug(guest)
    assert guest.run("cat /data/word").strip() == "unplugged"
    with capture(parts, guest.name):
        pass
    assert_back_on_its_disks(guest, parts)


def test_a_guest_that_reboots_while_it_is_read_comes_up_again(guest: Guest, parts: Parts) -> None:
    boots = guest.serial_log.count("Linux version")
    with capture(parts, guest.name) as machine:
        before = [digest(disk) for disk in machine.disks]
        guest.run("echo rebooted > /data/word; sync")
        guest.virsh("reboot", "--mode", "agent")
        deadline_s = _clock.monotonic_s() + BOOT_LIMIT_S
        while guest.serial_log.count("Linux version") == boots:
            assert _clock.monotonic_s() < deadline_s, "it does not reboot"
            _clock.sleep(0.2)
        guest.wait_for_agent()
        assert [digest(disk) for disk in machine.disks] == before
    assert_back_on_its_disks(guest, parts)
    assert guest.run("cat /data/word").strip() == "rebooted"


def test_a_guest_that_shuts_down_while_its_disks_are_merged_keeps_what_it_wrote(
    guest: Guest, parts: Parts, tmp_path: Path
) -> None:
    """The last of the module: it leaves the guest off."""
    steps: list[str] = []

    def trace(step: str) -> None:
        if step == "commit-started-vdb" and step not in steps:
            guest.shutdown()
        steps.append(step)

    request = CaptureRequest(vm=guest.name, point_id=new_point_id(), commit_bandwidth_mib_s=1)
    with ExternalEngine(with_trace(parts, trace)).capture(request):
        guest.run("dd if=/dev/urandom of=/data/bulk bs=1M count=12 conv=fsync")
        guest.run("echo 'shut down' > /data/word; sync")
    assert "merged-vdb" in steps
    assert_back_on_its_disks(guest, parts)
    assert file_in_image(guest.disks["vdb"], "raw", "/word", tmp_path) == b"shut down\n"
