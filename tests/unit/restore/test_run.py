"""However a restore ends: a machine has its images, or there is no machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from drvm.core.clock import SystemClock
from drvm.core.errors import HostError, HostUnreachable, PreflightFailed, RestoreError, UsageError
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.host.model import Host
from drvm.repository.repository import Repository
from drvm.restore import claims
from drvm.restore.plan import RestorePlan, RestoreRequest, plan_restore
from drvm.restore.run import run_restore
from drvm.restore.targets import volume_lease
from drvm.restore.targets.images import ImageRestorer
from drvm.restore.targets.volumes import VolumeRestorer
from drvm.store.memory import MemoryStore
from tests.fakes.clock import FakeClock
from tests.fakes.memory_storage import MemoryStorage
from tests.fakes.target_host import TargetDomain, TargetHost
from tests.hostile.forge import DOMAIN, LIAR, Forge
from tests.unit.repository.conftest import PASSPHRASE, cheap_key_derivation, new_vault

__all__ = ["cheap_key_derivation"]  # a fixture
NOTHING: Any = None
OLD = "<domain><name>here</name><uuid>{}</uuid><devices/></domain>"


class Target(TargetHost):
    """``behind`` is called when a machine has been defined."""

    behind: Callable[[], None] = staticmethod(lambda: None)
    volumes: MemoryStorage
    refuses: bool = False
    brought_back: tuple[int, bool] | None = None

    def restore_running(self, memory: Path, domain_xml: str) -> None:
        if self.refuses:
            raise HostError("another processor")
        self.brought_back = memory.stat().st_size, domain_xml in self.machines.values()

    def define(self, domain_xml: str) -> TargetDomain:
        made = super().define(domain_xml)
        behind, self.behind = self.behind, lambda: None
        behind()
        return made

    @property
    def storage(self) -> MemoryStorage:
        return self.volumes


@pytest.fixture(scope="module")
def repository() -> Repository:
    vault = new_vault(MemoryStore())
    forge = Forge(vault.store, vault.repository.keyring._opened.keys, vault.repository.id)
    forge.point(
        vm="here", definition=forge.blob(DOMAIN.encode()), disks=[forge.disk(1 << 20, None)]
    )
    return Repository.open(forge.store, PASSPHRASE)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    for room in (claims, volume_lease):
        monkeypatch.setattr(room, "shared_directory", lambda: None)
    made = Target(tmp_path)
    made.volumes = MemoryStorage(root=str(made.pool_path))
    return made


def planned(
    repository: Repository, target: Target, *, replace: bool = False, **more: Any
) -> RestorePlan:
    host: Host = target  # type: ignore[assignment]
    (point,) = repository.points(LIAR).points
    request = RestoreRequest(identity="replace" if replace else "keep", **more)
    return plan_restore(repository, point.manifest, host, request)


def run(plan: RestorePlan, repository: Repository, target: Target, *, start: bool = False) -> None:
    host: Host = target  # type: ignore[assignment]
    run_restore(
        plan,
        host,
        ImageRestorer(repository, SystemProcesses(), SystemClock()),
        NoProgress(),
        start=start,
        volumes=VolumeRestorer(repository, target.volumes, FakeClock()),
        devices=NOTHING,
    )


def planned_running(repository: Repository, target: Target) -> RestorePlan:
    host: Host = target  # type: ignore[assignment]
    (point,) = repository.points(LIAR).points
    memory = structs.replace(point.manifest.disks[0], target="memory")
    manifest = structs.replace(point.manifest, memory=memory)
    return plan_restore(repository, manifest, host, RestoreRequest(running=True))


def raises(error: BaseException) -> Callable[[], None]:
    def behind() -> None:
        raise error

    return behind


def files(target: Target) -> list[str]:
    names = [path.name for path in target.pool_path.iterdir()]
    return sorted([*names, *target.volumes.pools["default"]])


ENDS = [KeyboardInterrupt(), HostError("no"), RestoreError("no"), HostUnreachable("lost")]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("remote", [False, True], ids=["files", "volumes"])
def test_a_machine_has_its_images_however_defining_it_ended(
    error: BaseException, remote: bool, repository: Repository, target: Target
) -> None:
    target.remote = remote
    plan = planned(repository, target)
    target.behind = raises(error)
    with pytest.raises(type(error)):
        run(plan, repository, target)
    left = remote and isinstance(error, HostUnreachable)
    assert bool(target.machines) == left, "a host that is lost is not asked again"
    kept = left or (remote and isinstance(error, KeyboardInterrupt))
    assert (plan.images[0].path.name in files(target)) == kept
    if not kept:
        assert files(target) == []


def test_an_interrupted_restore_into_volumes_is_gone_on_with_by_the_same_alone(
    repository: Repository, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_lease, "shared_directory", lambda: tmp_path / "run")
    target.remote = True
    first = planned(repository, target)
    target.behind = raises(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(first, repository, target)
    target.behind = lambda: None
    again, other = planned(repository, target), planned(repository, target, format="qcow2")
    assert (again.resumed, again.token) == (True, first.token)
    assert (other.resumed, other.token == first.token) == (False, False)
    assert again.need_bytes < first.need_bytes, "what is there takes its room already"
    run(again, repository, target)
    assert files(target) == [first.images[0].path.name]
    assert not planned(repository, target, replace=True).resumed, "a machine has the volumes"


def test_what_another_has_gone_on_with_meanwhile_is_not_written_to(
    repository: Repository, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be planned twice, and confirmed when the machine has long run on these volumes."""
    monkeypatch.setattr(volume_lease, "shared_directory", lambda: tmp_path / "run")
    target.remote = True
    target.machines["here"] = OLD.format(planned(repository, target).uuid)
    target.behind = raises(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(planned(repository, target, replace=True), repository, target)
    one, other = (planned(repository, target, replace=True) for _ in range(2))
    assert (one.resumed, other.resumed, one.token) == (True, True, other.token)
    run(one, repository, target)
    volume = target.volumes.pools["default"][one.images[0].path.name]
    volume[-1:] = b"x"
    with pytest.raises(RestoreError, match="another has gone on"):
        run(other, repository, target)
    assert files(target) == [one.images[0].path.name]
    assert volume[-1:] == b"x"


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_machine_that_was_to_be_replaced_is_the_old_one_again(
    error: BaseException, repository: Repository, target: Target
) -> None:
    target.machines["here"] = OLD.format(planned(repository, target).uuid)
    old = dict(target.machines)
    plan = planned(repository, target, replace=True)
    target.behind = raises(error)
    with pytest.raises(type(error)):
        run(plan, repository, target)
    assert target.machines == old and files(target) == []


def test_images_stay_where_the_machine_can_not_be_taken_back(
    repository: Repository, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(repository, target)
    target.behind = raises(KeyboardInterrupt())
    monkeypatch.setattr(TargetDomain, "undefine", lambda _: raises(HostError("no"))())
    with pytest.raises(HostError):
        run(plan, repository, target)
    assert target.machines and files(target) == [plan.images[0].path.name]


def test_a_machine_of_somebody_else_is_not_taken_away(
    repository: Repository, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came in the moment before, and libvirt refused ours."""
    plan = planned(repository, target)

    def define(_: Target, __: str) -> TargetDomain:
        target.machines["other"] = OLD.format(plan.uuid)
        raise HostError("domain is already defined")

    monkeypatch.setattr(Target, "define", define)
    with pytest.raises(HostError):
        run(plan, repository, target)
    assert list(target.machines) == ["other"] and files(target) == []


def test_a_machine_that_does_not_start_is_told_to_be_restored(
    repository: Repository, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TargetDomain, "start", lambda _: raises(HostError("no KVM"))())
    plan = planned(repository, target)
    with pytest.raises(RestoreError, match="here is restored, but does not start: no KVM"):
        run(plan, repository, target, start=True)
    assert target.machines and files(target) == [plan.images[0].path.name]


def test_a_device_is_looked_at_again_when_its_turn_comes(
    repository: Repository, target: Target, tmp_path: Path
) -> None:
    plan = planned(repository, target)
    gone = dataclasses.replace(plan.images[0], path=tmp_path / "sdz", device=True)
    with pytest.raises(PreflightFailed) as found:
        run(dataclasses.replace(plan, images=(gone,)), repository, target)
    assert f"--device vda={gone.path}" in found.value.problems[0]
    assert not target.machines and files(target) == []


def test_a_lease_that_can_not_be_looked_at_takes_no_disk_from_a_machine(
    repository: Repository, target: Target
) -> None:
    """As libvirt refuses it while somebody makes another volume in the pool."""
    target.remote = True
    plan = planned(repository, target)

    def refuse(operation: str, *_: str) -> None:
        if operation == "names":
            raise HostError("pool 'default' has asynchronous jobs running.")

    def behind() -> None:
        target.volumes.before = refuse

    target.behind = behind
    with pytest.raises(HostError):
        run(plan, repository, target)
    assert not target.machines and files(target) == []


def test_a_machine_goes_on_from_its_memory_when_it_is_defined(
    repository: Repository, target: Target
) -> None:
    plan = planned_running(repository, target)
    run(plan, repository, target)
    assert target.brought_back == (1 << 20, True)
    assert files(target) == [plan.images[0].path.name], "its memory is not kept"


def test_a_machine_that_does_not_go_on_is_restored_all_the_same(
    repository: Repository, target: Target
) -> None:
    target.refuses = True
    plan = planned_running(repository, target)
    with pytest.raises(RestoreError, match="another processor"):
        run(plan, repository, target)
    assert list(target.machines) == ["here"]
    assert files(target) == [plan.images[0].path.name]


def test_what_holds_no_memory_or_is_far_away_is_not_brought_back_running(
    repository: Repository, target: Target
) -> None:
    host: Host = target  # type: ignore[assignment]
    (point,) = repository.points(LIAR).points
    with pytest.raises(UsageError, match="holds no memory"):
        plan_restore(repository, point.manifest, host, RestoreRequest(running=True))
    target.remote = True
    with pytest.raises(UsageError, match="on the KVM host itself"):
        planned_running(repository, target)
