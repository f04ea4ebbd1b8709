"""What the real host seldom does: commits that stand still, a libvirtd that is away, an agent
that does not thaw. The rest is proven on real machines (``tests/e2e``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from drvm.core.errors import CleanupFailed, HostUnreachable
from drvm.core.process import SystemProcesses
from drvm.host.images import ImageTool
from drvm.host.model import BlockJob, Host
from drvm.snapshot.journal import VERSION, Entry, Journal, JournalDisk
from drvm.snapshot.overlays import Limits, Overlays
from drvm.snapshot.putback import PutBack
from tests.fakes.chain_host import FakeDomain, FakeHost
from tests.fakes.clock import FakeClock

UUID = "3f6a2c1e-5d0b-4c5e-9a34-6d72766d0001"
POINT = "0123456789abcdef"


class Scene:
    """A machine on its overlay, and the journal of the capture that put it there."""

    def __init__(self, directory: Path) -> None:
        self.base = directory / "a.img"
        self.overlay = directory / f"a.img.drvm-{POINT}.overlay"
        for path in (self.base, self.overlay):
            path.write_bytes(b"")
        self.domain = FakeDomain("web", UUID, {"vda": [str(self.overlay), str(self.base)]})
        self.host = FakeHost(self.domain)
        self.journal = Journal(directory)
        disk = JournalDisk("vda", str(self.base), "raw", "file", str(self.overlay), "taken")
        self.entry = Entry(VERSION, "external", POINT, UUID, "web", self.host.uri, (disk,))
        self.journal.write(self.entry)
        self.clock = FakeClock()
        self.steps: list[str] = []

    def put_back(self, entry: Entry | None = None) -> None:
        PutBack(
            Overlays(
                cast(Host, self.host),
                ImageTool(SystemProcesses()),
                self.journal,
                self.clock,
                self.steps.append,
                Limits(stall_s=60, commit_s=600, unreachable_s=90),
            )
        ).run(entry or self.entry)

    def is_done(self) -> bool:
        return (
            self.domain.chains == {"vda": [str(self.base)]}
            and not self.overlay.exists()
            and self.journal.read(UUID) is None
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_the_journal_is_ahead_of_every_step(scene: Scene) -> None:
    phases: list[Any] = []
    seen = scene.steps.append

    def trace(step: str) -> None:
        entry = scene.journal.read(UUID)
        phases.append((step, entry and entry.disks[0].phase))
        seen(step)

    scene.steps = cast(list[str], type("Steps", (), {"append": staticmethod(trace)})())
    scene.put_back()
    assert phases == [
        ("commit-journaled-vda", "committing"),
        ("commit-started-vda", "committing"),
        ("commit-ready-vda", "committing"),
        ("pivoted-vda", "pivoting"),
        ("overlays-removed", "pivoting"),
        ("journal-removed", None),
    ]
    assert scene.is_done()


def test_a_commit_that_stands_still_is_given_up_and_everything_stays(scene: Scene) -> None:
    scene.domain.commit_progress = BlockJob("active-commit", 5, 100, ready=False)
    with pytest.raises(CleanupFailed, match="5 of 100 bytes"):
        scene.put_back()
    assert scene.clock.passed_s < 65
    assert scene.overlay.exists()
    assert scene.journal.read(UUID) is not None


def test_a_commit_that_was_given_up_is_finished_later(scene: Scene) -> None:
    scene.domain.commit_progress = BlockJob("active-commit", 5, 100, ready=False)
    with pytest.raises(CleanupFailed):
        scene.put_back()
    scene.domain.jobs["vda"] = BlockJob("active-commit", 100, 100, ready=True)
    scene.put_back(scene.journal.read(UUID))
    assert scene.is_done()


def test_a_libvirtd_that_comes_back_is_waited_for(scene: Scene) -> None:
    scene.host.failure, scene.host.fail_next = HostUnreachable("gone"), 5
    scene.put_back()
    assert scene.is_done()


def test_a_libvirtd_that_stays_away_is_given_up_in_time(scene: Scene) -> None:
    scene.host.failure, scene.host.fail_next = HostUnreachable("gone"), 10_000
    with pytest.raises(CleanupFailed, match="gone"):
        scene.put_back()
    assert 80 < scene.clock.passed_s < 200
    assert scene.overlay.exists()
    assert scene.journal.read(UUID) is not None


def test_a_host_that_says_no_for_ever_is_given_up(scene: Scene) -> None:
    scene.host.fail_next = 10_000
    with pytest.raises(CleanupFailed, match="no"):
        scene.put_back()
    assert scene.clock.passed_s < 60


def test_a_guest_that_a_freeze_of_ours_holds_is_thawed(scene: Scene) -> None:
    scene.domain.frozen = True
    scene.put_back(replace(scene.entry, frozen=True))
    assert scene.domain.frozen is False
    assert scene.steps[0] == "thawed"


def test_a_freeze_that_is_not_ours_is_left_alone(scene: Scene) -> None:
    scene.domain.frozen = True
    scene.put_back()
    assert scene.domain.frozen is True


def test_a_guest_that_can_not_be_thawed_is_told_and_its_disks_are_put_back(scene: Scene) -> None:
    scene.domain.frozen = True
    scene.domain.thaw = lambda: (_ for _ in ()).throw(HostUnreachable("hangs"))  # type: ignore[method-assign]
    with pytest.raises(CleanupFailed, match="are frozen"):
        scene.put_back(replace(scene.entry, frozen=True))
    assert scene.domain.chains == {"vda": [str(scene.base)]}
    assert scene.journal.read(UUID) is not None


def test_an_overlay_that_another_machine_names_is_never_removed(scene: Scene) -> None:
    other = UUID.replace("1", "2")
    scene.host.there.append(FakeDomain("clone", other, {"vda": [str(scene.overlay)]}))
    with pytest.raises(CleanupFailed, match="still names"):
        scene.put_back()
    assert scene.overlay.exists()
