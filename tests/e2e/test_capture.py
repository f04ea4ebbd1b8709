"""Capturing a real, running guest: what is read is one instant, and the guest is unharmed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError
from drvm.core.process import Processes
from drvm.snapshot.parts import Parts
from tests.capturing import (
    assert_back_on_its_disks,
    capture,
    digest,
    file_in_image,
    image_digest,
    make_parts,
    with_trace,
)
from tests.guests import Guest, MakeGuest

pytestmark = pytest.mark.guest

WRITER = """
n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n >> /data/count; sync; echo $n >> /count; sync
done"""


@pytest.fixture
def parts(libvirt_uri: str, tmp_path: Path, processes: Processes) -> Parts:
    return make_parts(libvirt_uri, tmp_path / "state", processes)


@pytest.fixture(scope="module")
def guest(make_module_guest: MakeGuest) -> Guest:
    return make_module_guest("capture")


def test_every_frozen_disk_is_byte_for_byte_the_image_at_that_instant(
    guest: Guest, parts: Parts, processes: Processes, tmp_path: Path
) -> None:
    guest.run("dd if=/dev/urandom of=/data/one bs=1M count=3; sync")
    with capture(parts, guest.name, filesystem=True) as machine:
        guest.run("dd if=/dev/urandom of=/data/two bs=1M count=5; sync; rm /data/one; sync")
        assert machine.consistency == "filesystem"
        assert 0 < machine.frozen_s < 10
        assert machine.guest["machine"] == "x86_64"
        assert [disk.target for disk in machine.disks] == ["vda", "vdb"]
        for disk in machine.disks:
            expected = image_digest(guest.disks[disk.target], disk.format, tmp_path, processes)
            assert digest(disk) == expected
    assert_back_on_its_disks(guest, parts)
    assert guest.run("ls /data/two; dd if=/data/two of=/dev/null bs=1M").strip() == "/data/two"


def test_two_disks_are_frozen_at_one_instant(guest: Guest, parts: Parts, tmp_path: Path) -> None:
    guest.agent("guest-exec", path="/bin/sh", arg=["-c", WRITER])
    guest.run("while [ ! -s /count ]; do sleep 0.1; done; sleep 0.5")
    counts = {}
    with capture(parts, guest.name, filesystem=True) as machine:
        for disk in machine.disks:
            text = file_in_image(guest.disks[disk.target], disk.format, "/count", tmp_path)
            counts[disk.target] = int(text.split()[-1])
    guest.run("touch /tmp/stop")
    assert 0 <= counts["vdb"] - counts["vda"] <= 1
    assert_back_on_its_disks(guest, parts)


def test_what_the_guest_wrote_during_the_capture_is_in_its_base_afterwards(
    guest: Guest, parts: Parts, tmp_path: Path
) -> None:
    with capture(parts, guest.name):
        guest.run("dd if=/dev/urandom of=/data/during bs=1M count=20; sync")
        wanted = guest.run("sha256sum /data/during").split()[0]
    assert_back_on_its_disks(guest, parts)
    guest.agent("guest-fsfreeze-freeze")  # debugfs does not replay the journal
    data = file_in_image(guest.disks["vdb"], "raw", "/during", tmp_path)
    guest.agent("guest-fsfreeze-thaw")
    assert hashlib.sha256(data).hexdigest() == wanted


def test_a_failure_while_reading_puts_the_guest_back(guest: Guest, parts: Parts) -> None:
    with pytest.raises(RuntimeError, match="store is gone"), capture(parts, guest.name):
        raise RuntimeError("the store is gone")
    assert_back_on_its_disks(guest, parts)


def test_an_excluded_disk_is_not_touched(guest: Guest, parts: Parts) -> None:
    with capture(parts, guest.name, exclude=frozenset({"vdb"})) as machine:
        assert [disk.target for disk in machine.disks] == ["vda"]
        assert str(guest.disks["vdb"]) in guest.virsh("domblklist")
    assert_back_on_its_disks(guest, parts)


@pytest.mark.long
def test_a_guest_that_is_restarted_meanwhile_goes_on_undisturbed(
    guest: Guest, parts: Parts
) -> None:
    with capture(parts, guest.name) as machine:
        before = [digest(disk) for disk in machine.disks]
        guest.virsh("destroy")
        guest.start()
        guest.run("echo after > /data/restart; sync")
        assert [digest(disk) for disk in machine.disks] == before
    assert_back_on_its_disks(guest, parts)
    assert guest.run("cat /data/restart").strip() == "after"


@contextlib.contextmanager
def stopped_agent(guest: Guest) -> Iterator[None]:
    """The agent hangs for 5 s; then a shell in the guest lets it go on."""
    hang = "sleep 0.3; killall -STOP qemu-ga; sleep 5; killall -CONT qemu-ga"
    guest.agent("guest-exec", path="/bin/sh", arg=["-c", hang])
    SystemClock().sleep(0.8)
    yield
    guest.wait_for_agent()


def test_an_agent_that_hangs_costs_the_label_but_neither_time_nor_the_guest(
    guest: Guest, parts: Parts
) -> None:
    clock = SystemClock()
    with stopped_agent(guest):
        start_s = clock.monotonic_s()
        with capture(parts, guest.name) as machine:
            assert machine.consistency == "crash"
            assert clock.monotonic_s() - start_s < 8
            assert any("crash-consistent" in words for words in machine.warnings)
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    assert_back_on_its_disks(guest, parts)


def test_file_systems_that_somebody_else_froze_are_left_to_him(guest: Guest, parts: Parts) -> None:
    guest.agent("guest-fsfreeze-freeze")
    try:
        with (
            pytest.raises(CaptureError, match="frozen by somebody else"),
            capture(parts, guest.name),
        ):
            pytest.fail("captured")
        assert guest.agent("guest-fsfreeze-status") == "frozen"
    finally:
        guest.agent("guest-fsfreeze-thaw")
    assert_back_on_its_disks(guest, parts)


def test_a_commit_is_waited_for_while_it_makes_headway_however_slow(
    guest: Guest, parts: Parts
) -> None:
    steps: list[str] = []
    with capture(with_trace(parts, steps.append), guest.name):
        guest.run("dd if=/dev/urandom of=/data/bulk bs=1M count=30; sync")
    assert_back_on_its_disks(guest, parts)
    for target in ("vda", "vdb"):
        at = [
            steps.index(f"{step}-{target}")
            for step in ("commit-journaled", "commit-started", "commit-ready", "pivoted")
        ]
        assert at == sorted(at)


def test_a_guest_that_is_switched_off_meanwhile_is_put_back_too(
    guest: Guest, parts: Parts, tmp_path: Path
) -> None:
    """The last of the module: it leaves the guest off."""
    with capture(parts, guest.name) as machine:
        guest.run("echo the last words > /data/last; sync")
        guest.agent("guest-fsfreeze-freeze")  # debugfs does not replay the journal
        guest.agent("guest-fsfreeze-thaw")
        before = [digest(disk) for disk in machine.disks]
        guest.virsh("destroy")
        assert [digest(disk) for disk in machine.disks] == before
    assert_back_on_its_disks(guest, parts)
    parts.images.check(guest.disks["vda"], "qcow2")
    data = file_in_image(guest.disks["vdb"], "raw", "/last", tmp_path)
    assert data == b"the last words\n"
