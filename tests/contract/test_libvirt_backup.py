"""What drvm believes of libvirt's pull backups, asked of a real libvirtd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import HostError
from drvm.core.extents import ExtentKind, cover
from drvm.core.process import Processes
from drvm.core.units import MIB
from drvm.host.images import ImageTool
from drvm.host.model import Domain
from drvm.host.nbd import NbdReader, nbd_changes, nbd_extents
from drvm.host.places import SYSTEM
from tests.reading import read

pytestmark = pytest.mark.guest

WAIT_S = 10.0


@pytest.fixture
def scratch(images: dict[str, Path], processes: Processes) -> dict[str, Path]:
    tool, made = ImageTool(processes), {}
    for target, path in images.items():
        made[target] = path.with_name(f"{path.name}.scratch")
        tool.create_scratch(made[target], path, 16 * MIB)
    return made


@pytest.fixture
def socket(domain: Domain) -> Iterator[Path]:
    directory = domain.own_directory(SYSTEM.machines)
    assert directory is not None
    yield directory / "backup.nbd"


def checkpoint(name: str, *targets: str) -> str:
    disks = "".join(f"<disk name='{target}' checkpoint='bitmap'/>" for target in targets)
    return (
        f"<domaincheckpoint><name>{name}</name><description>words</description>"
        f"<disks>{disks}</disks></domaincheckpoint>"
    )


def pull(socket: Path, scratch: dict[str, Path], since: str | None, *targets: str) -> str:
    disks = ""
    for target, path in scratch.items():
        if target not in targets:
            disks += f"<disk name='{target}' backup='no'/>"
            continue
        mode = "backupmode='full'"
        if since is not None and target != "vdc":
            mode = f"backupmode='incremental' incremental='{since}' exportbitmap='changes'"
        disks += (
            f"<disk name='{target}' backup='yes' type='file' exportname='{target}' {mode}>"
            f"<driver type='qcow2'/><scratch file='{path}'/></disk>"
        )
    server = f"<server transport='unix' socket='{socket}'/>"
    return f"<domainbackup mode='pull'>{server}<disks>{disks}</disks></domainbackup>"


def end(domain: Domain) -> None:
    clock, deadline_s = SystemClock(), SystemClock().monotonic_s() + WAIT_S
    domain.abort_domain_job()
    while domain.domain_job() is not None:
        assert clock.monotonic_s() < deadline_s
        clock.sleep(0.02)


def test_a_job_serves_its_disks_by_name_until_it_is_ended_and_leaves_only_the_scratch(
    domain: Domain, scratch: dict[str, Path], socket: Path
) -> None:
    assert (domain.domain_job(), domain.backup_xml()) == (None, None)
    domain.backup_begin(pull(socket, scratch, None, "vda", "vdc"), checkpoint("one", "vda"))
    assert domain.domain_job() == "backup"
    assert str(scratch["vda"]) in (domain.backup_xml() or "")
    assert str(scratch["vdb"]) not in (domain.backup_xml() or "")
    assert "<description>words</description>" in domain.checkpoint_xml("one")
    for target in ("vda", "vdc"):
        with contextlib.closing(NbdReader(socket, target)) as reader:
            assert reader.size_bytes == 16 * MIB
            assert read(reader, MIB, 4096) == bytes(4096)
        *_, last = cover(nbd_extents(socket, target), 16 * MIB)
        assert last.kind is ExtentKind.ZERO and last.length > 15 * MIB
    with pytest.raises(HostError, match=r"vdb|export"):
        NbdReader(socket, "vdb")
    end(domain)
    assert domain.backup_xml() is None
    assert scratch["vda"].exists() and not socket.exists()


def test_an_incremental_job_tells_what_changed_since_the_checkpoint(
    domain: Domain, scratch: dict[str, Path], socket: Path
) -> None:
    domain.create_checkpoint(checkpoint("one", "vda"))
    domain.backup_begin(pull(socket, scratch, "one", "vda"), None)
    (extent,) = cover(nbd_changes(socket, "changes", "vda"), 16 * MIB)
    assert extent.kind is ExtentKind.UNCHANGED
    end(domain)
    assert domain.checkpoint_names() == ["one"]


def test_a_bitmap_that_is_missing_is_told_with_its_disk_and_nothing_is_made(
    domain: Domain, scratch: dict[str, Path], socket: Path
) -> None:
    domain.create_checkpoint(checkpoint("one", "vda"))
    with pytest.raises(HostError, match="bitmap 'one' for disk 'vdb'"):
        domain.backup_begin(pull(socket, scratch, "one", "vda", "vdb"), checkpoint("two", "vda"))
    assert domain.domain_job() is None
    assert domain.checkpoint_names() == ["one"]
    assert not socket.exists()


def test_a_machine_that_ends_takes_its_job_and_directory_with_it(
    domain: Domain, scratch: dict[str, Path], socket: Path
) -> None:
    domain.backup_begin(pull(socket, scratch, None, "vda"), None)
    domain.destroy()
    assert (domain.domain_job(), domain.backup_xml()) == (None, None)
    assert domain.own_directory(SYSTEM.machines) is None
    assert scratch["vda"].exists() and not socket.parent.exists()
