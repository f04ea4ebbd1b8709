"""An interrupted restore goes on where it stopped, and trusts nothing of what was half written."""

from __future__ import annotations

import datetime as dt
import os
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from drvm.chunker.blocks import LEAF_BYTES
from drvm.core.clock import SystemClock
from drvm.core.errors import Interrupted, RestoreError, StoreUnreachable
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.host.nbd import await_unused
from drvm.host.rawfile import RawFileWriter
from drvm.restore.run import run_folder
from drvm.restore.targets.images import ImageRestorer, PlannedImage, planned_in
from drvm.restore.targets.partial import held, left_in, new_partial, sweep_partial
from tests.killing import end_at, killed_at
from tests.unit.repository.conftest import Vault, cheap_key_derivation, new_vault
from tests.unit.repository.test_round_trip import noise

__all__ = ["cheap_key_derivation"]  # a fixture

CONTENT = noise(9 * MIB) + bytes(LEAF_BYTES) + noise(5 * MIB + 700, 1)
LONG = pytest.mark.long
SHORT, LATER = ("begun", "whole"), ("made", "written", "named")
FORMATS = ("raw", "qcow2")


@pytest.fixture(scope="module")
def vault() -> Vault:
    """Tests change nothing in it."""
    vault = new_vault()
    vault.save([CONTENT], step=1 << 24)
    return vault


def restorer(vault: Vault, trace: Trace = no_trace) -> ImageRestorer:
    return ImageRestorer(vault.repository, SystemProcesses(), SystemClock(), trace)


def planned(vault: Vault, directory: Path, image_format: str) -> PlannedImage:
    manifest = vault.repository.points().points[0].manifest
    return planned_in(directory, manifest.disks[0], manifest, image_format)


def left_by_a_kill(vault: Vault, image: PlannedImage, step: str = "image-written-vda") -> Path:
    killed_at(step, lambda trace: restorer(vault, trace).restore(image, NoProgress()))
    (left,) = left_in(image.path.parent)
    assert left.path == image.partial
    assert await_unused(left.path, SystemClock(), 30)  # by its server, which ends by itself
    return left.path


