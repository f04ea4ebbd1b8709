"""A pull backup of drvm's is ended from wherever it was left; no other job ever is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from drvm.core.errors import CleanupFailed, HostError, HostUnreachable
from drvm.core.process import SystemProcesses
from drvm.host.images import ImageTool
from drvm.host.model import DomainState, Host
from drvm.snapshot.journal import VERSION, Entry, Journal, PullFiles
from drvm.snapshot.overlays import Limits, Overlays
from drvm.snapshot.pullend import PullEnd
from drvm.snapshot.space import Room
from tests.fakes.chain_host import FakeHost
from tests.fakes.clock import FakeClock

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
P, Q = "0123456789abcdef", "fedcba9876543210"


@dataclass
class Jobs:
    """A machine with at most one job. ``ends_after``: how often it is still there when asked
    after it was aborted."""

    job: str | None = None
    description: str | None = None
    running: bool = True
    ends_after: int = 2
    aborts: int = 0
    failures: list[HostError] = field(default_factory=list)
    uuid: str = UUID
    name: str = "web"

    def state(self) -> DomainState:
        if self.failures:
            raise self.failures.pop()
        return DomainState.RUNNING if self.running else DomainState.SHUTOFF

    def domain_job(self) -> str | None:
        if self.aborts:
            self.ends_after -= 1
            if self.ends_after < 0:
                self.job = None
        return self.job

    def backup_xml(self) -> str | None:
        return self.description

    def abort_domain_job(self) -> None:
        self.aborts += 1


class Scene:
    def __init__(self, directory: Path, domain: Jobs) -> None:
        self.domain = domain
        self.directory = directory
        self.clock = FakeClock()
        self.steps: list[str] = []
        self.files = self.made(P)
        host = cast(Host, FakeHost(cast(Any, domain)))
        self.overlays = Overlays(
            host,
            ImageTool(SystemProcesses()),
            Journal(directory),
            self.clock,
            self.steps.append,
            Limits(unreachable_s=60),
            Room(Journal(directory), 0),
        )

    def made(self, point_id: str) -> PullFiles:
        scratch = self.directory / f"a.drvm-{point_id}.scratch"
        scratch.touch()
        socket = self.directory / f"drvm-{point_id}.nbd"
        socket.touch()
        return PullFiles(str(socket), {"vda": str(scratch)})

    def job_of(self, files: PullFiles) -> str:
        return (
            f"<domainbackup mode='pull'><server transport='unix' socket='{files.socket}'/><disks>"
            f"<disk name='vda'><scratch file='{files.scratches['vda']}'/></disk></disks>"
            "</domainbackup>"
        )

    def end(self) -> None:
        entry = Entry(VERSION, "pull", P, UUID, "web", "qemu:///fake", (), pull=self.files)
        PullEnd(self.overlays).run(entry, self.files)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.is_file())


def test_our_job_is_ended_once_and_waited_for_before_its_files_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs("backup"))
    scene.domain.description = scene.job_of(scene.files)
    scene.end()
    assert (scene.domain.aborts, scene.left()) == (1, [])
    assert scene.steps == ["backup-aborted", "backup-ended", "scratch-removed"]


def test_without_a_job_only_the_files_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs())
    scene.end()
    scene.end()
    assert (scene.domain.aborts, scene.left()) == (0, [])


def test_a_machine_that_is_off_has_no_job(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs("backup", running=False))
    scene.end()
    assert (scene.domain.aborts, scene.left()) == (0, [])


@pytest.mark.parametrize("job", ["migration", "save", "backup", "other"])
def test_a_job_of_somebody_else_is_never_ended(tmp_path: Path, job: str) -> None:
    foreign = "<domainbackup mode='push'><disks/></domainbackup>"
    scene = Scene(tmp_path, Jobs(job, description=foreign))
    scene.end()
    assert (scene.domain.aborts, scene.domain.job, scene.left()) == (0, job, [])


def test_a_call_that_still_begins_the_job_is_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs("backup"))
    with pytest.raises(CleanupFailed, match="has not ended after"):
        scene.end()
    assert scene.domain.aborts == 0
    assert scene.clock.passed_s < 200
    assert len(scene.left()) == 2


def test_a_job_of_a_capture_whose_journal_was_lost_goes_with_its_files(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs("backup"))
    scene.domain.description = scene.job_of(scene.made(Q))
    scene.end()
    assert (scene.domain.aborts, scene.left()) == (1, [])


def test_a_libvirtd_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs("backup"))
    scene.domain.description = scene.job_of(scene.files)
    scene.domain.failures = [HostUnreachable("away") for _ in range(20)]
    scene.end()
    assert (scene.domain.aborts, scene.left()) == (1, [])


def test_a_libvirtd_that_stays_away_is_given_up_in_bounded_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Jobs("backup"))
    scene.domain.failures = [HostUnreachable("away") for _ in range(1000)]
    with pytest.raises(CleanupFailed):
        scene.end()
    assert scene.clock.passed_s < 200
    assert len(scene.left()) == 2
