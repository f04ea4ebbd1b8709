"""Life goes on during a backup: the machine is resized, its disks come and go, QEMU dies. Each
ends in a good point for the stated instant or in a clear failure; the machine is back on its own
disks with all that it wrote, and the next point is right."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.core.errors import CleanupFailed, DrvmError, OutOfSpace
from drvm.core.process import Processes
from drvm.core.progress import NoProgress
from drvm.repository.manifest import Manifest
from drvm.snapshot.overlays import Limits
from drvm.snapshot.space import Room
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import BackupOptions, finish_leftovers, take_point
from tests.appliance import make_appliance
from tests.bare import Bare, bare_machine
from tests.capturing import capture, image_digest
from tests.own_libvirtd import own_libvirtd
from tests.proving import frozen_images, proven_point, restored_digests

pytestmark = [pytest.mark.guest, pytest.mark.long]

READING = "reading"
COMMITTING = "commit-started-vda"
COMMITTED = "commit-ready-vdb"
PIVOTED = "pivoted-vda"


@dataclass
class Scene:
    """A running machine, a repository, and one point of it."""

    machine: Bare
    wiring: Wiring
    scratch: Path

    def proven(self, options: BackupOptions | None = None) -> Manifest:
        return proven_point(self.wiring, self.machine, self.scratch, options)

    def methods(self) -> dict[str, str]:
        """Of a next point, which is right."""
        return {disk.target: disk.method for disk in self.proven().disks}

    def point_while(self, step: str, act: Callable[[], object]) -> Manifest | DrvmError:
        """A point, or why there is none. At ``reading`` the machine writes, so that there is
        something to commit; at ``step`` it happens. A point that there is, is proven."""
        frozen: dict[str, str] = {}
        happened: list[str] = []

        def trace(reached: str) -> None:
            if reached == READING:
                for target, (path, kind) in frozen_images(self.machine).items():
                    digest = image_digest(path, kind, self.scratch, self.machine.processes)
                    frozen[target] = digest
                for target in ("vda", "vdb"):
                    self.machine.io(target, "write -P 77 8M 3M", "flush")
            if reached == step and not happened:
                happened.append(step)
                act()

        options = BackupOptions(commit_bandwidth_mib_s=1 if step == COMMITTING else 0)
        try:
            taken = take_point(self.wiring, self.machine.name, options, NoProgress(), trace)
        except DrvmError as error:
            return error
        assert taken.cleanup is None
        restored = restored_digests(self.wiring, taken.point.manifest, self.scratch)
        assert restored == {target: frozen[target] for target in restored}
        return taken.point.manifest

    def assert_at_home(self) -> None:
        """On its own disks, with all that it wrote."""
        for inactive in ("", "--inactive"):
            if not inactive or self.machine.virsh("dominfo").count("Persistent:     yes"):
                listing = self.machine.virsh("domblklist", *filter(None, [inactive]))
                assert ".drvm-" not in listing
        assert [p.name for p in self.machine.directory.iterdir() if ".drvm-" in p.name] == []
        assert [finish_leftovers(self.wiring, host) for host in self.wiring.hosts()] == [[]]

    def assert_written(self, target: str) -> None:
        """Of a machine that is off."""
        image_format = "qcow2" if self.machine.disks[target].suffix == ".qcow2" else "raw"
        argv = ["qemu-io", "-r", "-f", image_format, "-c", "read -P 77 8M 3M"]
        said = self.machine.processes.run(
            [*argv, str(self.machine.disks[target])], timeout_s=30
        ).stdout.decode()
        assert "Pattern verification failed" not in said


@pytest.fixture
def scene(libvirt_uri: str, processes: Processes, tmp_path: Path) -> Iterator[Scene]:
    with made_scene(libvirt_uri, processes, tmp_path) as made:
        yield made


@contextlib.contextmanager
def made_scene(uri: str, processes: Processes, tmp_path: Path) -> Iterator[Scene]:
    repository, more = f"file://{tmp_path}/repository", f"hosts: [{{uri: '{uri}'}}]\n"
    appliance = make_appliance(tmp_path / "drvm", repository, None, more)
    with appliance.wiring() as wiring, bare_machine(processes, "life", uri=uri) as machine:
        wiring.create_repository()
        made = Scene(machine, wiring, tmp_path)
        for target in ("vda", "vdb"):
            machine.io(target, "write -P 65 1M 4M")
        made.proven()
        yield made


def test_a_disk_that_grows_while_it_is_read_keeps_its_size_and_the_point_has_the_old_one(
    scene: Scene,
) -> None:
    def grow() -> None:
        for target in ("vda", "vdb"):
            scene.machine.virsh("blockresize", target, "96M")
            scene.machine.io(target, "write -P 78 90M 1M")

    point = scene.point_while(READING, grow)
    assert isinstance(point, Manifest)
    assert {disk.size_bytes for disk in point.disks} == {64 << 20}
    scene.assert_at_home()
    for target in ("vda", "vdb"):
        assert "100663296" in scene.machine.virsh("domblkinfo", target)
        scene.machine.io(target, "read -P 78 90M 1M", "read -P 77 8M 3M")
    methods = scene.methods()
    assert methods["vdb"] == "full-read: the disk was resized"
    assert scene.methods()["vdb"] == "checkpoint"


def test_qemu_killed_while_its_overlays_are_merged_costs_nothing_that_was_written(
    scene: Scene,
) -> None:
    assert isinstance(scene.point_while(COMMITTING, scene.machine.kill_qemu), Manifest)
    scene.assert_at_home()
    for target in ("vda", "vdb"):
        scene.assert_written(target)
    scene.machine.virsh("start")
    assert scene.methods()["vdb"].startswith(("checkpoint", "full-read: "))
    assert scene.methods()["vdb"] == "checkpoint"


def test_qemu_killed_while_its_disks_are_read_costs_neither_the_point_nor_the_data(
    scene: Scene,
) -> None:
    assert isinstance(scene.point_while(READING, scene.machine.kill_qemu), Manifest)
    scene.assert_at_home()
    for target in ("vda", "vdb"):
        scene.assert_written(target)
    scene.machine.virsh("start")
    assert scene.methods()["vdb"] == "checkpoint"


def test_qemu_killed_before_the_pivot_costs_nothing_that_was_written(scene: Scene) -> None:
    assert isinstance(scene.point_while(COMMITTED, scene.machine.kill_qemu), Manifest)
    scene.assert_at_home()
    for target in ("vda", "vdb"):
        scene.assert_written(target)
    scene.machine.virsh("start")
    scene.methods()


def test_a_disk_that_is_resized_while_another_is_merged_is_merged_in_its_new_size(
    scene: Scene,
) -> None:
    def grow() -> None:
        scene.machine.virsh("blockresize", "vdb", "96M")
        scene.machine.io("vdb", "write -P 78 90M 1M")

    assert isinstance(scene.point_while(COMMITTING, grow), Manifest)
    scene.assert_at_home()
    scene.machine.io("vdb", "read -P 78 90M 1M")
    assert scene.methods()["vdb"] == "full-read: the disk was resized"


def test_a_disk_that_grew_is_merged_also_where_the_machine_is_switched_off(scene: Scene) -> None:
    def grow_and_end() -> None:
        for target in ("vda", "vdb"):
            scene.machine.virsh("blockresize", target, "96M")
            scene.machine.io(target, "write -P 78 90M 1M")
        scene.machine.virsh("destroy")

    assert isinstance(scene.point_while(READING, grow_and_end), Manifest)
    scene.assert_at_home()
    scene.machine.virsh("start")
    for target in ("vda", "vdb"):
        assert "100663296" in scene.machine.virsh("domblkinfo", target)
        scene.machine.io(target, "read -P 78 90M 1M")
    assert scene.methods()["vdb"] == "full-read: the disk was resized"


def test_a_disk_that_is_made_smaller_meanwhile_loses_nothing_and_is_read_in_full(
    scene: Scene,
) -> None:
    """It has its old size afterwards: QEMU's commit makes no base smaller."""

    def cut() -> None:
        for target in ("vda", "vdb"):
            scene.machine.virsh("blockresize", target, "32M")

    assert isinstance(scene.point_while(READING, cut), Manifest)
    scene.assert_at_home()
    for target in ("vda", "vdb"):
        scene.machine.io(target, "read -P 77 8M 3M")
    scene.methods()


