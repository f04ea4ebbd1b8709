"""What is removed of a boot is its own, and nothing that a guest has written goes unasked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import RestoreError, StoreRefused, StoreUnreachable
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.host.images import ImageTool
from drvm.host.model import DomainState
from drvm.restore.instant import place
from drvm.restore.instant.goon import discard, finish, resume
from drvm.restore.instant.look import look, sweep
from drvm.restore.instant.parts import Parts, make_image
from drvm.restore.instant.record import VERSION, Boot, BootDisk, Boots
from drvm.restore.instant.start import make_way
from drvm.restore.served.server import Service
from tests.fakes.clock import FakeClock
from tests.fakes.image_domain import qemu_img
from tests.fakes.target_host import TargetDomain, TargetHost

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"


@dataclass
class Machine(TargetDomain):
    """One that can be started and removed."""

    def state(self) -> DomainState:
        on = self.name in self.host.on
        return DomainState.RUNNING if on else DomainState.SHUTOFF

    def has_managed_save(self) -> bool:
        return False

    def stopped_by_disks(self) -> frozenset[str]:
        return frozenset()

    def block_job(self, target: str) -> None:
        return None

    def destroy(self) -> None:
        self.host.on.discard(self.name)

    def undefine(self) -> None:
        del self.host.machines[self.name]


@dataclass
class Machines(TargetHost):
    on: set[str] = field(default_factory=set)

    def qemu_user(self) -> None:
        return None

    def domains(self) -> list[Any]:
        return [Machine(self, name) for name in self.machines]


@dataclass
class Pins:
    """The repository, as far as it matters here."""

    problem: Exception | None = None
    unpinned: int = 0
    id: str = "one"
    location: str = "file:///one"

    @property
    def store(self) -> Pins:
        return self

    def unpin(self, point_id: str, *, nonce: str) -> int:
        if self.problem is not None:
            raise self.problem
        self.unpinned += 1
        return 1


@dataclass
class Bench:
    parts: Parts
    host: Machines
    boot: Boot
    pins: Any

    @property
    def image(self) -> Path:
        return Path(self.boot.disks[0].image)

    def make(self) -> None:
        """The image, as a boot makes it."""
        make_image(self.parts, self.boot, self.boot.disks[0], 1 << 20, {})

    def define(self, name: str, vm_uuid: str, image: Path, *, over: bool) -> None:
        socket = place.Place(UUID).front.socket
        host = f"<host transport='unix' socket='{socket}'/>"
        below = f"<source protocol='nbd' name='vda'>{host}</source>"
        store = f"<backingStore type='network'>{below}</backingStore>" if over else ""
        self.host.machines[name] = (
            f"<domain><name>{name}</name><uuid>{vm_uuid}</uuid><devices><disk>"
            f"<driver name='qemu' type='qcow2'/><source file='{image}'/>{store}"
            "<target dev='vda'/></disk></devices></domain>"
        )

    def note(self, phase: Any) -> None:
        self.boot = self.parts.boots.write(self.boot.in_phase(phase))

    def phase(self) -> str | None:
        boot = self.parts.boots.find("web1")
        return None if boot is None else boot.phase


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(place, "parent", lambda: tmp_path / "run")
    host = Machines(tmp_path)
    processes = SystemProcesses()
    boots = Boots(tmp_path / "state")
    fake: Any = host
    parts = Parts(fake, ImageTool(processes), processes, SystemClock(), boots)
    disk = BootDisk("vda", str(host.pool_path / "web1-vda.qcow2"))
    nvram = str(tmp_path / "nvram" / "web1_VARS.fd")
    point, nonce, origin = (
        "0123456789abcdef",
        "fedcba9876543210",
        "3f6a2c1e-5d0b-4c5e-9a34-000000000002",
    )
    boot = Boot(
        *(VERSION, "web1", UUID, host.uri, point, "web1", origin, nonce, "2026-11-23T20:00:00Z"),
        *((disk,), nvram, True),
        repository="one",
        location="file:///one",
    )
    return Bench(parts, host, boots.write(boot), Pins())


def test_what_a_killed_boot_left_is_removed(bench):
    bench.make()
    Path(bench.boot.nvram).write_bytes(b"made after the images")
    bench.define("web1", UUID, bench.image, over=True)
    (found,) = sweep(bench.parts, lambda: bench.pins)
    assert found.ok
    assert (bench.phase(), bench.host.machines, bench.pins.unpinned) == (None, {}, 1)
    assert not bench.image.exists()
    assert not Path(bench.boot.nvram).exists()


def test_with_another_repository_nothing_goes_on_and_nothing_is_removed(bench):
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    other = Pins(id="other", location="file:///other")
    (found,) = sweep(bench.parts, lambda: other)
    assert not found.ok and "from file:///one, not file:///other" in found.detail
    assert "DRVM_REPOSITORY=file:///one" in found.hint
    bench.note("running")
    for go_on in (
        lambda: finish(bench.parts, bench.boot, other, pytest.fail, NoProgress()),
        lambda: discard(bench.parts, bench.boot, other),
    ):
        with pytest.raises(RestoreError, match="was booted from another repository"):
            go_on()
    assert (bench.phase(), other.unpinned, bench.image.exists()) == ("running", 0, True)
    (state,) = look(bench.parts)
    assert state.words.startswith("over point 0123456789abcdef of web1 in file:///one: ")


def test_a_boot_of_an_older_drvm_names_no_repository_and_goes_on(bench):
    bench.make()
    bench.boot = bench.parts.boots.write(replace(bench.boot, repository="", location=""))
    assert look(bench.parts)[0].words.startswith("over point 0123456789abcdef of web1: ")
    (found,) = sweep(bench.parts, lambda: Pins(id="other"))
    assert found.ok and bench.phase() is None


def test_a_machine_that_was_restored_since_a_boot_was_killed_stays(bench):
    qemu_img("create", "-q", "-f", "qcow2", bench.image, "1M")
    Path(bench.boot.nvram).write_bytes(b"restored")
    tpm = bench.host.places.tpm / UUID / "tpm2"
    tpm.mkdir(parents=True)
    bench.define("web1", UUID, bench.image, over=False)
    bench.host.on.add("web1")
    (found,) = sweep(bench.parts, lambda: bench.pins)
    assert found.ok
    assert bench.phase() is None
    assert (bench.host.on, list(bench.host.machines)) == ({"web1"}, ["web1"])
    assert bench.image.exists()
    assert Path(bench.boot.nvram).read_bytes() == b"restored"
    assert tpm.exists()


def test_a_machine_that_was_restored_since_a_boot_was_discarded_stays(bench):
    """The store could not be reached when the pin was to go."""
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    bench.note("running")
    bench.pins.problem = StoreUnreachable("no answer")
    with pytest.raises(StoreUnreachable):
        discard(bench.parts, bench.boot, bench.pins)
    assert not bench.image.exists()
    qemu_img("create", "-q", "-f", "qcow2", bench.image, "1M")
    Path(bench.boot.nvram).write_bytes(b"restored")
    bench.define("web1", UUID, bench.image, over=False)
    bench.pins.problem = None
    assert [found.ok for found in sweep(bench.parts, lambda: bench.pins)] == [True]
    assert bench.phase() is None
    assert bench.image.exists()
    assert Path(bench.boot.nvram).exists()
    assert list(bench.host.machines) == ["web1"]


@pytest.mark.parametrize("on", [True, False])
def test_a_machine_that_somebody_started_is_kept_with_what_its_guest_wrote(bench, on):
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    if on:
        bench.host.on.add("web1")
    else:
        name = f"driver=qcow2,backing=,file.driver=file,file.filename={bench.image}"
        SystemProcesses().run(["qemu-io", "--image-opts", "-c", "write 0 4k", name], timeout_s=30)
    (found,) = sweep(bench.parts, lambda: bench.pins)
    assert "kept" in found.detail
    assert bench.phase() == "running"
    assert bench.image.exists()
    with pytest.raises(RestoreError, match="already"):
        make_way(bench.parts, "web1", bench.pins)


def test_images_that_another_machine_has_are_not_removed(bench):
    bench.make()
    over = bench.image.with_name("snapshot.qcow2")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", bench.image, "-F", "qcow2", over, "1M")
    bench.define("other", "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0003", over, over=False)
    bench.note("running")
    with pytest.raises(RestoreError, match="disks of other too"):
        discard(bench.parts, bench.boot, bench.pins)
    assert bench.image.exists()


def test_a_machine_of_which_somebody_took_a_snapshot_is_not_called_gone(bench):
    bench.make()
    over = bench.image.with_name("snapshot.qcow2")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", bench.image, "-F", "qcow2", over, "1M")
    bench.define("web1", UUID, over, over=False)
    bench.note("running")
    (state,) = look(bench.parts)
    assert state.machine == "off"


def test_an_image_with_snapshots_in_it_is_not_pulled(bench):
    """What they take from the point would be zeroes afterwards."""
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    bench.note("running")
    name = f"driver=qcow2,backing=,file.driver=file,file.filename={bench.image}"
    qemu_img("snapshot", "--image-opts", "-c", "mine", name)
    with pytest.raises(RestoreError, match="mine"):
        finish(bench.parts, bench.boot, bench.pins, pytest.fail, NoProgress())
    assert bench.phase() == "running"


def test_what_is_being_discarded_is_not_finished_instead(bench):
    bench.note("discarding")
    with pytest.raises(RestoreError):
        finish(bench.parts, bench.boot, bench.pins, pytest.fail, NoProgress())
    assert bench.phase() == "discarding"


def test_a_pin_that_may_not_be_removed_is_told_and_is_all_that_is_left(bench):
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    bench.note("running")
    bench.pins.problem = StoreRefused("delete is not allowed")
    (told,) = discard(bench.parts, bench.boot, bench.pins)
    assert "stays pinned" in told
    assert bench.phase() is None


def test_no_repository_is_opened_where_nothing_is_to_be_removed(bench):
    bench.note("running")
    assert sweep(bench.parts, pytest.fail) == []


def test_a_repository_that_can_not_be_opened_is_a_finding(bench):
    def fails() -> Any:
        raise StoreUnreachable("no answer")

    (found,) = sweep(bench.parts, fails)
    assert not found.ok
    assert bench.phase() == "making"


def test_a_boot_whose_image_is_lost_is_listed(bench):
    bench.define("web1", UUID, bench.image, over=True)
    bench.note("running")
    (state,) = look(bench.parts)
    assert not state.ok
    assert "no image" in state.words


def test_a_guest_that_stands_still_goes_on_when_a_new_server_gives_what_it_reads(
    bench, monkeypatch
):
    """The old one may have credentials that have expired."""
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    bench.note("running")
    bench.host.on.add("web1")
    done, answers = [], iter([False, False, True])
    monkeypatch.setattr(Machine, "stopped_by_disks", lambda _: frozenset({"vda"}))
    monkeypatch.setattr(Machine, "resume", lambda _: done.append("resumed"), raising=False)
    monkeypatch.setattr(place.Place, "is_fronted", lambda _: True)
    monkeypatch.setattr(place.Place, "unserve", lambda *_: done.append("ended"))
    monkeypatch.setattr(place.Place, "serve", lambda *_: done.append("served"))
    monkeypatch.setattr(place.NbdFront, "reads", lambda *_: next(answers))
    resume(bench.parts, bench.boot, lambda: cast(Service, None))
    assert done == ["ended", "served", "resumed"]
    monkeypatch.setattr(place.NbdFront, "reads", lambda *_: False)
    parts = replace(bench.parts, clock=FakeClock())
    with pytest.raises(RestoreError, match="does not give"):
        resume(parts, bench.boot, lambda: cast(Service, None))
    assert done.count("resumed") == 1


def test_who_looks_before_it_is_swept_is_told_that_somebody_started_it(bench):
    bench.make()
    bench.define("web1", UUID, bench.image, over=True)
    bench.host.on.add("web1")
    (state,) = look(bench.parts)
    assert "somebody started it" in state.words
