"""A machine that is off becomes what it was at a point, whatever happens on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.clock import SystemClock
from drvm.core.errors import (
    CaptureError,
    DamageFound,
    HostError,
    PreflightFailed,
    RestoreError,
    UsageError,
)
from drvm.core.extents import ExtentKind
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.host.images import in_use, write_locked
from drvm.host.nbd import NbdExport, await_unused, nbd_changes, sweep_exports
from drvm.repository.layout import pack_object
from drvm.restore.targets.images import ImageRestorer
from drvm.snapshot.journal import VERSION, Entry, JournalDisk
from tests.fakes.image_domain import qemu_img
from tests.fakes.memory_storage import MemoryStorage
from tests.killing import killed_at
from tests.loops import loop_device
from tests.unit.repository.conftest import cheap_key_derivation
from tests.unit.restore.rollback.conftest import CLUSTER, SIZE, Scene, WholeDomain, make_scene

__all__ = ["cheap_key_derivation"]  # a fixture

LONG = pytest.mark.long
SHORT = ("image-begun-vda", "nvram-placed")
LATER = (
    "rollback-noted",
    "image-written-vda",
    "image-durable-vda",
    "image-begun-vdb",
    "image-written-vdb",
    "image-durable-vdb",
    "nvram-kept",
    "tpm-state-placed",
    "rollback-ended",
)


def test_a_machine_becomes_what_it_was_and_what_it_was_before_is_kept(scene: Scene) -> None:
    point, before = scene.point(), scene.content()
    scene.change(2)
    done = scene.turn(point)
    assert scene.content() == before
    assert not scene.noted()
    kept = {path.name: path for path in done.kept}
    (variables,) = (path for name, path in kept.items() if name.startswith("VARS.fd.before-"))
    assert variables.read_bytes() == b"variables 02"
    (state,) = (path for name, path in kept.items() if name.startswith("tpm2.before-"))
    assert (state / "tpm2-00.permall").read_bytes() == b"state 2"
    scene.change(3)
    scene.point()


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([("qcow2", "raw"), ("raw", "qcow2")]),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["write -P 5", "write -P 200", "write -z", "discard"]),
            st.integers(0, SIZE // 512 - 1),
            st.integers(1, 600),
        ),
        max_size=12,
    ),
)
def test_any_other_state_is_turned_back_and_no_block_is_written_that_was_right(
    formats, overlaid, changes
):
    with tempfile.TemporaryDirectory() as name:
        scene = make_scene(Path(name), formats)
        point, before = scene.point(), scene.content()
        if overlaid:  # as by somebody's own snapshot: the image below must stay as it is
            base = Path(scene.domain.chains["vda"][0])
            top = base.with_suffix(".top.qcow2")
            qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", formats[0], top)
            scene.domain.chains["vda"].insert(0, str(top))
            below = base.read_bytes()
        for verb, sector, count in changes:
            length = min(count * 512, SIZE - sector * 512)
            scene.domain.io("vda", f"{verb} {sector * 512} {length}")
        now = scene.content()[0]
        plan = scene.plan(point)
        compared = scene_compared(scene, plan.tops[0])
        done = scene.turn(point)
        assert scene.content()[:2] == before[:2]
        differing = sum(
            now[at : at + 4096] != before[0][at : at + 4096] for at in range(0, SIZE, 4096)
        )
        vda = done.disks[0]
        assert vda.written_bytes + vda.zeroed_bytes == differing * 4096 == compared
        if overlaid:
            assert base.read_bytes() == below


def scene_compared(scene: Scene, image) -> int:
    restorer = ImageRestorer(scene.vault.repository, SystemProcesses(), SystemClock())
    held = {
        path: Path(path).read_bytes() for chain in scene.domain.chains.values() for path in chain
    }
    found = restorer.compare(image, NoProgress())
    assert {path: Path(path).read_bytes() for path in held} == held
    return found


@pytest.mark.parametrize("step", [*SHORT, *(pytest.param(s, marks=LONG) for s in LATER)])
def test_one_that_was_killed_at_any_step_is_known_and_finished_by_the_same_again(
    scene: Scene, step: str
) -> None:
    point, before = scene.point(), scene.content()
    scene.change(2)
    safety = scene.point().id
    killed_at(step, lambda trace: scene.turn(point, trace=trace, safety=safety))
    assert scene.noted() == (step != "rollback-ended")
    if scene.noted():
        with pytest.raises(CaptureError, match="half turned back") as refused:
            scene.point()
        assert f"restore {point.id} --in-place finishes" in refused.value.hint
        assert f"restore {safety} --in-place undoes" in refused.value.hint
        again = scene.plan(point).again
        assert again is not None and again.safety_point == safety
        scene.turn(point, safety=safety)
    assert scene.content() == before
    scene.point()


def test_what_was_there_comes_back_by_the_safety_point_from_half_way(scene: Scene) -> None:
    point = scene.point()
    scene.change(2)
    safety, before = scene.point(), scene.content()
    killed_at("image-durable-vda", lambda trace: scene.turn(point, trace=trace, safety=safety.id))
    scene.turn(safety, safety=safety.id)
    assert scene.content() == before
    assert not scene.noted()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_one_that_is_killed_again_and_again_at_any_time_ends_right(scene, seed):
    source, (point, before) = random.Random(seed), (scene.point(), scene.content())
    for number in range(4):
        scene.change(2 + number)
        with contextlib.suppress(AssertionError):
            delay_s = source.choice([0.0, 0.002, 0.01, 0.05])
            killed_at(
                source.choice(SHORT + LATER), lambda trace: scene.turn(point, trace=trace), delay_s
            )
        _free_images(scene)
    scene.turn(point)
    assert scene.content() == before


def _free_images(scene: Scene) -> None:
    """As the next restore does it; what changes the disks here is no drvm."""
    clock = SystemClock()
    sweep_exports(clock)
    for chain in scene.domain.chains.values():
        assert await_unused(Path(chain[0]), clock, 60)


def test_all_that_stands_in_the_way_is_told_at_once_and_nothing_is_written(scene: Scene) -> None:
    point = scene.point()
    qemu_img("resize", "-q", "-f", "raw", scene.domain.chains["vdb"][0], SIZE * 2)
    scene.domain.saved = True
    del scene.domain.chains["vda"]
    with pytest.raises(PreflightFailed) as found:
        scene.plan(point)
    told = "; ".join(found.value.problems)
    assert "managedsave-remove" in told and "no disk vda" in told and "resize it" in told
    scene.domain.running = True
    with pytest.raises(PreflightFailed) as found:
        scene.plan(point)
    assert "shut it down first" in found.value.problems[0]


def test_a_machine_that_is_gone_is_to_be_made_anew(scene: Scene) -> None:
    point = scene.point()
    scene.host.there.clear()
    with pytest.raises(PreflightFailed) as found:
        scene.plan(point)
    assert "makes it anew" in found.value.hint


def test_a_disk_that_another_program_writes_is_refused(scene: Scene) -> None:
    point = scene.point()
    with write_locked(Path(scene.domain.chains["vdb"][0])):
        with pytest.raises(PreflightFailed) as found:
            scene.plan(point)
        assert "in use" in found.value.problems[0]


def test_variables_are_kept_each_time_that_a_machine_goes_back_to_a_point(scene: Scene) -> None:
    point = scene.point()
    for number in (2, 3):
        scene.change(number)
        kept = scene.turn(point).kept
        (variables,) = (path for path in kept if path.name.startswith("VARS.fd.before-"))
        assert variables.read_bytes() == f"variables {number:02d}".encode()


@pytest.mark.parametrize("target", ["vda", "vdb"])
def test_a_disk_that_another_machine_lies_on_is_not_written(scene: Scene, target: str) -> None:
    """A running guest on an overlay over it would see its blocks change."""
    point = scene.point()
    scene.change(2)
    path = Path(scene.domain.chains[target][0])
    with relied_on(path), pytest.raises(PreflightFailed) as found:
        scene.plan(point)
    assert "relies on" in found.value.problems[0]
    with pytest.raises(HostError, match="in use"), relied_on(path), write_locked(path):
        pass


@pytest.mark.parametrize("target", ["vda", "vdb"])
@pytest.mark.parametrize("lies_on", [False, True])
def test_a_disk_of_another_machine_that_is_off_is_not_written(
    scene: Scene, target: str, lies_on: bool
) -> None:
    """Nothing runs, so no lock tells: its guest would find another's blocks at its next start."""
    point = scene.point()
    path = Path(scene.domain.chains[target][0])
    overlay = path.with_name("theirs.qcow2")
    if lies_on:
        kind = path.suffix.removeprefix(".")
        qemu_img("create", "-q", "-f", "qcow2", "-b", path, "-F", kind, overlay)
    theirs = str(overlay if lies_on else path)
    other = WholeDomain("web2", str(uuid.uuid4()), {"vda": [theirs]}, running=False)
    scene.host.there.append(other)
    with pytest.raises(PreflightFailed) as found:
        scene.plan(point)
    (problem,) = found.value.problems
    assert problem.startswith(f"{target}: a disk of the VM 'web2'")
    scene.host.there.remove(other)
    scene.plan(point)


