"""A point of a small machine in a repository in memory, and drills of it on a host in memory."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drvm.backup.run import Backup
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress, Progress, Trace, no_trace
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need
from drvm.drill.disks import RestoredDisks
from drvm.drill.plan import DrillPlan, DrillRequest, plan_drill
from drvm.drill.room import Room
from drvm.drill.tools import Tools
from drvm.host.model import Pool
from drvm.repository import keys
from drvm.repository.manifest import Manifest
from drvm.repository.repository import Repository
from drvm.restore.targets.images import PlannedImage
from drvm.snapshot.capture import CaptureRequest, FrozenMachine
from drvm.store.memory import MemoryStore
from tests.fakes.clock import FakeClock
from tests.fakes.drill_host import DrillHost
from tests.fakes.still_engine import StillDisk, StillEngine

VM = "11111111-2222-4333-8444-555555555555"
MAC = "52:54:00:aa:bb:cc"
DEFINITION = f"""
<domain type='qemu'>
  <name>web1</name><uuid>{VM}</uuid>
  <memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
      <source file='/images/web1.raw'/><target dev='vda' bus='virtio'/></disk>
    <interface type='network'><mac address='{MAC}'/><source network='default'/></interface>
    <hostdev mode='subsystem' type='pci'><source>
      <address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/></source></hostdev>
  </devices>
</domain>"""
AMPLE = Room(free_bytes=1 << 40, memory_bytes=1 << 36, closed=())


@dataclasses.dataclass
class Stage:
    """``plan`` makes plans, ``restored`` is what the fake restorer was asked for."""

    repository: Repository
    point: Manifest
    host: DrillHost
    clock: FakeClock
    directory: Path
    restored: list[PlannedImage]
    room: Room = AMPLE

    def plan(self, **changes: Any) -> DrillPlan:
        fields = {"point": self.point, "checks": (AgentCheck(),), "directory": self.directory}
        request = DrillRequest(**(fields | changes))
        return plan_drill(self.repository, self.host, request, self.clock, lambda _: self.room)

    def plan_there(self, **changes: Any) -> DrillPlan:
        """On another host, whose pool has the drills' directory."""
        self.host.uri, self.host.remote = "qemu+ssh://root@spare/system", True
        self.host.pools_there = [Pool("spare", "dir", True, str(self.directory), 1 << 40)]
        return self.plan(notes=self.directory.with_name("notes"), **changes)

    def tools(self, trace: Trace = no_trace, progress: Progress | None = None) -> Tools:
        host: Any = self.host
        return Tools(host, RestoredDisks(self), self.clock, progress or NoProgress(), trace)

    def restore(self, image: PlannedImage, _progress: object) -> int:
        """Implements ``Restorer``; takes 100 s."""
        self.clock.sleep(100)
        image.path.write_bytes(b"disk")
        self.restored.append(image)
        self.host.did("restore")
        return 4096

    def is_clean(self) -> bool:
        return (self.host.machines, self.host.networks, [*self.directory.iterdir()]) == (
            {},
            set(),
            [],
        )


@dataclasses.dataclass(frozen=True)
class Scan:
    """Implements ``Check``: of the disks alone; takes a minute."""

    stage: Stage
    name: str = "scan"
    proves: str = "nothing was found"
    timeout_s: float = 600.0
    needs: frozenset[Need] = frozenset({"disks"})

    def attempt(self, _guest: GuestUnderTest) -> Attempt:
        self.stage.clock.sleep(60)
        return Attempt(passed=True, answered=False, detail="")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return make_stage(tmp_path, monkeypatch)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    return lambda **changes: make_stage(tmp_path, monkeypatch, **changes)


def make_stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    definition: str | None = DEFINITION,
    **changes: Any,
) -> Stage:
    for name, value in (
        *(("MEMORY_KIB", 64), ("PASSES", 1), ("_MEMORY_BOUNDS", range(64, 1 << 20))),
        ("_PASSES_BOUNDS", range(1, 17)),
    ):
        monkeypatch.setattr(keys, name, value)
    clock = FakeClock()
    repository = Repository.create(MemoryStore(), b"correct horse")
    (tmp_path / "disk").write_bytes(b"a" * 65536 + bytes(65536))
    machine = FrozenMachine(
        name="web1",
        uuid=VM,
        taken_at=clock.now() - dt.timedelta(hours=3),
        consistency="crash",
        engine="still",
        disks=(StillDisk("vda", tmp_path / "disk"),),
        definition_xml=definition,
    )
    backup = Backup(
        repository, writer="kvm1", level=1, clock=clock, progress=NoProgress(), trace=no_trace
    )
    taken = backup.run(
        StillEngine(dataclasses.replace(machine, **changes)),
        CaptureRequest("web1", new_point_id()),
        VM,
    )
    directory = tmp_path / "drills"
    directory.mkdir(exist_ok=True)
    return Stage(repository, taken.point.manifest, DrillHost(), clock, directory, [])
