"""Which machines' memory is captured, and what of a capture with memory is ended."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, HostError
from drvm.host.model import Domain
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.journal import VERSION, Entry, Journal
from drvm.snapshot.memory import refuse
from drvm.snapshot.memoryend import end_snapshot

POINT, UUID = "0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdef"
REQUEST = CaptureRequest("web", POINT, memory=True)


class Machine:
    """``jobs``: what it says when it is asked, in turn."""

    name, uuid = "web", UUID

    def __init__(self, devices: str = "", cpu: str = "", jobs: tuple[str | None, ...] = ()) -> None:
        self._xml = f"<domain>{cpu}<devices>{devices}</devices></domain>"
        self._jobs = list(jobs)
        self.aborted = 0

    def xml(self) -> str:
        return self._xml

    def domain_job(self) -> str | None:
        return self._jobs.pop(0) if self._jobs else None

    def abort_domain_job(self) -> None:
        self.aborted += 1
        raise HostError("it has just ended")


def entry(memory: Path | str) -> Entry:
    return Entry(VERSION, "external", POINT, UUID, "web", "qemu:///system", (), memory=str(memory))


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (Machine("<hostdev type='pci'/>"), "passed through"),
        (Machine("<interface type='hostdev'/>"), "network card of the host"),
        (Machine("<filesystem type='mount'/>"), "is shared"),
        (Machine("<tpm/>"), "TPM"),
        (Machine(cpu="<cpu migratable='off'/>"), "not migratable"),
    ],
)
def test_a_machine_whose_memory_is_not_all_of_it_is_refused(machine: Machine, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        refuse(cast(Domain, machine), REQUEST)


def test_a_policy_that_wants_frozen_file_systems_refuses_memory() -> None:
    with pytest.raises(CaptureError, match="frozen"):
        refuse(cast(Domain, Machine()), CaptureRequest("web", POINT, require_filesystem=True))


def test_a_disk_that_is_left_out_refuses_memory_which_counts_on_all_of_them() -> None:
    disks = "".join(f"<disk type='file'><target dev='{name}'/></disk>" for name in ("vda", "vdb"))
    request = CaptureRequest("web", POINT, memory=True, exclude_disks=frozenset({"vdb", "vdz"}))
    with pytest.raises(CaptureError, match="disk vdb would be left out, and the guest"):
        refuse(cast(Domain, Machine(disks)), request)
    refuse(cast(Domain, Machine("<disk><target dev='vda'/></disk>")), request)


def test_an_ordinary_machine_is_not_refused() -> None:
    refuse(cast(Domain, Machine("<interface type='network'/><disk/>", "<cpu/>")), REQUEST)


def test_a_snapshot_that_writes_our_file_is_aborted(tmp_path: Path) -> None:
    path = tmp_path / f"a.qcow2.drvm-{POINT}.memory"
    path.touch()
    machine = Machine(jobs=("snapshot", None))
    end_snapshot(cast(Domain, machine), entry(path), SystemClock())
    assert machine.aborted == 1


@pytest.mark.parametrize(("there", "job"), [(False, "snapshot"), (True, "backup"), (True, None)])
def test_no_other_job_is_aborted(tmp_path: Path, there: bool, job: str | None) -> None:
    path = tmp_path / f"a.qcow2.drvm-{POINT}.memory"
    if there:
        path.touch()
    machine = Machine(jobs=(job, None))
    end_snapshot(cast(Domain, machine), entry(path), SystemClock())
    assert machine.aborted == 0


@pytest.mark.parametrize(
    "name", ["/etc/passwd", f"a.drvm-{POINT}.memory", f"/a.drvm-{POINT[::-1]}.memory"]
)
def test_a_journal_that_names_a_memory_of_somebody_else_is_not_believed(
    tmp_path: Path, name: str
) -> None:
    journal = Journal(tmp_path)
    journal.write(entry(name))
    with pytest.raises(CaptureError, match="did not make"):
        journal.read(UUID)


def test_what_has_a_memory_is_not_at_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    made = entry(f"/images/a.qcow2.drvm-{POINT}.memory")
    journal.write(made)
    assert journal.read(UUID) == made
    assert not made.at_rest
