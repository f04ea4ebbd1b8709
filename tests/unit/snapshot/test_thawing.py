"""The thaw watchdog's own side: whom it thaws, when, and for how long it tries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from drvm.core.errors import HostUnreachable, UnknownVm
from drvm.host.model import Domain
from drvm.snapshot.thawing import GIVE_UP_S, watch
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_agent import SILENT, ScriptedDomain

LIMIT_S = 5.0
DIES = ""


@dataclass
class ScriptedDrvm:
    """``words``: what it says next and after how many seconds; then it stands still."""

    clock: FakeClock
    words: list[tuple[float, str]]
    heard: list[str] = field(default_factory=list)

    def hear(self, timeout_s: float | None) -> str | None:
        if not self.words:
            assert timeout_s is not None, "waits for ever"
            self.clock.sleep(timeout_s)
            return None
        after_s, word = self.words[0]
        if timeout_s is not None and after_s > timeout_s:
            self.words[0] = (after_s - timeout_s, word)
            self.clock.sleep(timeout_s)
            return None
        del self.words[0]
        self.clock.sleep(after_s)
        return word

    def say(self, word: str) -> None:
        self.heard.append(word)


def alone() -> bool:
    return True


def watched(domain: ScriptedDomain, *words: tuple[float, str]) -> float:
    """How long it took."""
    start_s = domain.clock.passed_s
    drvm = ScriptedDrvm(domain.clock, list(words))
    watch(drvm, cast(Domain, domain), LIMIT_S, domain.clock, alone)
    return domain.clock.passed_s - start_s


def a_frozen_guest(**script: list[Any]) -> ScriptedDomain:
    return ScriptedDomain(FakeClock(), script, frozen=True)


def test_a_freeze_that_was_in_force_before_ours_is_left_alone() -> None:
    domain = a_frozen_guest()
    watched(domain, (100, DIES))
    assert domain.frozen
    assert "thaw" not in domain.calls


def test_a_guest_that_drvm_saw_thawed_is_not_asked_at_all() -> None:
    domain = a_frozen_guest()
    assert watched(domain, (0, "freezing"), (4.9, "thawed")) < LIMIT_S
    assert domain.calls == []


def test_when_drvm_dies_the_guest_is_thawed_at_once() -> None:
    domain = a_frozen_guest()
    assert watched(domain, (0, "freezing"), (0.2, DIES)) < 4
    assert not domain.frozen


def test_when_the_limit_is_up_the_guest_is_thawed_whatever_drvm_does() -> None:
    domain = a_frozen_guest()
    watched(domain, (0, "freezing"), (60, "thawed"))
    assert not domain.frozen


def test_a_drvm_that_stood_still_and_froze_after_all_is_thawed_when_it_dies() -> None:
    domain = a_frozen_guest()

    def freezes_late(word: str) -> str:
        domain.frozen = True
        return word

    class Late(ScriptedDrvm):
        def hear(self, timeout_s: float | None) -> str | None:
            word = super().hear(timeout_s)
            return freezes_late(word) if word == DIES else word

    drvm = Late(domain.clock, [(0, "freezing"), (60, DIES)])
    watch(drvm, cast(Domain, domain), LIMIT_S, domain.clock, alone)
    assert not domain.frozen


def test_a_freeze_that_was_still_on_its_way_is_found() -> None:
    domain = ScriptedDomain(FakeClock())

    def arrives(machine: ScriptedDomain) -> bool:
        machine.frozen = True
        return False

    domain.script["status"] = [False, arrives]
    watched(domain, (0, "freezing"), (0, DIES))
    assert not domain.frozen


@pytest.mark.parametrize("away", [1, 100, 400])
def test_a_libvirtd_or_an_agent_that_is_away_is_tried_again(away: int) -> None:
    domain = a_frozen_guest(status=[SILENT] * away, thaw=[SILENT] * away)
    domain.script["state"] = [None, *[HostUnreachable("gone")] * away]
    watched(domain, (0, "freezing"), (0, DIES))
    assert not domain.frozen


def test_a_guest_that_never_thaws_is_given_up_in_bounded_time() -> None:
    domain = a_frozen_guest(thaw=[SILENT] * 10_000)
    assert GIVE_UP_S <= watched(domain, (0, "freezing"), (0, DIES)) < 2.1 * GIVE_UP_S


def test_a_drvm_that_stands_still_for_ever_is_not_waited_for_for_ever() -> None:
    domain = a_frozen_guest()
    assert watched(domain, (0, "freezing")) < 2.1 * GIVE_UP_S
    assert not domain.frozen


@pytest.mark.parametrize("off", [True, False])
def test_a_guest_that_is_gone_needs_no_thaw(off: bool) -> None:
    domain = a_frozen_guest()
    if off:
        domain.running = False
    else:
        domain.script["state"] = [None, cast(Any, _gone)]
    assert watched(domain, (0, "freezing"), (0, DIES)) < 1


def _gone(_: ScriptedDomain) -> None:
    raise UnknownVm("gone")


def test_it_is_ready_only_when_libvirtd_has_answered() -> None:
    domain = ScriptedDomain(FakeClock(), {"state": [HostUnreachable("gone")]})
    drvm = ScriptedDrvm(domain.clock, [(0, "freezing")])
    with pytest.raises(HostUnreachable):
        watch(drvm, cast(Domain, domain), LIMIT_S, domain.clock, alone)
    assert drvm.heard == []


def test_it_is_ready_only_when_the_watchdog_of_an_earlier_capture_has_ended() -> None:
    domain = a_frozen_guest()
    turns = iter([False, False, True])
    drvm = ScriptedDrvm(domain.clock, [(60, DIES)])
    watch(drvm, cast(Domain, domain), LIMIT_S, domain.clock, lambda: next(turns))
    assert drvm.heard == ["ready"]
    assert list(turns) == []


@pytest.mark.parametrize(("word_after_s", "heard"), [(60.0, ["busy"]), (0.05, [])])
def test_one_whose_turn_does_not_come_says_so_or_ends_with_drvm(
    word_after_s: float, heard: list[str]
) -> None:
    domain = a_frozen_guest()
    drvm = ScriptedDrvm(domain.clock, [(word_after_s, DIES)])
    watch(drvm, cast(Domain, domain), LIMIT_S, domain.clock, lambda: False)
    assert drvm.heard == heard
    assert domain.frozen
    assert domain.clock.passed_s < 15