def test_a_disk_that_is_plugged_in_meanwhile_is_in_the_next_point(
    scene: Scene, processes: Processes
) -> None:
    image = scene.machine.directory / "new.raw"

    def plug() -> None:
        processes.run(["qemu-img", "create", "-q", "-f", "raw", str(image), "8M"], timeout_s=30)
        scene.machine.virsh("attach-disk", str(image), "vdc", "--live", "--config")
        scene.machine.io("vdc", "write -P 79 1M 1M")

    point = scene.point_while(READING, plug)
    assert isinstance(point, Manifest)
    assert [disk.target for disk in point.disks] == ["vda", "vdb"]
    scene.assert_at_home()
    methods = scene.methods()
    assert methods["vdb"] == "checkpoint"
    assert methods["vdc"].startswith("full-read")


def test_a_machine_that_is_undefined_meanwhile_goes_on_and_the_next_point_is_right(
    scene: Scene,
) -> None:
    definition = scene.machine.directory / "again.xml"

    def undefine() -> None:
        scene.machine.virsh("undefine", "--checkpoints-metadata")

    assert isinstance(scene.point_while(READING, undefine), Manifest)
    scene.assert_at_home()
    definition.write_text(scene.machine.virsh("dumpxml", "--inactive"))
    argv = ["virsh", "-q", "-c", scene.machine.uri, "define", str(definition)]
    scene.machine.processes.run(argv, timeout_s=30)
    assert scene.methods()["vdb"].startswith(("checkpoint", "full-read: there is no checkpoint"))
    assert scene.methods()["vdb"] == "checkpoint"


