from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from drvm.core.errors import CaptureError
from drvm.host.model import Domain, DomainState
from drvm.snapshot.capture import EngineWish
from drvm.snapshot.choose import decide


@dataclass
class FakeDomain:
    now: DomainState = DomainState.RUNNING
    snapshots: list[str] = field(default_factory=list)
    name: str = "web"

    def state(self) -> DomainState:
        return self.now

    def external_snapshot_names(self) -> list[str]:
        return self.snapshots


def chosen(fake: FakeDomain, wish: EngineWish = "auto") -> tuple[str, str]:
    decision = decide(cast(Domain, cast(Any, fake)), wish)
    return decision.engine, decision.reason


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
def test_a_machine_that_runs_is_captured_externally_unless_its_policy_wants_pull(
    state: DomainState,
) -> None:
    assert chosen(FakeDomain(state)) == ("external", f"it is {state.value}")
    assert chosen(FakeDomain(state), "pull") == ("pull", "its policy says so")


def test_a_chain_that_somebody_elses_snapshot_is_part_of_is_not_changed() -> None:
    fake = FakeDomain(snapshots=["before-upgrade"])
    assert chosen(fake) == ("pull", "its external snapshot before-upgrade must stay as it is")
    assert chosen(fake, "external") == ("external", "its policy says so")


@pytest.mark.parametrize("wish", ["auto", "external", "pull"])
def test_a_machine_that_is_off_is_read_as_it_lies(wish: EngineWish) -> None:
    assert chosen(FakeDomain(DomainState.SHUTOFF), wish) == ("offline", "it is off")


def test_a_machine_that_is_neither_is_not_captured_now() -> None:
    with pytest.raises(CaptureError, match="neither runs nor is off"):
        chosen(FakeDomain(DomainState.OTHER))
