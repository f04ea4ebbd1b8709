"""A machine that is off, with real images, points of it, and what it takes to turn it back."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from drvm.backup.run import Backup
from drvm.core.clock import SystemClock
from drvm.core.ids import new_point_id
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress, Trace, no_trace
from drvm.host import tpm
from drvm.host.images import ImageTool
from drvm.host.model import Host
from drvm.host.places import StatePlaces
from drvm.repository.manifest import Manifest
from drvm.restore.rollback.plan import RollbackPlan, plan_rollback
from drvm.restore.rollback.run import TurnedBack, make_ready, turn_back
from drvm.restore.targets.images import ImageRestorer
from drvm.snapshot.capture import CaptureRequest, ChangedBlocks
from drvm.snapshot.journal import Journal
from drvm.snapshot.offline import OfflineEngine
from drvm.snapshot.parts import Parts
from tests.fakes.chain_host import FakeHost
from tests.fakes.image_domain import ImageDomain, qemu_img
from tests.fakes.memory_storage import MemoryStorage
from tests.unit.repository.conftest import Vault, new_vault

SIZE = 4 << 20
CLUSTER = 65536


@dataclasses.dataclass
class WholeDomain(ImageDomain):
    """With UEFI variables and an emulated TPM. ``more``: what else its definition has,
    and ``devices`` among its devices."""

    nvram: Path | None = None
    saved: bool = False
    more: str = ""
    devices: str = ""

    def xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        text = super().xml(inactive=inactive, secure=secure)
        system = f"<os><type>hvm</type><nvram>{self.nvram}</nvram></os>{self.more}"
        device = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
        return text.replace("<devices>", f"{system}<devices>{device}{self.devices}")

    def has_managed_save(self) -> bool:
        return self.saved


class PlacedHost(FakeHost):
    places: StatePlaces | None = None  # type: ignore[assignment]
    storage: MemoryStorage


@dataclasses.dataclass
class Scene:
    directory: Path
    vault: Vault
    domain: WholeDomain
    host: PlacedHost

    def parts(self, trace: Trace = no_trace) -> Parts:
        processes = SystemProcesses()
        return Parts(
            host=cast(Host, self.host),
            images=ImageTool(processes),
            processes=processes,
            journal=Journal(self.directory / "state"),
            clock=SystemClock(),
            trace=trace,
            overlay_reserve_bytes=0,
        )

    def point(self, changed_blocks: ChangedBlocks = "full-read") -> Manifest:
        backup = Backup(
            self.vault.repository,
            writer="here",
            level=1,
            clock=SystemClock(),
            progress=NoProgress(),
            trace=no_trace,
        )
        request = CaptureRequest(
            vm=self.domain.name, point_id=new_point_id(), changed_blocks=changed_blocks
        )
        result = backup.run(OfflineEngine(self.parts()), request, self.domain.uuid)
        assert result.cleanup is None
        return result.point.manifest

    def plan(self, point: Manifest, *disks: str) -> RollbackPlan:
        chosen = frozenset(disks) or None
        return plan_rollback(self.vault.repository, point, self.parts(), chosen)

    def turn(
        self,
        point: Manifest,
        *disks: str,
        trace: Trace = no_trace,
        between: Callable[[], Any] = lambda: None,
        safety: str | None = None,
    ) -> TurnedBack:
        plan, parts = self.plan(point, *disks), self.parts(trace)
        guard = make_ready(plan, parts)
        between()
        restorer = ImageRestorer(self.vault.repository, SystemProcesses(), SystemClock(), trace)
        return turn_back(plan, parts, restorer, guard, safety, NoProgress())

    def content(self) -> tuple[object, ...]:
        """All that would be seen of the machine."""
        disks = [self.domain.content(target, self.directory) for target in self.domain.chains]
        assert self.domain.nvram is not None and self.host.places is not None
        state = tpm.read_state(self.host.places.tpm / self.domain.uuid / "tpm2")
        return (*disks, self.domain.nvram.read_bytes(), state)

    def change(self, number: int) -> None:
        """Write, zero and discard here and there, in both disks and outside of them."""
        for target in self.domain.chains:
            self.domain.io(
                target,
                f"write -P {number} {number * 3 * 4096} 16k",
                f"write -P {number + 100} {CLUSTER * (20 + number)} 512",
                f"write -z {CLUSTER * (4 + number)} 8k",
                f"discard {CLUSTER * (30 + number)} 128k",
            )
        assert self.domain.nvram is not None and self.host.places is not None
        self.domain.nvram.write_bytes(f"variables {number:02d}".encode())
        state = self.host.places.tpm / self.domain.uuid / "tpm2"
        (state / "tpm2-00.permall").write_bytes(f"state {number}".encode())

    def noted(self) -> bool:
        return self.parts().journal.rollbacks.read(self.domain.uuid) is not None


def make_scene(directory: Path, formats: tuple[str, str] = ("qcow2", "raw")) -> Scene:
    chains = {}
    for target, kind in zip(("vda", "vdb"), formats, strict=True):
        path = directory / f"{target}.{kind}"
        qemu_img("create", "-q", "-f", kind, path, SIZE)
        chains[target] = [str(path)]
    own = str(uuid.uuid4())
    domain = WholeDomain("web1", own, chains, running=False, nvram=directory / "VARS.fd")
    host = PlacedHost(domain)
    host.places = StatePlaces(directory, directory / "swtpm", directory)
    (host.places.tpm / own / "tpm2").mkdir(parents=True)
    scene = Scene(directory, new_vault(), domain, host)
    for target in chains:
        domain.io(target, f"write -P 7 0 {SIZE // 2}", f"write -P 9 {SIZE - CLUSTER} 60k")
    scene.change(1)
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)