def test_a_machine_that_is_renamed_meanwhile_is_found_by_its_uuid(scene: Scene) -> None:
    old = scene.machine
    new = dataclasses.replace(old, name=f"{old.name}-renamed")

    def rename() -> None:
        old.virsh("destroy")
        for checkpoint in old.virsh("checkpoint-list", "--name").split():
            old.virsh("checkpoint-delete", checkpoint, "--metadata")
        old.virsh("domrename", new.name)
        new.virsh("start")
        new.io("vdb", "write -P 80 20M 1M")

    try:
        point = scene.point_while(READING, rename)
        scene.machine = new
        assert isinstance(point, Manifest)
        scene.assert_at_home()
        new.io("vdb", "read -P 80 20M 1M", "read -P 77 8M 3M")
        assert scene.methods()["vdb"].startswith("full-read: there is no checkpoint")
    finally:
        new.remove()


def test_a_machine_that_is_restarted_while_it_is_merged_is_put_back(scene: Scene) -> None:
    def restart() -> None:
        scene.machine.virsh("destroy")
        scene.machine.virsh("start")

    assert isinstance(scene.point_while(COMMITTING, restart), Manifest)
    scene.assert_at_home()
    for target in ("vda", "vdb"):
        scene.machine.io(target, "read -P 77 8M 3M")
    scene.methods()


def test_a_libvirtd_that_is_killed_and_comes_back_costs_neither_the_point_nor_the_data(
    processes: Processes, tmp_path: Path, libvirt_uri: str
) -> None:
    with (
        own_libvirtd(processes) as libvirtd,
        made_scene(libvirtd.uri, processes, tmp_path) as scene,
    ):

        def kill() -> None:
            libvirtd.kill(away=True)
            threading.Timer(3.0, libvirtd.come_back).start()

        for step in (READING, COMMITTING, COMMITTED, PIVOTED):
            assert isinstance(scene.point_while(step, kill), Manifest), step
            libvirtd.wait()
            scene.assert_at_home()
            assert scene.machine.virsh("domstate").strip() == "running"
            for target in ("vda", "vdb"):
                scene.machine.io(target, "read -P 77 8M 3M", "write -z 8M 3M")
            assert scene.methods()["vdb"] == "checkpoint", step


def test_a_libvirtd_that_stays_away_is_told_and_what_is_left_is_put_right_when_it_is_back(
    processes: Processes, tmp_path: Path, libvirt_uri: str
) -> None:
    with (
        own_libvirtd(processes) as libvirtd,
        made_scene(libvirtd.uri, processes, tmp_path) as scene,
    ):
        wiring, steps = scene.wiring, []
        host = wiring.host()
        limits = Limits(unreachable_s=3)

        def trace(reached: str) -> None:
            steps.append(reached)
            if reached == COMMITTING:
                libvirtd.kill(away=True)

        parts = dataclasses.replace(wiring.parts(host, trace), limits=limits)
        with pytest.raises(CleanupFailed) as raised, capture(parts, scene.machine.name):
            scene.machine.io("vda", "write -P 77 8M 3M", "flush")
        assert "drvm doctor --fix" in raised.value.hint
        libvirtd.come_back()
        assert [finding.ok for finding in finish_leftovers(wiring, *wiring.hosts())] == [True]
        scene.assert_at_home()
        scene.machine.io("vda", "read -P 77 8M 3M")
        scene.methods()


def test_a_capture_on_a_standing_overlay_that_is_given_up_leaves_that_standing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BackupOptions(changed_blocks="standing-overlay")
    assert scene.proven(options).disks[0].method.startswith("full-read")
    stands = scene.machine.virsh("domblklist")
    scene.machine.io("vda", "write -P 81 40M 1M")
    given_up = threading.Event()

    def trace(reached: str) -> None:
        if reached == READING:
            monkeypatch.setattr(Room, "shortage", lambda *_, **__: "there is no room")
            assert given_up.wait(30)
        if reached == "given-up":
            given_up.set()

    with pytest.raises(OutOfSpace, match="there is no room"):
        take_point(scene.wiring, scene.machine.name, options, NoProgress(), trace)
    monkeypatch.undo()
    assert scene.machine.virsh("domblklist") == stands
    point = scene.proven(options)
    assert {disk.method for disk in point.disks} == {"standing-overlay"}
    assert {disk.target: disk.read_bytes for disk in point.disks}["vda"] <= 2 << 20
