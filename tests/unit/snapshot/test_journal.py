from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import CaptureError, Locked
from drvm.snapshot.journal import VERSION, Entry, Journal, JournalDisk, PullFiles

UUID = str(uuid.uuid4())  # the host-wide lock is by UUID
POINT = "0123456789abcdef"
OVERLAY = f"/i/a.qcow2.drvm-{POINT}.overlay"
DISK = JournalDisk("vda", "/i/a.qcow2", "qcow2", "file", OVERLAY)
ENTRY = Entry(VERSION, "external", POINT, UUID, "web", "qemu:///system", (DISK,))


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    entry = ENTRY.in_phase("pivoting", "vda")
    journal.write(entry)
    assert journal.read(UUID) == entry
    assert journal.machines() == [UUID]
    journal.remove(UUID)
    assert journal.read(UUID) is None
    journal.remove(UUID)


def test_a_machine_has_one_worker_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    with (
        Journal(tmp_path).lock(UUID, "web"),
        pytest.raises(Locked, match="web"),
        Journal(tmp_path).lock(UUID, "web"),
    ):
        pytest.fail("locked twice")
    with Journal(tmp_path).lock(UUID, "web"):
        pass


WRONG: dict[str, dict[str, Any]] = {
    "another machine": {"vm_uuid": str(uuid.uuid4())},
    "a newer format": {"version": VERSION + 1},
    "no point id": {"point_id": "../../etc"},
    "a file that is not ours": {"overlay": "/etc/passwd"},
    "an overlay of another point": {"overlay": OVERLAY.replace("f.", "e.")},
    "an overlay elsewhere": {"overlay": "/etc" + OVERLAY[2:]},
    "a relative path": {"base": "a.qcow2", "overlay": OVERLAY[3:]},
    "an unknown phase": {"phase": "dreaming"},
    "an unknown format": {"base_format": "vmdk"},
    "a target that is a path": {"target": "../vda"},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_journal_that_is_not_sound_is_told_and_kept(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    journal = Journal(tmp_path)
    journal.write(ENTRY)
    path = tmp_path / "journal" / f"{UUID}.json"
    document = json.loads(path.read_text())
    for name, value in change.items():
        (document if name in document else document["disks"][0])[name] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CaptureError, match="not understood"):
        journal.read(UUID)
    assert path.exists()


STANDS = JournalDisk("vda", "/i/a.qcow2", "qcow2", "file", OVERLAY, "standing", "0" * 16)
UPPER = JournalDisk("vda", OVERLAY, "qcow2", "file", OVERLAY.replace(POINT, "f" * 16))


def test_an_overlay_may_lie_on_one_that_stands_and_on_no_other_image(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    resting = replace(ENTRY, disks=(), standing=(STANDS,))
    assert resting.at_rest and not ENTRY.at_rest
    taking = replace(resting, disks=(UPPER,), point_id="f" * 16)
    for entry in (resting, taking, resting.folding({"vda"})):
        journal.write(entry)
        assert journal.read(UUID) == entry
    for wrong in (
        replace(taking, standing=()),
        replace(taking, standing=(replace(STANDS, target="vdb"),)),
        replace(resting, standing=(replace(STANDS, base=OVERLAY),)),
        replace(resting, standing=(replace(STANDS, base="/etc/passwd"),)),
    ):
        journal.write(wrong)
        with pytest.raises(CaptureError, match="not understood"):
            journal.read(UUID)


def test_overlays_are_folded_capture_by_capture() -> None:
    other = replace(STANDS, target="vdb", overlay=OVERLAY.replace(POINT, "f" * 16))
    entry = replace(ENTRY, disks=(), standing=(STANDS, other))
    first = entry.folding({"vda", "vdb"})
    assert [d.target for d in first.disks] == ["vda"]
    assert {d.phase for d in first.disks} == {"taken"}
    second = replace(first, disks=()).folding({"vda", "vdb"})
    assert [d.target for d in second.disks] == ["vdb"] and second.standing == ()


@given(data=st.binary(max_size=200))
def test_a_journal_of_any_bytes_is_told(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    tmp_path = tmp_path_factory.mktemp("j")
    journal = Journal(tmp_path)
    journal.write(ENTRY)
    (tmp_path / "journal" / f"{UUID}.json").write_bytes(data)
    with pytest.raises(CaptureError):
        journal.read(UUID)


def test_a_name_that_is_no_uuid_never_becomes_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="UUID"):
        Journal(tmp_path).read("../../etc/passwd")


PULL = PullFiles(f"/l/domain-1-web/drvm-{POINT}.nbd", {"vda": f"/i/a.drvm-{POINT}.scratch"})
PULLED = Entry(VERSION, "pull", POINT, UUID, "web", "qemu:///system", (), pull=PULL)


def test_the_files_of_a_pull_backup_are_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(PULLED)
    assert journal.read(UUID) == PULLED
    assert not PULLED.at_rest


@pytest.mark.parametrize(
    "pull",
    [
        {"socket": "/run/libvirt/libvirt-sock"},
        {"socket": f"drvm-{POINT}.nbd"},
        {"socket": f"/l/drvm-{POINT[::-1]}.nbd"},
        {"scratches": {"vda": "/etc/passwd"}},
        {"scratches": {"vda": f"i/a.drvm-{POINT}.scratch"}},
        {"scratches": {"vda": f"/i/a.drvm-{POINT}.overlay"}},
        {"scratches": {"vda": f"/i/a.drvm-{POINT[::-1]}.scratch"}},
        {"scratches": {"vda": f"/i/a.drvm-{POINT}.scratch", "vdb": ""}},
    ],
)
def test_a_pull_backup_with_files_that_are_not_ours_is_not_believed(
    tmp_path: Path, pull: dict[str, Any]
) -> None:
    journal = Journal(tmp_path)
    journal.write(PULLED)
    path = tmp_path / "journal" / f"{UUID}.json"
    document = json.loads(path.read_bytes())
    document["pull"] |= pull
    path.write_text(json.dumps(document))
    with pytest.raises(CaptureError, match="did not make"):
        journal.read(UUID)
