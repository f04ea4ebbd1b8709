"""Standing overlays on real machines: what is read is what changed, whatever happens between.

Machines without an operating system (``tests.bare``) are enough where no file system matters.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drvm.core.errors import ProcessFailed
from drvm.core.ids import new_point_id
from drvm.core.process import Processes, SystemProcesses
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.lab import guest as lab
from drvm.snapshot import between, recovery
from drvm.snapshot.capture import CaptureRequest, ParentPoint
from drvm.snapshot.choose import choose
from drvm.snapshot.parts import Parts
from drvm.wiring.jobs import BackupOptions, take_point
from tests import chain
from tests.appliance import make_appliance
from tests.bare import Bare, bare_machine
from tests.capturing import make_parts, rebuilt
from tests.guests import MakeGuest
from tests.killing import killed_at
from tests.loops import loop_device
from tests.proving import frozen_images, proven_point

pytestmark = pytest.mark.guest

KIB = 1024
STANDS = "standing-overlay"


@dataclass
class Line:
    """A machine and its points: what each disk was, by point and target."""

    machine: Bare
    parts: Parts
    scratch: Path
    points: dict[str, dict[str, bytes]] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)

    def back_up(self, trace: Trace = no_trace, *, good: bool = True) -> dict[str, str]:
        """The method of each disk. Every disk is rebuilt from its extents and the parent point,
        and compared with what is frozen, looked at by qemu-img."""
        parts = dataclasses.replace(self.parts, trace=trace)
        parent = next(reversed(self.points), None)
        known = self.points.get(parent or "", {})
        request = CaptureRequest(
            self.machine.name,
            new_point_id(),
            changed_blocks="standing-overlay",
            parent=(parent and ParentPoint(parent, {t: len(d) for t, d in known.items()})) or None,
        )
        methods = {}
        with (
            contextlib.suppress(RuntimeError),
            choose(parts, self.machine.name).engine.capture(request) as frozen,
        ):
            found = {}
            for disk in frozen.disks:
                found[disk.target], read = rebuilt(disk, known.get(disk.target))
                self.read_bytes[disk.target] = read
                methods[disk.target] = disk.method
            assert found == self._frozen()
            assert ".overlay" not in (frozen.definition_xml or "")
            if not good:
                raise RuntimeError
            self.points[request.point_id] = found
        return methods

    def back_up_killed(self, step: str, *, good: bool = True) -> None:
        """In a child that SIGKILL ends right there."""

        def work(trace: Trace) -> None:
            own = make_parts(lab.URI, self.scratch, SystemProcesses())
            Line(self.machine, own, self.scratch, dict(self.points)).back_up(trace, good=good)

        killed_at(step, work)

    def recover(self) -> None:
        assert [done.problem for done in recovery.recover(self.parts, self.machine.name)] in (
            [],
            [""],
        )

    def stands(self) -> bool:
        """Whether it stands as it should; anything between that and its own images is wrong."""
        machine, mine = self.machine, self.machine.directory
        images = {Path(machine.image_of(target)) for target in machine.disks}
        overlays = {p for p in (*mine.iterdir(), *self.scratch.iterdir()) if ".drvm-" in p.name}
        assert overlays in (images, set()), overlays
        assert overlays or images == set(machine.disks.values())
        for path in overlays:
            argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--backing-chain", str(path)]
            chain = SystemProcesses().run(argv, timeout_s=30).stdout.decode()
            assert chain.count("image: ") == 2
        return bool(overlays)

    def _frozen(self) -> dict[str, bytes]:
        found = {}
        for target, (path, image_format) in frozen_images(self.machine).items():
            raw = self.scratch / "frozen"
            argv = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(path)]
            SystemProcesses().run([*argv, str(raw)], timeout_s=60)
            found[target] = raw.read_bytes()
        return found


@pytest.fixture(scope="module")
def machine(libvirt_uri: str, processes: Processes) -> Iterator[Bare]:
    with bare_machine(processes, "standing", size="16M") as made:
        yield made


@pytest.fixture
def line(machine: Bare, processes: Processes, tmp_path: Path) -> Iterator[Line]:
    """Running on its own images, with something on them."""
    with contextlib.suppress(ProcessFailed):
        machine.virsh("start")
    made = Line(machine, make_parts(lab.URI, tmp_path, processes), tmp_path)
    for target in ("vda", "vdb"):
        machine.io(target, "write -P 1 0 8M")
    yield made
    made.recover()
    with contextlib.suppress(Exception):
        between.fold_by_hand(made.parts, machine.name)
    assert not made.stands()


def test_what_is_read_is_what_changed_also_after_a_backup_that_failed(line: Line) -> None:
    assert set(line.back_up().values()) == {"full-read: there is no earlier point"}
    for target in ("vda", "vdb"):
        line.machine.io(target, "write -P 2 1M 4k", "write -P 2 2M 8k", "discard 4M 2M")
    assert set(line.back_up().values()) == {STANDS}
    assert line.read_bytes == {"vda": 12 * KIB, "vdb": 12 * KIB}
    line.machine.io("vda", "write -P 3 3M 4k")
    line.back_up(good=False)
    assert set(line.back_up().values()) == {STANDS}
    assert line.read_bytes == {"vda": 4 * KIB, "vdb": 0}
    assert line.stands()


@pytest.mark.parametrize(
    ("step", "method"),
    [
        ("fold-started-vda", STANDS),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("aim-journaled", STANDS),
                ("folded-vda", STANDS),
                ("commit-started-vda", ""),
                ("pivoted-vda", ""),
                ("overlays-made", ""),
                ("snapshot-taken", ""),
                ("reading", ""),
                ("fold-begins-vda", STANDS),
                ("fold-committed-vda", STANDS),
                ("fold-begins-vdb", STANDS),
                ("fold-committed-vdb", STANDS),
                ("folded-vdb", STANDS),
                ("standing-journaled", STANDS),
            )
        ),
    ],
)
def test_a_kill_leaves_the_old_overlay_or_the_new_one_standing(
    line: Line, step: str, method: str
) -> None:
    """From ``aim-journaled`` on the new one: the point that the child took is not ours, so what
    the overlay says is not believed; before, it is the old one, and its hint is."""
    line.back_up()
    line.machine.io("vda", "write -P 4 1M 64k")
    line.back_up_killed(step, good=not step.startswith(("commit-", "pivoted-")))
    line.machine.io("vda", "write -P 5 2M 64k")
    line.recover()
    assert line.stands()
    methods = set(line.back_up().values())
    if method:
        (words,) = methods
        assert words.startswith("full-read: there is no standing overlay of the point")
    else:
        assert methods == {STANDS}
    assert set(line.back_up().values()) == {STANDS}


@pytest.mark.long
@pytest.mark.parametrize("step", ["aim-journaled", "fold-started-vda", "folded-vda"])
def test_qemu_killed_while_the_old_overlay_is_folded_away(line: Line, step: str) -> None:
    line.back_up()
    for target in ("vda", "vdb"):
        line.machine.io(target, "write -P 6 1M 4M")

    def trace(reached: str) -> None:
        if reached == step:
            line.machine.kill_qemu()

    methods = line.back_up(trace)
    assert set(methods.values()) == {STANDS}
    assert line.stands()
    assert set(line.back_up().values()) == {STANDS}, "the offline engine knows the overlay too"
    line.machine.virsh("start")
    words = set(line.back_up().values())
    assert len(words) == 1 and words.pop().startswith("full-read: there is no standing overlay of")
    assert set(line.back_up().values()) == {STANDS}


@pytest.mark.long
def test_a_journal_lost_in_mid_capture_brings_everything_home(line: Line) -> None:
    line.back_up()
    line.machine.io("vda", "write -P 7 1M 64k")
    line.back_up_killed("reading")
    line.machine.io("vdb", "write -P 8 1M 64k")
    line.parts.journal.remove(line.machine.virsh("domuuid").strip())
    line.recover()
    assert not line.stands()
    line.back_up()


@pytest.mark.long
def test_a_machine_that_is_off_is_folded_by_hand(line: Line) -> None:
    line.back_up()
    line.machine.io("vda", "write -P 9 1M 64k")
    line.machine.virsh("destroy")
    (stood,) = [s for s in between.listed(line.parts) if s.vm_name == line.machine.name]
    assert (stood.allocated_bytes > 0, stood.trouble) == (True, "")
    assert recovery.find(line.parts, line.machine.name) == [], "what stands is no leftover"
    done = between.fold_by_hand(line.parts, line.machine.name)
    assert done.problem == ""
    assert not line.stands()
    line.machine.virsh("start")
    line.back_up()


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_block_device_has_its_overlay_in_the_overlay_directory(
    libvirt_uri: str, processes: Processes, tmp_path: Path, kill: bool
) -> None:
    image = tmp_path / "device.raw"
    processes.run(["qemu-img", "create", "-q", "-f", "raw", str(image), "16M"], timeout_s=30)
    with (
        loop_device(image, processes) as device,
        bare_machine(processes, "device", devices={"vdc": device}, size="1M") as machine,
    ):
        overlays = machine.directory / "overlays"
        overlays.mkdir()
        overlays.chmod(0o711)
        parts = make_parts(lab.URI, tmp_path, processes)
        line = Line(machine, dataclasses.replace(parts, overlay_dir=overlays), tmp_path)
        machine.io("vdc", "write -P 1 0 8M")
        line.back_up()
        machine.io("vdc", "write -P 2 1M 4k", "discard 4M 1M")
        methods = line.back_up(
            lambda s: machine.kill_qemu() if kill and s == "folded-vda" else None
        )
        assert methods["vdc"] == STANDS
        assert line.read_bytes["vdc"] == 4 * KIB
        if kill:
            machine.virsh("start")
            line.back_up()
        machine.virsh("destroy", timeout_s=30)
        assert between.fold_by_hand(line.parts, machine.name).problem == ""
        assert machine.image_of("vdc") == str(device)
        assert list(overlays.iterdir()) == []


def test_a_guest_under_load_is_protected_and_doctor_tells_what_stands(
    make_module_guest: MakeGuest, processes: Processes, tmp_path: Path
) -> None:
    """Through the commands: a policy, points that are proven, and the way back."""
    policy = "policies:\n  - name: p\n    vms: ['*']\n    changed_blocks: standing-overlay\n"
    appliance = make_appliance(tmp_path, f"file://{tmp_path}/repository", None, policy)
    appliance.drvm("init")
    guest = make_module_guest("standing")
    options = BackupOptions(changed_blocks="standing-overlay")
    guest.run("dd if=/dev/urandom of=/data/trim bs=1M count=8 2>/dev/null; sync")
    chain.start(guest)
    with appliance.wiring() as wiring:
        take_point(wiring, guest.name, options, NoProgress())
        guest.run("rm /data/trim; sync; fstrim /data")
        point = proven_point(wiring, guest, tmp_path, options)
    assert {disk.method for disk in point.disks} == {STANDS}
    assert point.consistency == "filesystem"
    assert next(d.read_bytes for d in point.disks if d.target == "vdb") < 4 << 20
    written = chain.stop(guest)
    assert chain.verify([guest.run(f"cat {path}") for path in chain.FILES]) == [written] * 2

    found = {f["name"]: f for f in appliance.json("doctor", expect=None)["findings"]}
    assert found[f"standing {guest.name}"]["ok"]
    assert f"half-done {guest.name}" not in found
    (vm,) = [v for v in appliance.json("vms")["vms"] if v["vm"] == guest.name]
    assert vm["standing_overlay_bytes"] > 0
    assert ".overlay" in guest.virsh("domblklist")
    folded = appliance.json("doctor", "--fold", guest.name, expect=None)
    found = {f["name"]: f for f in folded["findings"]}
    assert found[f"fold {guest.name}"]["ok"]
    assert ".overlay" not in guest.virsh("domblklist")
    assert chain.verify([guest.run(f"cat {path}") for path in chain.FILES]) == [written] * 2