def assert_whole(image: PlannedImage) -> None:
    raw = image.path
    if image.format == "qcow2":
        ImageTool(SystemProcesses()).check(image.path, "qcow2")
        raw = image.path.with_suffix(".check")
        argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image.path), str(raw)]
        SystemProcesses().run(argv, timeout_s=60)
    content = raw.read_bytes()
    assert content[: len(CONTENT)] == CONTENT
    assert not any(content[len(CONTENT) :])
    others = {path.name for path in image.path.parent.iterdir()}
    assert others == {image.path.name, raw.name}


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("step", [*SHORT, *(pytest.param(s, marks=LONG) for s in LATER)])
def test_a_restore_that_was_killed_at_any_step_goes_on(vault, tmp_path, image_format, step):
    image = planned(vault, tmp_path, image_format)
    killed_at(f"image-{step}-vda", lambda t: restorer(vault, t).restore(image, NoProgress()))
    if step != "named":
        assert not image.path.exists()
        restorer(vault).restore(image, NoProgress())
    assert_whole(image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_is_there_is_not_written_again(vault, tmp_path, image_format):
    image = planned(vault, tmp_path, image_format)
    left_by_a_kill(vault, image)
    assert restorer(vault).restore(image, NoProgress()) == 0
    assert_whole(image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_garbage_in_what_was_half_written_is_healed(vault, tmp_path, image_format):
    """In the middle of data, and in what must be zeroes."""
    image = planned(vault, tmp_path, image_format)
    path = left_by_a_kill(vault, image)
    if image_format == "raw":
        for at in (5 * MIB + 123, 20 * MIB, len(CONTENT) - 900):
            writer = RawFileWriter(path, image.size_bytes)
            writer.write(at, b"?" * 10_000 if at < 30 * MIB else b"?" * 900)
            writer.close()
    else:
        for at in (5 * MIB, 20 * MIB):
            argv = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {at} 10000", str(path)]
            SystemProcesses().run(argv, timeout_s=60)
    written = restorer(vault).restore(image, NoProgress())
    assert 0 < written < MIB
    assert_whole(image)


def test_a_qcow2_that_is_not_sound_any_more_is_made_anew(vault, tmp_path):
    """Two of the guest's blocks in one cluster would look right one by one."""
    image = planned(vault, tmp_path, "qcow2")
    path = left_by_a_kill(vault, image)
    data = bytearray(path.read_bytes())
    (table_at,) = (int.from_bytes(data[40:48], "big"),)
    leaf_at = int.from_bytes(data[table_at : table_at + 8], "big") & 0x00FFFFFFFFFFFE00
    data[leaf_at + 8 : leaf_at + 16] = data[leaf_at : leaf_at + 8]
    path.write_bytes(data)
    restorer(vault).restore(image, NoProgress())
    assert_whole(image)


def test_a_qcow2_with_a_backing_file_is_not_gone_on_with(vault, tmp_path):
    """Whoever may rename files there could put one in its place that names any file."""
    image = planned(vault, tmp_path, "qcow2")
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * image.size_bytes)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw"]
    SystemProcesses().run([*argv, str(image.partial)], timeout_s=60)
    image.partial.chmod(0o600)
    restorer(vault).restore(image, NoProgress())
    secret.unlink()
    assert_whole(image)


@pytest.mark.parametrize(
    "kind", ["link", "hard link", "fifo", "open to others", "larger", "foreign"]
)
def test_a_file_that_drvm_did_not_make_is_left_alone(vault, tmp_path, kind):
    image = planned(vault, tmp_path / "images", "raw")
    image.path.parent.mkdir()
    other, partial = tmp_path / "other", image.partial
    other.write_bytes(b"precious" * (image.size_bytes // 8))
    other.chmod(0o600)
    if kind == "link":
        partial.symlink_to(other)
    elif kind == "hard link":
        partial.hardlink_to(other)
    elif kind == "fifo":
        os.mkfifo(partial, 0o600)
    else:
        partial.write_bytes(b"precious" * (image.size_bytes // 8))
        partial.chmod(0o644 if kind == "open to others" else 0o600)
    if kind == "larger":
        with partial.open("ab") as stream:
            stream.write(b"more")
    if kind == "foreign":
        os.chown(partial, 65534, 65534)
    before = partial.lstat()
    restorer(vault).restore(image, NoProgress())
    assert image.path.read_bytes()[: len(CONTENT)] == CONTENT
    now = partial.lstat()
    told = ("st_mode", "st_uid", "st_ino", "st_size", "st_mtime_ns")
    assert [getattr(now, name) for name in told] == [getattr(before, name) for name in told]
    assert other.read_bytes().startswith(b"preciousprecious")
    assert {path.name for path in image.path.parent.iterdir()} == {image.path.name, partial.name}


def test_two_restores_of_one_image_do_not_meet(vault, tmp_path):
    image = planned(vault, tmp_path, "raw")
    with restorer(vault).made(image, NoProgress()), pytest.raises(RestoreError, match="another"):
        restorer(vault).restore(image, NoProgress())


@pytest.mark.parametrize("error", [StoreUnreachable("gone"), Interrupted("by a signal")])
def test_what_a_passing_fault_interrupts_is_kept_and_said(vault, tmp_path, monkeypatch, error):
    image = planned(vault, tmp_path, "raw")
    original = RawFileWriter.write

    def write(self: RawFileWriter, offset: int, data: memoryview) -> None:
        original(self, offset, data)
        raise error

    monkeypatch.setattr(RawFileWriter, "write", write)
    with pytest.raises(type(error)) as raised:
        restorer(vault).restore(image, NoProgress())
    assert "goes on with it" in raised.value.hint
    monkeypatch.undo()
    assert [left.path for left in left_in(tmp_path)] == [image.partial]
    assert restorer(vault).restore(image, NoProgress()) < len(CONTENT) - LEAF_BYTES
    assert_whole(image)


def test_other_disks_that_are_whole_are_not_read_again_from_the_store(tmp_path):
    """A folder of several images: none has its name before all are whole."""
    vault = new_vault()
    vault.save([CONTENT, noise(3 * MIB, 5)])
    manifest = vault.repository.points().points[-1].manifest
    images = tuple(planned_in(tmp_path / "out", disk, manifest, "raw") for disk in manifest.disks)
    work = vault.repository, manifest, images, tmp_path / "out"
    step = "image-begun-vdb"
    killed_at(step, lambda trace: run_folder(*work, restorer(vault, trace), NoProgress()))
    assert sorted(left.path for left in left_in(tmp_path / "out")) == sorted(
        image.partial for image in images
    )
    restored = run_folder(*work, restorer(vault), NoProgress())
    assert restored.written_bytes <= 3 * MIB
    assert images[0].path.read_bytes()[: len(CONTENT)] == CONTENT
    assert images[1].path.read_bytes() == noise(3 * MIB, 5)
    assert not left_in(tmp_path / "out")


def test_the_room_that_a_partial_image_takes_is_not_asked_for_again(vault, tmp_path):
    image = planned(vault, tmp_path, "raw")
    assert image.on_hand_bytes == 0
    left_by_a_kill(vault, image)
    assert 14 * MIB < image.on_hand_bytes < 16 * MIB


def test_a_partial_image_is_swept_after_a_week_and_a_nameless_one_at_once(vault, tmp_path):
    image = planned(vault, tmp_path, "raw")
    path = left_by_a_kill(vault, image)
    nameless = tmp_path / ".vda.raw.0123abcd.drvm-partial"
    nameless.write_bytes(b"?")
    with ExitStack() as stack:
        stack.enter_context(restorer(vault).made(planned(vault, tmp_path, "qcow2"), NoProgress()))
        assert sweep_partial(tmp_path) == [nameless]
        old = path.stat().st_mtime - dt.timedelta(days=8).total_seconds()
        os.utime(path, (old, old))
        assert sweep_partial(tmp_path) == [path]


@pytest.mark.long
@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("seed", range(10))
def test_a_restore_that_is_killed_again_and_again_ends_right(vault, tmp_path, image_format, seed):
    source, image = random.Random(seed), planned(vault, tmp_path, image_format)
    for _ in range(4):
        step = source.choice(["made", "taken-over", "begun", "written", "whole"])
        delay_s = source.choice([0.0, 0.001, 0.02])
        work = lambda trace: restorer(vault, trace).restore(image, NoProgress())  # noqa: E731
        end_at(f"image-{step}-vda", work, delay_s)
        if image.path.exists():
            break
    if not image.path.exists():
        restorer(vault).restore(image, NoProgress())
    assert_whole(image)


def test_a_partial_image_that_another_restore_has_taken_over_at_once_is_left_to_it(
    tmp_path: Path,
) -> None:
    """In the moment between its making and its lock."""
    path, theirs = tmp_path / "partial", ExitStack()

    class Overtaken(ImageTool):
        def create_image(self, path: Path, *what: Any) -> None:
            super().create_image(path, *what)
            theirs.enter_context(held(path))

    with theirs, pytest.raises(RestoreError, match="another restore"):
        new_partial(path, "raw", MIB, Overtaken(SystemProcesses()), {})
    assert path.stat().st_size == MIB
