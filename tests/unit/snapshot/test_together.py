"""Several machines at one instant: they freeze, take and thaw together, or give up together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import AgentError, CaptureError, DrvmError, HostError, ProcessFailed
from drvm.host.model import Domain
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.freeze import Instant
from drvm.snapshot.together import Together
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_agent import SILENT, ScriptedDomain, SteadyWatch

LIMIT_S = 5


class Group:
    """``frozen_at_take``: for each machine, which of all were frozen when it was taken."""

    def __init__(self, *scripts: dict[str, list[Any]]) -> None:
        self.domains = [
            ScriptedDomain(FakeClock(), script, name=f"vm{number}")
            for number, script in enumerate(scripts)
        ]
        self.watches = [SteadyWatch() for _ in scripts]
        self.together = Together(len(scripts))
        self.frozen_at_take: dict[str, list[str]] = {}
        self.take_faults: dict[str, Any] = {}
        self.lock = threading.Lock()

    def one(self, number: int, required: bool) -> Instant:
        domain = self.domains[number]

        def take(quiesce: bool) -> None:
            assert not quiesce
            fault = self.take_faults.get(domain.name)
            if isinstance(fault, Exception):
                raise fault
            domain.clock.sleep(fault or 0.1)
            with self.lock:
                self.frozen_at_take[domain.name] = [d.name for d in self.domains if d.frozen]

        return self.together.taking(
            cast(Domain, domain),
            CaptureRequest(domain.name, "0" * 16, require_filesystem=required),
            domain.clock,
            self.watches[number],
            take=take,
            was_taken=None,
            freezing=lambda tried: None,
        )

    def run(self, required: bool = False) -> list[Instant | DrvmError]:
        with ThreadPoolExecutor(len(self.domains)) as pool:
            futures = [pool.submit(self.one, n, required) for n in range(len(self.domains))]
        found: list[Instant | DrvmError] = []
        for future in futures:
            error = future.exception()
            if error is not None:
                assert isinstance(error, DrvmError)
            found.append(error or future.result())
        assert not any(domain.frozen for domain in self.domains), "a guest stays frozen"
        return found

    def labels(self) -> set[str]:
        return {found.consistency for found in self.run() if isinstance(found, Instant)}


def test_all_are_frozen_when_any_is_taken() -> None:
    group = Group({}, {}, {})
    assert group.labels() == {"filesystem"}
    everyone = ["vm0", "vm1", "vm2"]
    assert group.frozen_at_take == dict.fromkeys(everyone, everyone)
    assert all(watch.said == ["freezing", "thawed"] for watch in group.watches)


def test_they_show_one_instant() -> None:
    assert len({found.taken_at for found in Group({}, {}).run() if isinstance(found, Instant)}) == 1


@pytest.mark.parametrize("script", [{"ping": [SILENT]}, {"freeze": [SILENT]}, {"freeze": [6.0]}])
def test_one_that_can_not_be_frozen_costs_all_the_label(script: dict[str, list[Any]]) -> None:
    group = Group({}, script)
    found = group.run()
    assert {instant.consistency for instant in found if isinstance(instant, Instant)} == {"crash"}
    assert len(group.frozen_at_take) == 2
    assert all("vm1 of its group" in str(found[0].warnings) for _ in found)  # type: ignore[union-attr]


def test_where_one_has_no_agent_nobody_is_frozen_for_nothing() -> None:
    group = Group({}, {"ping": [SILENT]})
    group.run()
    assert "freeze" not in group.domains[0].calls


def test_one_that_was_taken_too_late_costs_all_the_label() -> None:
    group = Group({}, {})
    group.take_faults["vm1"] = LIMIT_S + 1.0
    assert group.labels() == {"crash"}


def test_where_the_label_is_required_nothing_is_taken_without() -> None:
    group = Group({}, {"freeze": [SILENT]})
    assert all(isinstance(found, CaptureError) for found in group.run(required=True))
    assert group.frozen_at_take == {}


def test_one_that_fails_while_all_are_frozen_makes_all_give_up() -> None:
    group = Group({}, {}, {})
    group.take_faults["vm1"] = HostError("no")
    found = group.run()
    assert all(isinstance(error, DrvmError) for error in found)
    assert isinstance(group.together.failure, HostError)


def test_one_that_somebody_else_froze_makes_all_give_up_before_a_freeze() -> None:
    group = Group({}, {})
    group.domains[1].frozen = True
    with pytest.raises(AssertionError, match="stays frozen"):  # by him who froze it
        group.run()
    assert "freeze" not in group.domains[0].calls
    assert group.domains[1].frozen


def test_one_that_is_given_up_before_its_instant_lets_nobody_wait() -> None:
    together = Together(2)
    together.give_up(CaptureError("no room"))
    assert not together.wait_for(1)
    group = Group({}, {})
    group.together = together
    assert all("no room" in str(found) for found in group.run())


_fault = st.sampled_from(
    [
        {},
        {"ping": [SILENT]},
        {"freeze": [SILENT]},
        {"freeze": [AgentError("half")], "thaw": [SILENT]},
        {"thaw": [SILENT, SILENT]},
        {"freeze": [4.0]},
        {"freeze": [7.0]},
        {"status": [False, None, SILENT]},
        {"freeze": [HostError("no")]},
    ]
)


@given(
    st.lists(_fault, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([None, "take", "watch"]),
)
def test_whatever_goes_wrong_all_get_one_label_or_none_a_point(
    scripts: list[dict[str, list[Any]]], required: bool, more: str | None
) -> None:
    group = Group(*({name: [*faults] for name, faults in script.items()} for script in scripts))
    if more == "take":
        group.take_faults["vm0"] = HostError("no")
    if more == "watch":
        group.watches[0].failure = ProcessFailed("no watchdog")
    found = group.run(required)
    instants = [instant for instant in found if isinstance(instant, Instant)]
    assert len(instants) in (0, len(found))
    assert len({instant.consistency for instant in instants}) <= 1
    if instants and instants[0].consistency == "filesystem":
        names = [domain.name for domain in group.domains]
        assert all(frozen == names for frozen in group.frozen_at_take.values())
