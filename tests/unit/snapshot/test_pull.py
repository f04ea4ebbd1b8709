"""What libvirt does not take of a backup is left out; whatever else goes wrong is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from drvm.core.errors import CaptureError, HostError, HostUnreachable
from drvm.host.model import Domain
from drvm.snapshot.checkpoints import Hint
from drvm.snapshot.domainxml import Machine, read
from drvm.snapshot.journal import PullFiles
from drvm.snapshot.pull import Begun, begin

P, Q = "0123456789abcdef", "fedcba9876543210"
UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
BITMAP = f"drvm-{Q}"
MARKED = {"vda": Hint(bitmap=BITMAP), "vdb": Hint(bitmap=BITMAP), "vdc": Hint(doubt="raw")}


@dataclass
class FakeDomain:
    """Refuses with ``refusals``, one after the other; ``begun`` is what it took."""

    refusals: list[HostError] = field(default_factory=list)
    job: str | None = None
    begun: list[tuple[int, str | None]] = field(default_factory=list)
    name: str = "web"

    def domain_job(self) -> str | None:
        return self.job

    def backup_begin(self, backup_xml: str, checkpoint_xml: str | None) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.begun.append((backup_xml.count("incremental="), checkpoint_xml))


def machine() -> Machine:
    disks = "".join(f"<disk type='file'><target dev='{target}'/></disk>" for target in MARKED)
    return read(f"<domain><name>web</name><uuid>{UUID}</uuid><devices>{disks}</devices></domain>")


def begun(fake: FakeDomain, checkpoint: str | None = "<new/>") -> Begun:
    scratches = {target: f"/i/{target}.drvm-{P}.scratch" for target in MARKED}
    files = PullFiles(str(Path(f"/l/drvm-{P}.nbd")), scratches)
    domain = cast(Domain, cast(Any, fake))
    return begin(domain, machine(), files, MARKED, checkpoint)


def methods(found: Begun) -> list[str]:
    return [hint.method for hint in found.hints.values()]


def test_what_libvirt_takes_at_once_is_not_asked_twice() -> None:
    fake = FakeDomain()
    assert methods(begun(fake)) == ["checkpoint", "checkpoint", "full-read: raw"]
    assert fake.begun == [(2, "<new/>")]


def test_a_bitmap_that_libvirt_refuses_costs_its_own_disk_a_full_read() -> None:
    words = f"checkpoint inconsistent: missing or broken bitmap '{BITMAP}' for disk 'vdb'"
    fake = FakeDomain([HostError(words)])
    found = begun(fake)
    assert methods(found) == ["checkpoint", f"full-read: libvirt says: {words}", "full-read: raw"]
    assert (found.problem, fake.begun) == ("", [(1, "<new/>")])


def test_a_refusal_that_names_no_disk_costs_all_bitmaps_and_then_the_checkpoint() -> None:
    fake = FakeDomain([HostError("no bitmaps today"), HostError("no checkpoint either")])
    found = begun(fake)
    assert all(method.startswith("full-read") for method in methods(found))
    assert found.problem == "the next backup will read everything: no checkpoint either"
    assert fake.begun == [(0, None)]


def test_a_machine_that_takes_no_backup_at_all_is_told_so() -> None:
    with pytest.raises(CaptureError, match="begins no backup of web: no"):
        begun(FakeDomain([HostError("no")] * 9))


def test_a_libvirtd_that_is_gone_is_not_asked_for_less() -> None:
    fake = FakeDomain([HostUnreachable("gone")])
    with pytest.raises(HostUnreachable):
        begun(fake)
    assert fake.begun == []


def test_a_job_that_somebody_began_meanwhile_is_not_waited_for() -> None:
    fake = FakeDomain(job="migration")
    with pytest.raises(CaptureError, match="migration"):
        begun(fake)
    assert fake.begun == []
