"""Incremental points by checkpoints: right, byte for byte, whatever happens in between.

Every point that ``Line`` takes is restored and compared with the frozen images.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.process import Processes
from drvm.repository.manifest import Manifest
from drvm.snapshot.recovery import recover
from drvm.wiring.assembly import Wiring
from tests import chain
from tests.appliance import Appliance, make_appliance
from tests.guests import Guest, MakeGuest, all_qcow2, with_qcow2
from tests.proving import proven_point

pytestmark = pytest.mark.guest

CLUSTER_BYTES = 65536


@dataclass(frozen=True)
class Line:
    """A guest with two qcow2 disks, and the points that are taken of it."""

    guest: Guest
    appliance: Appliance
    processes: Processes

    def point(self) -> Manifest:
        with self.appliance.wiring() as wiring:
            self.recover(wiring)
            return proven_point(wiring, self.guest, self.appliance.directory)

    def recover(self, wiring: Wiring) -> None:
        done = recover(wiring.parts(wiring.host()), self.guest.name)
        assert [recovered.problem for recovered in done] in ([], [""])

    def methods(self) -> dict[str, str]:
        return {disk.target: disk.method for disk in self.point().disks}

    def checkpoints(self) -> list[str]:
        return self.guest.virsh("checkpoint-list", "--name", "--topological").split()

    def dd(self, cluster: int, *, source: str = "/dev/urandom", count: int = 1) -> None:
        """Whole clusters of the second disk, past every cache and the file system on it."""
        self.guest.run(
            "umount /data 2>/dev/null;"
            f" dd if={source} of=/dev/vdb bs=64k seek={cluster} count={count} oflag=direct"
            " conv=fsync 2>/dev/null"
        )

    def kill_qemu(self) -> None:
        (pid,) = (
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and self._is_qemu(entry)
        )
        os.kill(pid, signal.SIGKILL)
        deadline_s = SystemClock().monotonic_s() + 30
        while self.guest.virsh("domstate").strip() != "shut off":
            assert SystemClock().monotonic_s() < deadline_s
            SystemClock().sleep(0.1)

    def _is_qemu(self, process: Path) -> bool:
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            return words[0].endswith(b"qemu-system-x86_64") and (
                f"guest={self.guest.name},debug-threads=on".encode() in words
            )
        return False


def read_bytes(point: Manifest, target: str) -> int:
    return next(disk.read_bytes for disk in point.disks if disk.target == target)


@pytest.fixture(scope="module")
def line(
    make_module_guest: MakeGuest, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Line]:
    directory = tmp_path_factory.mktemp("checkpoints")
    appliance = make_appliance(directory, f"file://{directory}/repository", None)
    appliance.drvm("init")
    guest = with_qcow2(make_module_guest("checkpoints", edit=all_qcow2))
    yield Line(guest, appliance, processes)


def test_what_the_guest_writes_at_any_time_is_in_the_next_point(line: Line) -> None:
    """Between backups, during one (into the overlay), during its commit; under constant load."""
    chain.start(line.guest)
    assert set(line.methods().values()) == {"full-read: there is no earlier point"}
    for _ in range(3):
        line.guest.run("dd if=/dev/urandom of=/data/more bs=64k count=20 2>/dev/null")
        point = line.point()
        assert {disk.method for disk in point.disks} == {"checkpoint"}
        assert len(line.checkpoints()) == 2
    assert read_bytes(point, "vda") < 4 << 20
    written = chain.stop(line.guest)
    live = chain.verify([line.guest.run(f"cat {path}") for path in chain.FILES])
    assert live == [written, written]
    assert {disk.method for disk in line.point().disks} == {"checkpoint"}


def test_a_discarded_a_zeroed_and_a_rewritten_range_come_back_as_such(line: Line) -> None:
    line.guest.run("dd if=/dev/urandom of=/data/trim bs=1M count=8 2>/dev/null; sync")
    line.point()
    line.guest.run("rm /data/trim; sync; fstrim /data; umount /data")
    line.dd(3000, count=8)
    trimmed = line.point()
    assert read_bytes(trimmed, "vdb") < 2 << 20
    line.dd(3000, source="/dev/zero")
    line.dd(3001)
    line.guest.run(f"blkdiscard -o {3002 * CLUSTER_BYTES} -l {2 * CLUSTER_BYTES} /dev/vdb")
    point = line.point()
    assert {disk.method for disk in point.disks} == {"checkpoint"}
    assert read_bytes(point, "vdb") <= 3 * CLUSTER_BYTES


def test_an_incremental_reads_the_changed_clusters_and_nothing_else(line: Line) -> None:
    line.point()
    line.guest.run(
        "n=0; while [ $n -lt 100 ]; do"
        " dd if=/dev/urandom of=/dev/vdb bs=4k seek=$((n * 640 + 7)) count=1 oflag=direct"
        " 2>/dev/null; n=$((n + 1)); done"
    )
    point = line.point()
    assert read_bytes(point, "vdb") <= 1.2 * 100 * CLUSTER_BYTES
    assert read_bytes(line.point(), "vdb") == 0


@pytest.mark.long
@pytest.mark.parametrize(
    "step",
    [
        "checkpoint-made",
        "snapshot-taken",
        "data-stored",
        "final-created",
        "pivoted-vda",
        "commit-started-vdb",
    ],
)
def test_the_point_after_a_kill_is_right_and_incremental(line: Line, step: str) -> None:
    line.point()
    line.dd(500)
    line.appliance.backup_killed_at(line.guest.name, step)
    line.dd(501)
    point = line.point()
    assert {disk.method for disk in point.disks} == {"checkpoint"}
    assert len(line.checkpoints()) == 2


@pytest.mark.long
def test_a_guest_that_is_switched_off_keeps_its_bitmaps(line: Line) -> None:
    line.dd(600)
    line.guest.virsh("destroy")
    assert set(line.methods().values()) == {"checkpoint"}, "the offline engine reads them too"
    line.guest.start()
    words = set(line.methods().values())
    assert len(words) == 1 and words.pop().startswith("full-read: there is no checkpoint of")
    line.dd(601)
    line.guest.virsh("destroy")
    line.guest.start()
    assert set(line.methods().values()) == {"checkpoint"}


@pytest.mark.long
def test_what_an_offline_merge_brings_into_the_base_is_in_the_next_point(line: Line) -> None:
    line.appliance.backup_killed_at(line.guest.name, "reading")
    line.dd(700, count=3)
    line.guest.virsh("destroy")
    with line.appliance.wiring() as wiring:
        line.recover(wiring)
    line.guest.start()
    assert set(line.methods().values()) == {"checkpoint"}


@pytest.mark.long
def test_a_killed_qemu_costs_a_full_read_once(line: Line) -> None:
    line.dd(800)
    line.kill_qemu()
    line.guest.start()
    methods = set(line.methods().values())
    assert methods <= {
        "full-read: the bitmap is inconsistent: QEMU was killed",
        "full-read: the image has lost the checkpoint's bitmap",
    }
    line.dd(801)
    assert set(line.methods().values()) == {"checkpoint"}


@pytest.mark.long
def test_qemu_killed_while_the_guest_is_on_its_overlay_is_put_right(line: Line) -> None:
    line.appliance.backup_killed_at(line.guest.name, "reading")
    line.dd(810, count=2)
    line.kill_qemu()
    line.guest.start()
    line.dd(820)
    line.point()
    line.dd(830)
    assert set(line.methods().values()) == {"checkpoint"}


@pytest.mark.long
def test_a_resized_disk_is_read_in_full_once_and_the_other_is_not(line: Line) -> None:
    line.guest.virsh("blockresize", "vdb", "300M")
    line.dd(4700)
    assert line.methods() == {"vda": "checkpoint", "vdb": "full-read: the disk was resized"}
    assert set(line.methods().values()) == {"checkpoint"}


@pytest.mark.long
def test_checkpoints_of_others_stay_and_do_not_matter(line: Line, tmp_path: Path) -> None:
    definition = tmp_path / "foreign.xml"
    definition.write_text("<domaincheckpoint><name>foreign</name></domaincheckpoint>")
    line.guest.virsh("checkpoint-create", str(definition))
    for cluster in (900, 901, 902):
        line.dd(cluster)
        assert set(line.methods().values()) == {"checkpoint"}
        assert "foreign" in line.checkpoints()
    line.guest.virsh("checkpoint-delete", "foreign")
    line.dd(903)
    assert set(line.methods().values()) == {"checkpoint"}


def test_a_checkpoint_that_somebody_deleted_costs_a_full_read(line: Line) -> None:
    for name in line.checkpoints():
        line.guest.virsh("checkpoint-delete", name)
    methods = set(line.methods().values())
    assert len(methods) == 1 and methods.pop().startswith("full-read: there is no checkpoint of")


@pytest.mark.long
def test_an_image_in_anothers_place_is_read_in_full_and_the_stale_checkpoint_goes(
    line: Line,
) -> None:
    """As after ``restore --replace``: libvirt's checkpoints are still there, the bitmaps not."""
    line.point()
    stale = line.checkpoints()
    line.guest.virsh("destroy")
    image = line.guest.disks["vdb"]
    fresh = image.with_suffix(".fresh")
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(image), str(fresh)]
    line.processes.run(argv, timeout_s=60)
    fresh.replace(image)
    line.guest.start()
    line.dd(1000)
    reason = "full-read: the image is another one, or its backing file was changed"
    assert line.methods() == {"vda": "checkpoint", "vdb": reason}
    line.dd(1001)
    assert set(line.methods().values()) == {"checkpoint"}
    assert not set(stale) & set(line.checkpoints())


@pytest.mark.long
def test_an_internal_snapshot_bars_checkpoints_so_that_it_can_be_reverted(line: Line) -> None:
    line.guest.virsh("snapshot-create-as", "before", timeout_s=120)
    assert set(line.methods().values()) == {"full-read: the machine has internal snapshots"}
    assert line.checkpoints() == []
    line.dd(1100)
    line.guest.virsh("snapshot-revert", "before", timeout_s=120)
    line.guest.wait_for_agent()
    line.guest.virsh("snapshot-delete", "before", timeout_s=120)
    line.point()
    line.dd(1101)
    assert set(line.methods().values()) == {"checkpoint"}


@pytest.mark.long
def test_raw_disks_are_read_in_full_beside_qcow2_with_a_checkpoint(
    make_guest: MakeGuest, processes: Processes, tmp_path: Path
) -> None:
    appliance = make_appliance(tmp_path, f"file://{tmp_path}/repository", None)
    appliance.drvm("init")
    line = Line(make_guest("mixed"), appliance, processes)
    line.point()
    assert line.methods() == {
        "vda": "checkpoint",
        "vdb": "full-read: raw images have no bitmaps",
    }
