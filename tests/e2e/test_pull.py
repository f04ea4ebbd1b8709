"""Pull backups on real machines: one instant, however the machine writes; nobody else's job is
touched, and none of drvm's is left. Where a guest system matters: ``tests.kills`` and below."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, OutOfSpace
from drvm.core.ids import new_point_id
from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import Trace, no_trace
from drvm.host.libvirt_host import LibvirtHost
from drvm.host.places import SYSTEM
from drvm.lab import guest as lab
from drvm.snapshot import recovery
from drvm.snapshot.capture import CaptureRequest, EngineWish, FrozenMachine, ParentPoint
from drvm.snapshot.choose import choose
from drvm.snapshot.parts import Parts
from tests.appliance import make_appliance
from tests.bare import MIB, Bare, bare_machine
from tests.capturing import make_parts, rebuilt
from tests.guests import Guest, MakeGuest, unique_name
from tests.killing import killed_at
from tests.own_libvirtd import own_libvirtd
from tests.small import fill, small_file_system

pytestmark = pytest.mark.guest

CLUSTER_BYTES = 65536
TARGETS = ("vda", "vdb")


@dataclass
class Line:
    """A machine and its points: what each disk was at the latest, by target."""

    machine: Bare
    parts: Parts
    scratch: Path
    parent: str | None = None
    known: dict[str, bytes] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def capture(
        self, engine: EngineWish = "pull", trace: Trace = no_trace
    ) -> Iterator[FrozenMachine]:
        parts = dataclasses.replace(self.parts, trace=trace)
        sizes = {target: len(data) for target, data in self.known.items()}
        request = CaptureRequest(
            self.machine.name,
            new_point_id(),
            parent=ParentPoint(self.parent, sizes) if self.parent else None,
            engine=engine,
        )
        with choose(parts, self.machine.name, engine).engine.capture(request) as frozen:
            yield frozen
        self.parent = request.point_id

    def back_up(self, engine: EngineWish = "pull", *meanwhile: str) -> dict[str, str]:
        """The method of each disk. Every disk is rebuilt from its extents and the parent point
        while the machine does what ``meanwhile`` says, and compared with what its image held."""
        held = self.content()
        found, methods = {}, {}
        with self.capture(engine) as frozen:
            assert frozen.engine == engine
            for disk in frozen.disks:
                self.machine.io(disk.target, *meanwhile)
                found[disk.target], read = rebuilt(disk, self.known.get(disk.target))
                self.read_bytes[disk.target] = read
                methods[disk.target] = disk.method
                self.machine.io(disk.target, *meanwhile)
        assert found == held
        self.known = found
        self.assert_nothing_left()
        return methods

    def content(self) -> dict[str, bytes]:
        """What the machine sees of its disks, by way of qemu-img."""
        found = {}
        for target, path in self.machine.disks.items():
            self.machine.io(target, "flush")
            raw = self.scratch / "look"
            kind = "qcow2" if path.suffix == ".qcow2" else "raw"
            argv = ["qemu-img", "convert", "-U", "-f", kind, "-O", "raw", str(path), str(raw)]
            self.machine.processes.run(argv, timeout_s=60)
            found[target] = raw.read_bytes()
        return found

    def kill_at(self, step: str) -> None:
        """A capture in a child that SIGKILL ends right there."""

        def work(trace: Trace) -> None:
            own = make_parts(lab.URI, self.scratch, SystemProcesses())
            line = Line(self.machine, own, self.scratch, self.parent, dict(self.known))
            with line.capture(trace=trace):
                pass

        killed_at(step, work)

    def recover(self) -> list[str]:
        return [done.problem for done in recovery.recover(self.parts, self.machine.name)]

    def job(self) -> str | None:
        return self.parts.host.domain(self.machine.name).domain_job()

    def assert_nothing_left(self) -> None:
        assert self.job() is None
        assert [p.name for p in self.machine.directory.iterdir() if ".drvm-" in p.name] == []
        assert list(SYSTEM.machines.glob(f"domain-*-{self.machine.name[:20]}/*.nbd")) == []
        assert self.parts.journal.machines() == []


@pytest.fixture(scope="module")
def machine(libvirt_uri: str, processes: Processes) -> Iterator[Bare]:
    with bare_machine(processes, "pull") as made:
        yield made


@pytest.fixture
def line(machine: Bare, libvirt_uri: str, tmp_path: Path, processes: Processes) -> Line:
    for target in TARGETS:
        machine.io(target, "write -P 1 1M 4M", "write -P 2 32M 1M", "discard 40M 8M")
    return Line(machine, make_parts(libvirt_uri, tmp_path, processes), tmp_path)


OVERWRITING = ("write -P 7 0 2M", "write -z 2M 1M", "discard 3M 1M", "write -P 8 40M 1M")


def test_every_disk_is_byte_for_byte_what_it_was_whatever_the_machine_writes(line: Line) -> None:
    raw = "full-read: raw images have no bitmaps"
    first = "full-read: there is no earlier point"
    assert line.back_up("pull", *OVERWRITING) == {"vda": raw, "vdb": first}
    assert line.back_up("pull", "discard 0 64M") == {"vda": raw, "vdb": "checkpoint"}
    assert line.back_up("pull", *OVERWRITING) == {"vda": raw, "vdb": "checkpoint"}
    assert len(line.machine.virsh("checkpoint-list", "--name").split()) == 2


def test_an_incremental_reads_the_changed_clusters_and_nothing_else(line: Line) -> None:
    line.back_up()
    for cluster in (3, 100, 101, 500):
        line.machine.io("vdb", f"write -P 9 {cluster * CLUSTER_BYTES + 512} 4k")
    line.back_up()
    assert line.read_bytes["vdb"] == 4 * CLUSTER_BYTES
    line.back_up("pull", "write -P 10 20M 64k")
    assert line.read_bytes["vdb"] == 0
    line.back_up()
    assert line.read_bytes["vdb"] == CLUSTER_BYTES


@pytest.mark.long
def test_checkpoints_serve_the_other_engine_too(line: Line) -> None:
    engines: tuple[EngineWish, ...] = ("pull", "external", "pull", "pull", "external", "external")
    line.back_up("external", "write -P 11 5M 100k")
    for number, engine in enumerate(engines):
        line.machine.io("vdb", f"write -P {20 + number} {number}M 8k", "discard 32M 64k")
        assert line.back_up(engine, f"write -P {40 + number} {number + 9}M 8k")["vdb"] == (
            "checkpoint"
        )
        assert line.read_bytes["vdb"] <= 4 * CLUSTER_BYTES


def test_a_bitmap_that_is_switched_off_costs_its_disk_a_full_read(line: Line) -> None:
    line.back_up()
    _disable(line.machine, "b.qcow2", f"drvm-{line.parent}")
    line.machine.io("vdb", "write -P 12 9M 64k")
    assert line.back_up()["vdb"].startswith("full-read: libvirt says: ")
    assert line.back_up()["vdb"] == "checkpoint"


def test_a_job_of_somebody_else_is_named_and_left_alone(line: Line) -> None:
    machine, directory = line.machine, line.machine.directory
    socket = _own_directory(line) / "foreign.nbd"
    definition = directory / "foreign.xml"
    definition.write_text(
        f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>"
        f"<disk name='vdb' type='file'><scratch file='{directory}/foreign'/></disk>"
        "</disks></domainbackup>"
    )
    machine.virsh("backup-begin", str(definition))
    try:
        with pytest.raises(CaptureError, match="has a backup under way"), line.capture():
            pytest.fail("captured")
        assert line.recover() == []
        assert line.job() == "backup"
        assert (directory / "foreign").exists() and socket.exists()
    finally:
        machine.virsh("domjobabort")
        definition.unlink()


STEPS = (
    "scratch-journaled",
    "scratch-made",
    "checkpoints-pruned",
    "backup-requested",
    "backup-begun",
    "backup-taken",
    "reading",
    "backup-aborted",
    "backup-ended",
    "scratch-removed",
    "journal-removed",
)


@pytest.mark.parametrize(
    "step",
    [
        step if step in ("backup-begun", "reading") else pytest.param(step, marks=pytest.mark.long)
        for step in STEPS
    ],
)
def test_a_killed_capture_leaves_what_recovery_ends(line: Line, step: str) -> None:
    line.back_up()
    line.machine.io("vdb", "write -P 14 11M 64k")
    line.kill_at(step)
    running = STEPS.index("backup-begun") <= STEPS.index(step) < STEPS.index("backup-aborted")
    assert line.job() == ("backup" if running else None) or step == "backup-aborted"
    line.machine.io("vdb", "write -P 15 12M 64k")
    assert line.recover() == ([] if step == "journal-removed" else [""])
    line.assert_nothing_left()
    line.machine.io("vdb", "write -P 16 13M 64k")
    assert line.back_up()["vdb"] == "checkpoint"
    assert line.read_bytes["vdb"] <= 3 * CLUSTER_BYTES


def test_a_job_whose_journal_was_lost_is_known_by_its_names(line: Line) -> None:
    line.kill_at("reading")
    line.parts.journal.remove(line.machine.virsh("domuuid").strip())
    assert [half.steps for half in recovery.find(line.parts, line.machine.name)] == [
        ("end its pull backup and remove the scratch files",)
    ]
    assert line.recover() == [""]
    line.assert_nothing_left()


def test_a_machine_with_somebody_elses_snapshot_is_read_and_stays_on_it(line: Line) -> None:
    machine, overlay = line.machine, line.machine.directory / "foreign.qcow2"
    machine.virsh(
        "snapshot-create-as", "foreign", "--disk-only", "--diskspec", "vda,snapshot=no",
        "--diskspec", f"vdb,file={overlay}",
    )  # fmt: skip
    machine.disks["vdb"] = overlay
    try:
        machine.io("vdb", "write -P 17 14M 100k", "discard 1M 1M")
        choice = choose(line.parts, machine.name)
        assert choice.reason == "its external snapshot foreign must stay as it is"
        line.back_up()
        machine.io("vdb", "write -P 18 15M 64k")
        assert line.back_up()["vdb"] == "checkpoint"
        assert line.read_bytes["vdb"] == CLUSTER_BYTES
        assert machine.image_of("vdb") == str(overlay)
        assert "foreign" in machine.virsh("snapshot-list", "--name")
    finally:
        machine.disks["vdb"] = machine.directory / "b.qcow2"
        machine.virsh("blockcommit", "vdb", "--active", "--pivot", "--wait")
        machine.virsh("snapshot-delete", "foreign", "--metadata")
        overlay.unlink()


def test_a_machine_that_dies_meanwhile_is_told_and_the_next_point_is_right(line: Line) -> None:
    line.back_up()
    for end in (line.machine.kill_qemu, lambda: line.machine.virsh("destroy")):
        with (
            pytest.raises(CaptureError, match="was switched off, or its QEMU died"),
            line.capture() as frozen,
        ):
            end()
            for disk in frozen.disks:
                rebuilt(disk, line.known.get(disk.target))
        line.assert_nothing_left()
        line.machine.virsh("start")
        line.back_up("pull", "write -P 19 16M 64k")


@pytest.fixture
def cramped(libvirt_uri: str, processes: Processes, tmp_path: Path) -> Iterator[Bare]:
    """Its qcow2 lies on a file system of its own, with 24 MiB left."""
    with (
        small_file_system(lab.IMAGES / unique_name("scratch"), 80 * MIB) as small,
        bare_machine(processes, "scratch") as machine,
    ):
        machine.virsh("destroy")
        image, definition = small / "b.qcow2", tmp_path / "domain.xml"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M"]
        processes.run(argv, timeout_s=30)
        old = machine.virsh("dumpxml", "--inactive")
        definition.write_text(old.replace(str(machine.disks["vdb"]), str(image)))
        processes.run(["virsh", "-q", "-c", lab.URI, "define", str(definition)], timeout_s=30)
        machine.virsh("start")
        machine.disks["vdb"] = image
        machine.io("vdb", "write -P 1 0 48M", "flush")
        fill(small, 24 * MIB)
        yield machine


def test_scratch_files_that_find_no_room_end_the_capture_before_the_machine_stands_still(
    cramped: Bare, libvirt_uri: str, processes: Processes, tmp_path: Path
) -> None:
    parts = make_parts(libvirt_uri, tmp_path, processes)
    line = Line(cramped, dataclasses.replace(parts, overlay_reserve_bytes=16 * MIB), tmp_path)
    given_up = threading.Event()

    def trace(step: str) -> None:
        if step == "scratch-removed":
            given_up.set()

    with pytest.raises(OutOfSpace, match="was given up"), line.capture(trace=trace):
        cramped.io("vdb", "write -P 2 0 10M")
        assert given_up.wait(30)
        cramped.io("vdb", "write -P 3 10M 30M")
    assert cramped.virsh("domstate").strip() == "running"
    line.assert_nothing_left()
    assert {p.name for p in cramped.disks["vdb"].parent.iterdir()} == {"b.qcow2", "filler"}


def test_a_policy_chooses_the_engine_and_vms_and_doctor_tell_it(line: Line, tmp_path: Path) -> None:
    name = line.machine.name
    policy = f"policies: [{{name: careful, vms: ['{name}'], engine: pull}}]\n"
    appliance = make_appliance(tmp_path / "drvm", f"file://{tmp_path}/repository", None, policy)
    appliance.drvm("init")
    point = appliance.backup(name)
    assert (point["engine"], point["consistency"]) == ("pull", "crash")
    (vm,) = [vm for vm in appliance.json("vms")["vms"] if vm["vm"] == name]
    assert (vm["engine"], vm["engine_reason"]) == ("pull", "its policy says so")
    findings = appliance.json("doctor", expect=None)["findings"]
    assert [f["detail"] for f in findings if f["name"] == "engine pull"] == [
        f"{name}: its policy says so"
    ]


@pytest.mark.long
def test_a_libvirtd_that_is_killed_and_comes_back_costs_nothing(
    processes: Processes, tmp_path: Path, libvirt_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_libvirtd(processes) as libvirtd:
        short = Path("/tmp") / unique_name("l")
        short.symlink_to(libvirtd.root / "var/lib/libvirt/qemu")
        places = dataclasses.replace(SYSTEM, machines=short)
        monkeypatch.setattr(LibvirtHost, "places", property(lambda _: places))
        try:
            with bare_machine(processes, "pull", uri=libvirtd.uri) as machine:
                parts = make_parts(libvirtd.uri, tmp_path, processes)
                line = Line(machine, parts, tmp_path)
                line.back_up()
                held = line.content()
                with line.capture() as frozen:
                    libvirtd.kill(away=True)
                    found = {d.target: rebuilt(d, line.known[d.target])[0] for d in frozen.disks}
                    threading.Timer(3.0, libvirtd.come_back).start()
                assert found == held
                libvirtd.wait()
                line.assert_nothing_left()
                line.known = found
                machine.io("vdb", "write -P 21 17M 64k")
                assert line.back_up()["vdb"] == "checkpoint"
        finally:
            short.unlink()


@pytest.mark.long
def test_a_guest_that_is_shut_down_by_its_owner_is_told_of_and_left_off(
    make_guest: MakeGuest, libvirt_uri: str, tmp_path: Path, processes: Processes
) -> None:
    """libvirt 9.0 takes 30 s to know that it is off: nothing that drvm could do about it."""
    guest: Guest = make_guest("pulloff")
    parts, clock = make_parts(libvirt_uri, tmp_path, processes), SystemClock()
    request = CaptureRequest(guest.name, new_point_id(), engine="pull")
    start_s = clock.monotonic_s()
    with (
        pytest.raises(CaptureError, match="was switched off"),
        choose(parts, guest.name, "pull").engine.capture(request) as frozen,
    ):
        assert frozen.consistency == "filesystem"
        assert 0 < frozen.frozen_s < 2
        guest.virsh("shutdown", "--mode", "agent")
        while clock.monotonic_s() - start_s < 60:
            for disk in frozen.disks:
                rebuilt(disk, None)
    assert clock.monotonic_s() - start_s < 90
    assert guest.virsh("domstate").strip() == "shut off"
    assert [p.name for p in guest.directory.iterdir() if ".drvm-" in p.name] == []
    assert parts.journal.machines() == []
    guest.start()


def _own_directory(line: Line) -> Path:
    found = line.parts.host.domain(line.machine.name).own_directory(SYSTEM.machines)
    assert found is not None
    return found


def _disable(machine: Bare, image: str, bitmap: str) -> None:
    """Switch a bitmap off, behind libvirt's back."""

    def ask(command: str, **arguments: object) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(machine.virsh("qemu-monitor-command", request))["return"]

    nodes = ask("query-named-block-nodes", flat=True)
    (node,) = [
        found["node-name"]
        for found in nodes
        if found["file"].endswith(image) and found["drv"] == "qcow2"
    ]
    ask("block-dirty-bitmap-disable", node=node, name=bitmap)
