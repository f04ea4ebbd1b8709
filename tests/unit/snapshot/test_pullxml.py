"""A backup job is drvm's own only if every file it names is one that drvm makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.snapshot.checkpoints import Hint
from drvm.snapshot.disks import Source, scratch_path
from drvm.snapshot.domainxml import Machine, read
from drvm.snapshot.journal import PullFiles
from drvm.snapshot.pullxml import backup_xml, own_files

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
P, Q = "0123456789abcdef", "fedcba9876543210"


def machine(*targets: str) -> Machine:
    disks = "".join(
        f"<disk type='file'><driver type='qcow2'/><source file='/i/{t}'/><target dev='{t}'/></disk>"
        for t in targets
    )
    return read(f"<domain><name>web</name><uuid>{UUID}</uuid><devices>{disks}</devices></domain>")


def files(*targets: str, directory: Path = Path("/i"), point_id: str = P) -> PullFiles:
    sources = [Source(target, directory / target, "qcow2", False) for target in targets]
    return PullFiles(
        f"/l/domain-1-web/drvm-{point_id}.nbd",
        {s.target: str(scratch_path(s, point_id, UUID, None)) for s in sources},
    )


def test_each_disk_is_served_under_its_target_and_those_left_out_are_not() -> None:
    hints = {"vda": Hint(bitmap=f"drvm-{Q}"), "vdb": Hint(doubt="it is raw")}
    text = backup_xml(machine("vda", "vdb", "vdc"), files("vda", "vdb"), hints)
    assert text == (
        f'<domainbackup mode="pull"><server transport="unix" socket="/l/domain-1-web/drvm-{P}.nbd"'
        ' /><disks><disk name="vda" backup="yes" type="file" exportname="vda"'
        f' backupmode="incremental" incremental="drvm-{Q}" exportbitmap="drvm-{Q}"><driver'
        f' type="qcow2" /><scratch file="/i/vda.drvm-{P}.scratch" /></disk><disk name="vdb"'
        ' backup="yes" type="file" exportname="vdb" backupmode="full"><driver type="qcow2" />'
        f'<scratch file="/i/vdb.drvm-{P}.scratch" /></disk><disk name="vdc" backup="no" /></disks>'
        "</domainbackup>"
    )


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0", categories=["L", "P", "S"]))


@given(NAMES)
def test_our_own_job_is_known_again_whatever_the_images_are_called(name: str) -> None:
    made = files("vda", "vdb", directory=Path("/i") / f"d{name}")
    hints = {target: Hint() for target in ("vda", "vdb")}
    assert own_files(backup_xml(machine("vda", "vdb", "vdc"), made, hints)) == made


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode='pull'", "mode='push'"),
        (f"/i/vdb.drvm-{P}.scratch", "/i/vdb.scratch"),
        (f"/i/vdb.drvm-{P}.scratch", f"/i/vdb.drvm-{Q}.scratch"),
        (f"/i/vdb.drvm-{P}.scratch", f"vdb.drvm-{P}.scratch"),
        (f"<scratch file='/i/vdb.drvm-{P}.scratch'/>", ""),
        (f"socket='/l/drvm-{P}.nbd'", "name='localhost' port='10809'"),
        (f"drvm-{P}.nbd", "backup.nbd"),
        ("<domainbackup", "<!DOCTYPE a [<!ENTITY b 'c'>]><domainbackup"),
        ("</domainbackup>", ""),
        ("domainbackup", "domain"),
    ],
)
def test_a_job_of_anybody_else_is_foreign(old: str, new: str) -> None:
    ours = (
        f"<domainbackup mode='pull'><server transport='unix' socket='/l/drvm-{P}.nbd'/><disks>"
        f"<disk name='vda' backup='yes'><scratch file='/i/vda.drvm-{P}.scratch'/></disk>"
        f"<disk name='vdb' backup='yes'><scratch file='/i/vdb.drvm-{P}.scratch'/></disk>"
        "<disk name='vdc' backup='no'/></disks></domainbackup>"
    )
    assert own_files(ours) is not None
    assert old in ours
    assert own_files(ours.replace(old, new)) is None


@given(st.text())
def test_any_other_text_is_nobodys(text: str) -> None:
    assert own_files(text) is None