def test_a_disk_that_another_machine_has_by_its_pool_is_not_written(scene: Scene) -> None:
    point = scene.point()
    path = Path(scene.domain.chains["vdb"][0])
    named = {"default": {path.name: bytearray(SIZE)}}
    scene.host.storage = MemoryStorage(named, root=str(path.parent))
    disk = (
        f"<disk type='volume' device='disk'><source pool='default' volume='{path.name}'/>"
        "<driver name='qemu' type='raw'/><target dev='vda' bus='virtio'/></disk>"
    )
    other = WholeDomain("web2", str(uuid.uuid4()), {}, running=False, devices=disk)
    scene.host.there.append(other)
    with pytest.raises(PreflightFailed) as found:
        scene.plan(point)
    (problem,) = found.value.problems
    assert problem.startswith("vdb: a disk of the VM 'web2'")


@contextmanager
def relied_on(image: Path) -> Iterator[None]:
    """As a QEMU has it open below an overlay that its guest writes to."""
    overlay = image.with_name("overlay")
    kind = image.suffix.removeprefix(".")
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", kind, overlay]
    subprocess.run(create, check=True)
    machine = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg"]
    qemu = subprocess.Popen(
        [*machine, "-qmp", "stdio", "-drive", f"file={overlay},format=qcow2,if=virtio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert qemu.stdin is not None and qemu.stdout is not None
    try:
        qemu.stdin.write(b'{"execute": "qmp_capabilities"}')
        qemu.stdin.flush()
        assert b"QMP" in qemu.stdout.readline() and b"return" in qemu.stdout.readline()
        yield
    finally:
        qemu.kill()
        qemu.communicate()
        overlay.unlink()


@pytest.mark.parametrize("target", ["vda", "vdb"])
def test_no_qemu_can_open_a_disk_while_it_is_written(scene: Scene, target: str) -> None:
    point, tried = scene.point(), []
    scene.change(2)

    def trace(step: str) -> None:
        if step == f"image-written-{target}":
            tried.append(in_use(Path(scene.domain.chains[target][0])))

    scene.turn(point, trace=trace)
    assert tried == [True]


def test_a_machine_that_was_started_since_its_safety_point_is_left_alone(scene: Scene) -> None:
    point = scene.point()
    scene.change(2)

    def starts() -> None:
        scene.domain.io("vda", "write -P 77 0 4k")

    with pytest.raises(RestoreError, match="meanwhile"):
        scene.turn(point, between=starts)
    assert not scene.noted()
    with pytest.raises(RestoreError, match="meanwhile"):
        scene.turn(point, between=lambda: setattr(scene.domain, "running", True))
    assert not scene.noted()


def test_some_disks_only_leave_the_others_and_the_state_outside(scene: Scene) -> None:
    point, before = scene.point(), scene.content()
    scene.change(2)
    now = scene.content()
    plan = scene.plan(point, "vdb")
    assert any("vda" in line and "stay" in line for line in plan.warnings)
    scene.turn(point, "vdb")
    assert scene.content() == (now[0], before[1], *now[2:])
    with pytest.raises(UsageError, match="has no disk sdz"):
        scene.plan(point, "sdz")


def test_variables_of_another_firmware_stay_and_are_spoken_of(scene: Scene) -> None:
    point = scene.point()
    assert scene.domain.nvram is not None
    scene.domain.nvram.write_bytes(b"variables of another size")
    plan = scene.plan(point)
    assert any("another build of the firmware" in line for line in plan.warnings)
    scene.turn(point)
    assert scene.domain.nvram.read_bytes() == b"variables of another size"


def test_variables_behind_a_link_stay_behind_it_and_as_readable_as_they_were(scene: Scene) -> None:
    point, link = scene.point(), scene.domain.nvram
    assert link is not None
    real = link.rename(scene.directory / "real.fd")
    real.chmod(0o640)
    link.symlink_to(real)
    scene.change(2)
    scene.turn(point)
    assert link.is_symlink() and real.read_bytes() == b"variables 01"
    assert real.stat().st_mode & 0o7777 == 0o640


def test_another_definition_and_another_disk_stay_and_are_spoken_of(scene: Scene) -> None:
    point = scene.point()
    assert scene.plan(point).warnings == ()
    scene.domain.more = "<memory>1048576</memory>"
    third = scene.directory / "vdc.raw"
    qemu_img("create", "-q", "-f", "raw", third, SIZE)
    scene.domain.chains["vdc"] = [str(third)]
    told = "; ".join(scene.plan(point).warnings)
    assert "definition" in told and "vdc is not in the point" in told


def test_an_overlay_that_stands_is_folded_first(scene: Scene) -> None:
    point, before = scene.point(), scene.content()
    base = scene.domain.chains["vdb"][0]
    overlay = f"{base}.drvm-{point.id}.overlay"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    scene.domain.chains["vdb"].insert(0, overlay)
    stands = JournalDisk("vdb", base, "raw", "file", overlay, "standing")
    own = scene.domain.uuid, scene.domain.name, scene.host.uri
    entry = Entry(VERSION, "external", point.id, *own, (), standing=(stands,))
    scene.parts().journal.write(entry)
    scene.domain.io("vdb", "write -P 55 0 100k")
    top = next(t for t in scene.plan(point).tops if t.disk.target == "vdb")
    assert scene_compared(scene, top) == 100 * 1024
    scene.turn(point)
    assert scene.domain.chains["vdb"] == [base] and not Path(overlay).exists()
    assert scene.content() == before


def test_bitmaps_of_an_image_mark_what_was_turned_back(scene: Scene) -> None:
    """So the next backup by a checkpoint, which reads what they mark, is right."""
    point, path = scene.point(), Path(scene.domain.chains["vda"][0])
    scene.change(2)
    qemu_img("bitmap", "--add", "-f", "qcow2", path, "since")
    before = scene.content()[0]
    scene.turn(point)
    now = scene.content()[0]
    with NbdExport(SystemProcesses(), path, "qcow2", bitmap="since") as export:
        marked = [e for e in nbd_changes(export.socket, "since") if e.kind is ExtentKind.DATA]
    changed = [at for at in range(0, SIZE, 512) if before[at : at + 512] != now[at : at + 512]]
    assert changed and all(any(e.offset <= at < e.end for e in marked) for at in changed)
    assert sum(e.length for e in marked) < SIZE // 2


def test_an_image_that_is_not_sound_is_refused_before_the_first_write(scene: Scene) -> None:
    point, path = scene.point(), Path(scene.domain.chains["vda"][0])
    data = bytearray(path.read_bytes())
    table_at = int.from_bytes(data[40:48], "big")
    leaf_at = int.from_bytes(data[table_at : table_at + 8], "big") & 0x00FFFFFFFFFFFE00
    data[leaf_at + 8 : leaf_at + 16] = data[leaf_at : leaf_at + 8]
    path.write_bytes(data)
    with pytest.raises(RestoreError, match="not sound") as found:
        scene.turn(point)
    assert "--replace" in found.value.hint
    assert path.read_bytes() == data and not scene.noted()


def test_damage_of_the_repository_leaves_a_note_with_the_way_back(scene, monkeypatch) -> None:
    point = scene.point()
    scene.change(2)
    safety = scene.point().id

    def sweep(*_: object) -> None:
        raise DamageFound("a pack is damaged")

    monkeypatch.setattr(scene.vault.repository.packs, "sweep", sweep)
    with pytest.raises(DamageFound) as found:
        scene.turn(point, safety=safety)
    assert f"{safety} --in-place undoes" in found.value.hint
    assert scene.noted()


def test_a_point_that_lost_a_pack_is_refused_before_the_first_write(scene: Scene) -> None:
    point, now = scene.point(), scene.content()
    name = max(scene.vault.repository.need(point))
    scene.vault.store.delete(pack_object(name))
    with pytest.raises((PreflightFailed, DamageFound)):
        scene.turn(point)
    assert scene.content() == now and not scene.noted()


def test_the_tpm_of_another_machine_that_was_being_restored_is_not_taken_for_lost(
    scene: Scene,
) -> None:
    """Of one that is there, whose restore was killed: it is put in order, and stays."""
    other = dataclasses.replace(scene.domain, name="db1", uuid=str(uuid.uuid4()), chains={})
    scene.host.there.append(other)
    assert scene.host.places is not None
    state = scene.host.places.tpm / other.uuid / "tpm2"
    state.mkdir(parents=True)
    (state / "tpm2-00.permall").write_bytes(b"sealed")
    (state.parent / ".drvm-restoring").touch()
    point = scene.point()
    scene.change(2)
    scene.turn(point)
    assert (state / "tpm2-00.permall").read_bytes() == b"sealed"


def test_a_note_about_images_that_the_machine_has_no_more_goes(scene: Scene) -> None:
    point = scene.point()
    killed_at("rollback-noted", lambda trace: scene.turn(point, trace=trace))
    for target, chain in scene.domain.chains.items():
        other = scene.directory / f"new-{target}"
        Path(chain[0]).rename(other.with_suffix(Path(chain[0]).suffix))
        chain[0] = str(other.with_suffix(Path(chain[0]).suffix))
    assert scene.plan(point).again is None
    scene.point()
    assert not scene.noted()


def test_a_snapshot_on_top_of_half_a_state_does_not_hide_it(scene: Scene) -> None:
    point = scene.point()
    killed_at("rollback-noted", lambda trace: scene.turn(point, trace=trace))
    base = scene.domain.chains["vda"][0]
    top = f"{base}.mine.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    scene.domain.chains["vda"].insert(0, top)
    with pytest.raises(CaptureError, match="half turned back"):
        scene.point()
    scene.turn(point)
    scene.point()


@pytest.mark.parametrize("spoil", ["{", "other", "path", "version"])
def test_a_note_that_is_not_understood_stays_and_stops_everything(scene: Scene, spoil: str) -> None:
    point = scene.point()
    killed_at("rollback-noted", lambda trace: scene.turn(point, trace=trace))
    (path,) = (scene.directory / "state" / "rollbacks").iterdir()
    note = json.loads(path.read_text())
    note |= {
        "{": {"images": 7},
        "other": {"vm_uuid": "11111111-2222-4333-8444-555555555555"},
        "path": {"images": {"../../x": "y"}},
        "version": {"version": 2},
    }[spoil]
    path.write_text(json.dumps(note))
    for work in (scene.point, lambda: scene.plan(point)):
        with pytest.raises(CaptureError, match="not understood"):
            work()
    assert path.exists()


def test_a_block_device_by_another_name_is_turned_back_too(scene: Scene) -> None:
    image, link = Path(scene.domain.chains["vdb"][0]), scene.directory / "by-id.raw"
    with loop_device(image, SystemProcesses()) as device:
        link.symlink_to(device)
        scene.domain.chains["vdb"] = [str(link)]
        point, before = scene.point(), scene.content()
        scene.change(2)
        device_writes = scene.turn(point).disks[1]
        assert 0 < device_writes.written_bytes + device_writes.zeroed_bytes < SIZE // 4
        assert scene.content() == before


def test_half_a_cluster_is_not_lost_at_the_end(scene: Scene) -> None:
    """The last block of a disk that ends inside one."""
    path = Path(scene.domain.chains["vdb"][0])
    qemu_img("resize", "-q", "-f", "raw", path, SIZE + CLUSTER // 2 + 512)
    scene.domain.io("vdb", f"write -P 3 {SIZE + CLUSTER // 2} 512")
    point, before = scene.point(), scene.content()
    scene.domain.io("vdb", f"write -P 4 {SIZE + CLUSTER // 2} 512")
    scene.turn(point)
    assert scene.content() == before
