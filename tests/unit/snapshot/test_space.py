from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, Interrupted, OutOfSpace, StoreUnreachable
from drvm.core.units import MIB
from drvm.snapshot.journal import VERSION, Entry, Journal, JournalDisk
from drvm.snapshot.space import Growth, Room, SpaceWatch, measure

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
POINT = "0123456789abcdef"
LIMIT_S = 20.0


def entry(directory: Path, name: str = "a", uuid: str = UUID, base_format: str = "qcow2") -> Entry:
    """A capture of one disk: an empty base of 64 MiB, and 8 MiB written to the overlay."""
    base = directory / f"{name}.img"
    overlay = directory / f"{name}.img.drvm-{POINT}.overlay"
    base.write_bytes(b"")
    os.truncate(base, 64 * MIB)
    overlay.write_bytes(b"x" * 8 * MIB)
    disk = JournalDisk("vda", str(base), base_format, "file", str(overlay), "taken")
    return Entry(VERSION, "external", POINT, uuid, name, "qemu:///system", (disk,))


def allocated(path: str) -> int:
    return Path(path).stat().st_blocks * 512


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The test says what is free, in bytes."""
    told = {"bytes": 0}
    monkeypatch.setattr("drvm.snapshot.space.free_bytes", lambda _: told["bytes"])
    return told


def test_an_overlay_needs_the_room_again_that_it_takes(
    tmp_path: Path, free: dict[str, int]
) -> None:
    one = entry(tmp_path)
    room = Room(Journal(tmp_path), 100 * MIB)
    owed = allocated(one.disks[0].overlay)
    assert owed >= 8 * MIB
    free["bytes"] = 100 * MIB + owed
    assert room.shortage(one) == ""
    free["bytes"] -= 1
    assert "100.0 MiB in reserve" in room.shortage(one)
    with pytest.raises(OutOfSpace) as raised:
        room.require(one)
    assert raised.value.retryable
    assert "overlay_reserve" in raised.value.hint


def test_while_overlays_are_merged_the_reserve_alone_counts(
    tmp_path: Path, free: dict[str, int]
) -> None:
    room = Room(Journal(tmp_path), 100 * MIB)
    free["bytes"] = 100 * MIB
    assert room.shortage(entry(tmp_path)) != ""
    assert room.shortage(entry(tmp_path), committing=True) == ""


def test_captures_of_other_machines_owe_room_too(tmp_path: Path, free: dict[str, int]) -> None:
    journal = Journal(tmp_path)
    one, other = entry(tmp_path), entry(tmp_path, "b", UUID.replace("1", "2"))
    free["bytes"] = 100 * MIB + allocated(one.disks[0].overlay)
    room = Room(journal, 100 * MIB)
    assert room.shortage(one) == ""
    journal.write(other)
    assert room.shortage(one) != ""
    journal.remove(other.vm_uuid)
    assert room.shortage(one) == ""


def test_a_journal_that_is_not_understood_does_not_hide_the_others(
    tmp_path: Path, free: dict[str, int]
) -> None:
    journal = Journal(tmp_path)
    journal.write(entry(tmp_path, "b", UUID.replace("1", "2")))
    (tmp_path / "journal" / f"{UUID.replace('1', '3')}.json").write_text("{")
    one = entry(tmp_path)
    free["bytes"] = 100 * MIB + allocated(one.disks[0].overlay)
    assert Room(journal, 100 * MIB).shortage(one) != ""


def test_a_raw_image_that_is_written_full_does_not_grow(
    tmp_path: Path, free: dict[str, int]
) -> None:
    one = entry(tmp_path, base_format="raw")
    free["bytes"] = 100 * MIB
    room = Room(Journal(tmp_path), 100 * MIB)
    assert room.shortage(one) != ""
    Path(one.disks[0].base).write_bytes(b"x" * 64 * MIB)
    assert room.shortage(one) == ""


def test_a_block_device_takes_no_room_of_a_file_system(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    overlay.write_bytes(b"x" * MIB)
    (found,) = measure([Growth(overlay)]).values()
    assert found.owed_bytes == 0
    assert found.directory == tmp_path
    assert found.free_bytes > 0


def test_an_overlay_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    base = tmp_path / "a.img"
    base.write_bytes(b"")
    (found,) = measure([Growth(tmp_path / "absent", base)]).values()
    assert found.owed_bytes == 0


def test_a_directory_that_is_gone_is_trouble(tmp_path: Path) -> None:
    gone = entry(tmp_path)
    disk = replace(gone.disks[0], overlay=f"{tmp_path}/gone/a.img.drvm-{POINT}.overlay")
    words = Room(Journal(tmp_path), 0).shortage(replace(gone, disks=(disk,)))
    assert "can't be looked at" in words


def test_where_an_end_is_wanted_the_guest_is_put_back_though_the_upload_hangs() -> None:
    released = threading.Event()

    def stopping() -> str:
        raise Interrupted("the daemon is stopping")

    def release() -> tuple[str, ...]:
        released.set()
        return ()

    with (
        pytest.raises(Interrupted, match="the backup of web was given up: the daemon is stopping"),
        SpaceWatch("web", stopping, release) as watch,
    ):
        assert released.wait(LIMIT_S)  # the upload
        with pytest.raises(Interrupted):
            watch.still_frozen()


class Trouble:
    def __init__(self) -> None:
        self.words = ""
        self.released = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.watch = SpaceWatch("web", lambda: self.words, self.release)
        self.order: list[str] = []

    def release(self) -> tuple[str, ...]:
        try:
            self.watch.still_frozen()
        except OutOfSpace:
            self.order.append("refused before released")
        self.released.set()
        assert self.go_on.wait(LIMIT_S)
        self.order.append("released")
        return ("it goes on",)


def test_readers_are_refused_before_the_guest_is_released_by_the_watch_itself() -> None:
    trouble = Trouble()
    with pytest.raises(OutOfSpace, match=r"of web was given up: the disk is full; it goes on"):  # noqa: SIM117
        with trouble.watch:
            trouble.watch.still_frozen()
            trouble.words = "the disk is full"
            assert trouble.released.wait(LIMIT_S), "this thread may hang as it likes"
            with pytest.raises(OutOfSpace):
                trouble.watch.still_frozen()
    assert trouble.order == ["refused before released", "released"]


def test_the_end_waits_until_the_guest_is_released() -> None:
    trouble = Trouble()
    trouble.go_on.clear()

    def leave() -> None:
        with pytest.raises(OutOfSpace), trouble.watch:
            trouble.words = "the disk is full"
            assert trouble.released.wait(LIMIT_S)
        trouble.order.append("left")

    leaving = threading.Thread(target=leave)
    leaving.start()
    assert trouble.released.wait(LIMIT_S)
    assert "left" not in trouble.order
    trouble.go_on.set()
    leaving.join(LIMIT_S)
    assert trouble.order[-2:] == ["released", "left"]


@pytest.mark.parametrize("error", [StoreUnreachable("the store is away"), CaptureError("torn")])
def test_what_a_capture_that_was_given_up_ends_with_is_that(error: Exception) -> None:
    trouble = Trouble()
    with pytest.raises(OutOfSpace) as raised, trouble.watch:
        trouble.words = "the disk is full"
        assert trouble.released.wait(LIMIT_S)
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [Interrupted("stopping"), KeyboardInterrupt(), ValueError("bug")])
def test_who_interrupts_is_not_told_of_space(error: BaseException) -> None:
    trouble = Trouble()
    with pytest.raises(type(error)), trouble.watch:
        trouble.words = "the disk is full"
        assert trouble.released.wait(LIMIT_S)
        raise error


def test_without_trouble_nothing_is_released() -> None:
    trouble = Trouble()
    with trouble.watch:
        trouble.watch.still_frozen()
    assert not trouble.released.is_set()


def test_a_release_that_fails_is_left_to_the_end_of_the_capture() -> None:
    def fail() -> tuple[str, ...]:
        raise CaptureError("no room to merge")

    words = [""]
    watch = SpaceWatch("web", lambda: words[0], fail)
    with pytest.raises(OutOfSpace, match=r"the disk is full$"), watch:
        words[0] = "the disk is full"
        while True:
            watch.still_frozen()
            SystemClock().sleep(0.01)
