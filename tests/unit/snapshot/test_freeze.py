"""Freezes with an agent that fails, lies or is late: the label suffers, never the guest."""

from __future__ import annotations

from typing import Any, cast

import pytest

from drvm.core.errors import AgentError, CaptureError, HostError, HostUnreachable, ProcessFailed
from drvm.host.model import Domain
from drvm.snapshot import mountpoints
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.freeze import Instant, alone
from drvm.snapshot.mountpoints import MountPoints
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_agent import SILENT, ScriptedDomain, SteadyWatch

LIMIT_S = 5


class Scene:
    """``taken``: for each time that something was taken, whether the guest was frozen then."""

    def __init__(self, way: str, **script: list[Any]) -> None:
        self.way = way
        self.clock = FakeClock()
        self.domain = ScriptedDomain(
            self.clock, {name: [*faults] for name, faults in script.items()}
        )
        self.watch = SteadyWatch()
        self.journal: list[bool] = []
        self.taken: list[bool] = []
        self.take_s = 0.1
        self.failure: Exception | None = None

    def run(self, *, required: bool = False, freeze: MountPoints = mountpoints.ALL) -> Instant:
        domain = cast(Domain, self.domain)
        request = CaptureRequest("web", "0" * 16, require_filesystem=required, freeze=freeze)
        return alone(
            domain,
            request,
            self.clock,
            self.watch,
            take=self._in_one_call,
            was_taken=None if self.way == "held" else lambda: bool(self.taken),
            freezing=self._freezing,
        )

    def _freezing(self, tried: bool) -> None:
        assert not self.domain.frozen, "the journal comes first"
        self.journal.append(tried)

    def _take(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.clock.sleep(self.take_s)
        self.taken.append(self.domain.frozen)

    def _in_one_call(self, quiesce: bool) -> None:
        """As libvirtd does it."""
        if not quiesce:
            self._take()
            return
        self.domain.freeze()
        try:
            self._take()
        finally:
            self.domain.thaw()


@pytest.fixture(params=["quiesced", "held"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_guest_that_freezes_gets_the_label_and_is_thawed(way: str) -> None:
    scene = Scene(way)
    instant = scene.run(required=True)
    assert (instant.consistency, instant.unsure, instant.warnings) == ("filesystem", False, ())
    assert scene.taken == [True]
    assert scene.watch.said == ["freezing", "thawed"]
    assert not scene.domain.frozen
    assert scene.journal == [True]


@pytest.mark.parametrize(
    "script",
    [
        {"ping": [SILENT]},
        {"freeze": [SILENT]},
        {"freeze": [AgentError("2 of 3 file systems are frozen")], "thaw": [SILENT]},
        {"status": [False, SILENT, SILENT], "freeze": [SILENT]},
    ],
    ids=["silent", "refuses", "half-way", "dies"],
)
def test_an_agent_that_fails_costs_the_label_and_nothing_else(way: str, script: Any) -> None:
    scene = Scene(way, **script)
    instant = scene.run()
    assert instant.consistency == "crash"
    assert "only crash-consistent" in instant.warnings[0]
    assert scene.taken == [False]
    assert not scene.domain.frozen


def test_an_agent_that_freezes_but_says_that_it_failed_is_thawed(way: str) -> None:
    def half(domain: ScriptedDomain) -> int:
        domain.frozen = True
        raise AgentError("one of two")

    scene = Scene(way, freeze=[half])
    assert scene.run().consistency == "crash"
    assert scene.taken == [False]
    assert not scene.domain.frozen


def test_an_agent_that_froze_nothing_does_not_get_the_label_where_it_is_heard() -> None:
    instant = Scene("held", freeze=[lambda domain: 0]).run()
    assert instant.warnings == ("only crash-consistent: the agent froze no file system",)


def test_what_was_taken_after_the_limit_is_not_called_consistent(way: str) -> None:
    scene = Scene(way)
    scene.take_s = LIMIT_S + 0.1
    instant = scene.run()
    assert instant.consistency == "crash"
    assert "longer than 5 s" in instant.warnings[0]
    with pytest.raises(CaptureError, match="longer than 5 s"):
        scene.run(required=True)
    assert not scene.domain.frozen


def test_an_agent_that_is_late_costs_the_label(way: str) -> None:
    scene = Scene(way, freeze=[LIMIT_S + 1.0])
    assert scene.run().consistency == "crash"


def test_a_guest_that_nobody_saw_thawed_is_left_to_the_watchdog_and_the_journal(way: str) -> None:
    # libvirtd's own thaw, in its one call, is the first of these
    scene = Scene(way, thaw=[SILENT] * 20, status=[False, *[SILENT] * 20])
    instant = scene.run()
    assert instant.unsure
    assert any("may still be frozen" in words for words in instant.warnings)
    assert scene.watch.said == ["freezing"]
    assert scene.clock.passed_s < 20


def test_a_thaw_that_works_at_the_second_try_keeps_the_label(way: str) -> None:
    scene = Scene(way, thaw=[SILENT])
    instant = scene.run()
    assert (instant.consistency, instant.unsure) == ("filesystem", False)
    assert not scene.domain.frozen


def test_what_was_taken_of_a_guest_that_somebody_else_thawed_is_not_called_consistent() -> None:
    scene = Scene("held")
    take = scene._take

    def thawed_meanwhile() -> None:
        scene.domain.frozen = False
        take()

    scene._take = thawed_meanwhile  # type: ignore[method-assign]
    instant = scene.run()
    assert instant.consistency == "crash"
    assert instant.warnings == ("only crash-consistent: somebody else thawed the guest meanwhile",)
    with pytest.raises(CaptureError, match="somebody else thawed"):
        scene.run(required=True)


def test_without_a_watchdog_nothing_is_frozen(way: str) -> None:
    scene = Scene(way)
    scene.watch.failure = ProcessFailed("the thaw watchdog does not work")
    instant = scene.run()
    assert "the thaw watchdog does not work" in instant.warnings[0]
    assert "freeze" not in scene.domain.calls
    assert scene.journal == [False]
    with pytest.raises(CaptureError, match="watchdog"):
        scene.run(required=True)


@pytest.mark.parametrize("failure", [HostError("no"), HostUnreachable("gone"), KeyboardInterrupt()])
def test_whatever_goes_wrong_while_it_is_frozen_the_guest_is_thawed(failure: Exception) -> None:
    scene = Scene("held")
    scene.failure = failure
    with pytest.raises(type(failure)):
        scene.run()
    assert not scene.domain.frozen
    assert scene.watch.said == ["freezing", "thawed"]


def test_a_libvirtd_that_dies_inside_its_call_leaves_the_guest_to_the_watchdog() -> None:
    scene = Scene("quiesced", thaw=[HostUnreachable("gone")])
    with pytest.raises(HostUnreachable):
        scene.run()
    assert scene.domain.frozen
    assert scene.watch.said == ["freezing"]


def test_what_somebody_else_froze_is_left_to_him(way: str) -> None:
    scene = Scene(way)
    scene.domain.frozen = True
    with pytest.raises(CaptureError, match="frozen by somebody else"):
        scene.run()
    assert scene.domain.frozen
    assert scene.taken == []


def test_an_instant_that_must_be_consistent_is_not_taken_without(way: str) -> None:
    scene = Scene(way, freeze=[SILENT])
    with pytest.raises(CaptureError, match="can't be frozen"):
        scene.run(required=True)
    assert scene.taken == []


def test_only_the_file_systems_that_are_wanted_are_frozen() -> None:
    scene = Scene("quiesced")
    scene.domain.file_systems = [{"mountpoint": "/"}, {"mountpoint": "/srv"}]
    instant = scene.run(freeze=MountPoints(include=("/srv", "/gone")))
    assert instant.consistency == "filesystem"
    assert instant.mount_points == ("/srv",)
    assert instant.warnings == ("the guest has no file system at /gone",)


@pytest.mark.parametrize(
    "freeze", [MountPoints(include=("/gone",)), MountPoints(exclude=("/",))], ids=["in", "ex"]
)
def test_where_none_of_them_is_there_nothing_is_frozen(freeze: MountPoints) -> None:
    scene = Scene("held")
    instant = scene.run(freeze=freeze)
    assert instant.consistency == "crash"
    assert "none of the file systems" in instant.warnings[-1]
    assert "freeze" not in scene.domain.calls


def test_an_agent_that_does_not_say_what_there_is_costs_the_label() -> None:
    scene = Scene("held", fsinfo=["what?"])
    instant = scene.run(freeze=MountPoints(include=("/",)))
    assert instant.warnings == (
        "only crash-consistent: the agent's list of file systems is not understood",
    )
