"""Somebody plants links, pipes and files where a restore writes, before it looks or while it runs:
nothing is followed, nothing replaced, nothing outside touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import DrvmError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.host.model import Host
from drvm.repository.repository import Repository
from drvm.restore import claims
from drvm.restore.plan import RestorePlan, RestoreRequest, plan_restore
from drvm.restore.run import run_restore
from drvm.restore.targets.images import ImageRestorer
from drvm.store.memory import MemoryStore
from tests.fakes.target_host import TargetHost
from tests.hostile.forge import DOMAIN, LIAR, Forge
from tests.unit.repository.conftest import PASSPHRASE, cheap_key_derivation, new_vault

__all__ = ["cheap_key_derivation"]  # a fixture

UEFI = DOMAIN.replace("</os>", "<loader type='pflash'>/x/OVMF.fd</loader><nvram>/x/n</nvram></os>")
TPM = DOMAIN.replace(
    "</devices>",
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>",
)
NOTHING: Any = None


@pytest.fixture
def repository() -> Repository:
    """With two machines of a small disk each: one has UEFI variables, the other a TPM."""
    vault = new_vault(MemoryStore())
    forge = Forge(vault.store, vault.repository.keyring._opened.keys, vault.repository.id)
    disks = [forge.disk(1 << 20, None)]
    variables = forge.blob(b"n" * 1000)
    forge.point(vm="uefi", definition=forge.blob(UEFI.encode()), nvram=variables, disks=disks)
    state = {"tpm2-00.permall": forge.blob(b"state")}
    forge.point(vm="tpm", definition=forge.blob(TPM.encode()), tpm=state, disks=disks)
    return Repository.open(forge.store, PASSPHRASE)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TargetHost]:
    monkeypatch.setattr(claims, "shared_directory", lambda: None)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("nothing may touch this")
    (outside / "directory").mkdir()
    yield TargetHost(tmp_path / "host")
    assert sorted(path.name for path in outside.iterdir()) == ["directory", "precious"]
    assert (outside / "precious").read_text() == "nothing may touch this"
    assert not list((outside / "directory").iterdir())


def link_to(name: str) -> Callable[[Path, Path], None]:
    return lambda path, outside: path.symlink_to(outside / name)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a link to nothing": link_to("absent"),
    "a link to a file": link_to("precious"),
    "a link to a directory": link_to("directory"),
    "a link to itself": lambda path, _: path.symlink_to(path),
    "another name of a file": lambda path, outside: os.link(outside / "precious", path),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a directory": lambda path, _: path.mkdir(),
    "a file": lambda path, _: path.write_text("somebody's"),
}


def plan_on(repository: Repository, target: TargetHost, vm: str = "uefi") -> RestorePlan:
    host: Host = target  # type: ignore[assignment]
    points = repository.points(LIAR).points
    (manifest,) = [point.manifest for point in points if point.manifest.vm == vm]
    return plan_restore(repository, manifest, host, RestoreRequest())


def run(plan: RestorePlan, repository: Repository, target: TargetHost) -> None:
    restorer = ImageRestorer(repository, SystemProcesses(), SystemClock())
    host: Host = target  # type: ignore[assignment]
    run_restore(plan, host, restorer, NoProgress(), start=False, volumes=NOTHING, devices=NOTHING)


def paths_of(plan: RestorePlan) -> list[Path]:
    assert plan.nvram_path is not None
    return [plan.images[0].path, plan.nvram_path]


def as_it_is(path: Path) -> tuple[int, int, str]:
    status = path.lstat()
    return status.st_mode, status.st_ino, str(path.readlink()) if path.is_symlink() else ""


@pytest.mark.parametrize("number", [0, 1], ids=["image", "nvram"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_before_the_plan_is_refused_or_gone_around(
    what: str, number: int, repository: Repository, target: TargetHost
) -> None:
    place = paths_of(plan_on(repository, target))[number]
    PLANTED[what](place, target.root.parent / "outside")
    before = as_it_is(place)
    try:
        plan = plan_on(repository, target)
        assert place not in paths_of(plan)
        run(plan, repository, target)
    except DrvmError as error:
        assert error.message.isprintable()
        assert not target.machines
    else:
        assert str(place) not in target.machines["uefi"]
    assert as_it_is(place) == before


@pytest.mark.parametrize("number", [0, 1], ids=["image", "nvram"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_after_the_plan_ends_the_restore_and_leaves_nothing(
    what: str, number: int, repository: Repository, target: TargetHost
) -> None:
    plan = plan_on(repository, target)
    place = paths_of(plan)[number]
    PLANTED[what](place, target.root.parent / "outside")
    before = as_it_is(place)
    with pytest.raises(DrvmError) as caught:
        run(plan, repository, target)
    assert caught.value.message.isprintable()
    assert not target.machines
    assert as_it_is(place) == before
    assert [path for path in target.pool_path.iterdir() if path != place] == []


def test_what_killed_restores_left_whole_stands_in_no_restore_s_way(
    repository: Repository, target: TargetHost
) -> None:
    """Nor do the images of machines that were restored from the same point before."""
    seen: set[Path] = set()
    for _ in range(4):
        plan = plan_on(repository, target)
        assert not seen & set(paths_of(plan))
        seen.update(paths_of(plan))
        run(plan, repository, target)
        target.machines.clear()
    assert set(target.pool_path.iterdir()) == seen


def test_the_state_of_a_tpm_goes_through_no_link(
    repository: Repository, target: TargetHost
) -> None:
    """A machine's directory that is a link: the restore ends, and what it leads to is untouched."""
    plan = plan_on(repository, target, "tpm")
    assert plan.tpm
    (target.places.tpm / plan.uuid).symlink_to(target.root.parent / "outside" / "directory")
    with pytest.raises(DrvmError):
        run(plan, repository, target)
    assert not target.machines
    assert not list(target.pool_path.iterdir())
