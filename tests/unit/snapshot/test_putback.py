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
from drvm.snapshot.space import Room
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
        self.reserve_bytes = 0

    def put_back(self, entry: Entry | None = None) -> tuple[str, ...]:
        return PutBack(
            Overlays(
                cast(Host, self.host),
                ImageTool(SystemProcesses()),
                self.journal,
                self.clock,
                self.steps.append,
                Limits(stall_s=60, commit_s=600, converge_s=50, unreachable_s=90),
                Room(self.journal, self.reserve_bytes),
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


class Writer:
    """A guest that writes as fast as a limited commit goes: what is left stays as it is."""

    def __init__(self, scene: Scene, *, stops_for: int | None) -> None:
        self._scene = scene
        self._stops_for = stops_for
        self._done = 0

    def job(self, target: str) -> BlockJob | None:
        if target not in self._scene.domain.jobs:
            return None
        if self._scene.domain.bandwidths[-1] == self._stops_for:
            return BlockJob("active-commit", self._done, self._done, ready=True)
        self._done += 1
        return BlockJob("active-commit", self._done, self._done + 100, ready=False)


def test_a_commit_keeps_the_bandwidth_that_the_journal_says(scene: Scene) -> None:
    scene.put_back(replace(scene.entry, commit_bandwidth_mib_s=7))
    assert scene.domain.bandwidths == [7]


def test_a_commit_that_the_guest_outruns_loses_its_limit(scene: Scene) -> None:
    scene.domain.block_job = Writer(scene, stops_for=0).job  # type: ignore[method-assign]
    scene.put_back(replace(scene.entry, commit_bandwidth_mib_s=1))
    assert scene.domain.bandwidths == [1, 0]
    assert "commit-unlimited-vda" in scene.steps
    assert 50 < scene.clock.passed_s < 60
    assert scene.is_done()


@pytest.mark.parametrize("bandwidth", [0, 1])
def test_a_guest_that_outruns_any_commit_is_told_in_time_and_everything_stays(
    scene: Scene, bandwidth: int
) -> None:
    scene.domain.block_job = Writer(scene, stops_for=None).job  # type: ignore[method-assign]
    with pytest.raises(CleanupFailed, match="the guest writes faster"):
        scene.put_back(replace(scene.entry, commit_bandwidth_mib_s=bandwidth))
    assert scene.clock.passed_s < 110
    assert scene.overlay.exists()
    assert scene.journal.read(UUID) is not None


def test_a_commit_loses_its_limit_when_room_gets_short(scene: Scene) -> None:
    scene.reserve_bytes = 1 << 60
    scene.domain.block_job = Writer(scene, stops_for=0).job  # type: ignore[method-assign]
    scene.put_back(replace(scene.entry, commit_bandwidth_mib_s=1))
    assert scene.domain.bandwidths == [1, 0]
    assert scene.clock.passed_s < 1
    assert scene.is_done()


def test_a_commit_that_fails_for_want_of_room_says_where_room_is_short(scene: Scene) -> None:
    scene.reserve_bytes = 1 << 60
    scene.domain.block_job = lambda target: None  # type: ignore[method-assign]
    scene.domain.commit_start = lambda target, **_: scene.domain.bandwidths.append(1)  # type: ignore[method-assign]
    with pytest.raises(CleanupFailed) as raised:
        scene.put_back()
    assert raised.value.hint.startswith(f"make room: {scene.base.parent} has ")
    assert scene.overlay.exists()


def test_a_guest_that_stood_still_for_want_of_room_goes_on(scene: Scene) -> None:
    scene.domain.stopped = frozenset({"vda"})
    notes = scene.put_back(replace(scene.entry, was_running=True))
    assert "paused" in notes[0] and "vda" in notes[0]
    assert scene.domain.stopped == frozenset()
    assert scene.steps.index("resumed") > scene.steps.index("overlays-removed")
    assert scene.is_done()


@pytest.mark.parametrize(
    ("stopped", "was_running"),
    [
        pytest.param({"vdb"}, True, id="by a disk that is not ours"),
        pytest.param({"vda"}, False, id="before the capture"),
    ],
)
def test_a_guest_that_others_stopped_stays_as_it_is(
    scene: Scene, stopped: set[str], was_running: bool
) -> None:
    scene.domain.stopped = frozenset(stopped)
    assert scene.put_back(replace(scene.entry, was_running=was_running)) == ()
    assert scene.domain.stopped == stopped


def test_a_journal_that_can_not_be_written_does_not_keep_a_guest_on_its_overlay(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("drvm.snapshot.journal.write_durably", full)
    scene.put_back()
    assert scene.is_done()
