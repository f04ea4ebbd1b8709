"""A group comes up stage by stage in one network, and what is known of each machine is told."""

from __future__ import annotations

import dataclasses
import datetime as dt
from ipaddress import ip_interface
from typing import Any

import msgspec
import pytest
from defusedxml.ElementTree import fromstring

from drvm.core.clock import rfc3339
from drvm.core.errors import AgentError, HostError, Interrupted, PreflightFailed, UsageError
from drvm.core.ids import new_point_id
from drvm.core.progress import NoProgress
from drvm.drill import plan as planning
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Card, Check
from drvm.drill.checks.tcp import TcpCheck
from drvm.drill.group import Absent, GroupPlan, StageRequest, plan_group, points_of_group
from drvm.drill.plan import DrillRequest
from drvm.drill.room import RESERVE_BYTES, Room
from drvm.drill.run import run_group
from drvm.drill.statements import not_proven
from drvm.drill.tools import Member
from drvm.report.model import DrillResult, decode_drill, encode_drill
from drvm.repository.points import Point
from tests.unit.drill.conftest import Scan, Stage

UUIDS = {name: f"11111111-2222-4333-8444-55555555555{n}" for n, name in enumerate("abcd")}


def group(
    stage: Stage,
    *names: str,
    wait_s: float = 0.0,
    checks: tuple[Check, ...] = (AgentCheck(),),
    **changes: Any,
) -> GroupPlan:
    """A plan of stages: each of ``names`` is one, with a machine for each letter."""
    stages = [
        StageRequest(
            tuple(
                DrillRequest(
                    point_of(stage, name, **changes),
                    checks,
                    boot_timeout_s=60.0,
                    directory=stage.directory,
                )
                for name in letters
            ),
            wait_s,
        )
        for letters in names
    ]
    host: Any = stage.host
    return plan_group(stage.repository, host, stages, stage.clock, lambda _: stage.room)


def point_of(stage: Stage, name: str, **changes: Any) -> Any:
    """The stage's point, of a machine of another name."""
    return msgspec.structs.replace(stage.point, vm=name, vm_uuid=UUIDS[name], **changes)


def silent(stage: Stage, plan: GroupPlan, vm: str) -> None:
    """Its agent never answers."""
    (name,) = [machine.name for machine in plan.machines if machine.vm == vm]

    def agent() -> None:
        if stage.host.asked == name:
            raise AgentError("not yet")

    stage.host.agent = agent


def run(stage: Stage, plan: GroupPlan, steps: list[str] | None = None) -> dict[str, DrillResult]:
    results = run_group(plan, stage.tools((steps if steps is not None else []).append))
    for result in results:
        assert decode_drill(encode_drill(result)) == result
    return {result.vm: result for result in results}


def test_all_machines_are_in_one_network_that_is_the_groups(stage: Stage) -> None:
    plan = group(stage, "a", "bc")
    networks = {
        card.find("source").get("network")
        for machine in plan.machines
        for card in fromstring(machine.definition.xml).findall("devices/interface")
    }
    assert networks == {plan.name}
    seen: list[tuple[int, set[str]]] = []
    stage.host.agent = lambda: seen.append((len(stage.host.machines), set(stage.host.networks)))
    run(stage, plan)
    assert seen == [(1, {plan.name}), (3, {plan.name}), (3, {plan.name})]
    assert stage.is_clean()


def test_a_stage_begins_when_the_one_before_has_passed_and_its_wait_is_over(stage: Stage) -> None:
    plan = dataclasses.replace(group(stage, "a", "b", wait_s=30.0), plan_s=5.0)
    results = run(stage, plan)
    assert results["a"].rto_seconds == 5 + 100
    assert results["b"].rto_seconds == 5 + 100 + 30 + 100
    assert {result.group_rto_seconds for result in results.values()} == {235.0}
    assert results["b"].phases["waits"] == 130.0
    assert sum(results["b"].phases.values()) == results["b"].rto_seconds
    assert [(r.group, r.stage) for r in results.values()] == [(plan.id, 1), (plan.id, 2)]


def test_scans_of_disks_wait_until_all_machines_are_up_and_are_no_part_of_any_rto(
    stage: Stage,
) -> None:
    results = run(stage, group(stage, "a", "b", checks=(Scan(stage), AgentCheck())))
    assert {vm: result.rto_seconds for vm, result in results.items()} == {"a": 100, "b": 200}
    assert {result.group_rto_seconds for result in results.values()} == {200.0}
    for result in results.values():
        assert result.phases.pop("scan") == 60
        assert sum(result.phases.values()) == result.rto_seconds


def test_a_stage_that_fails_ends_the_drill_and_what_would_have_come_is_told_as_not_run(
    stage: Stage,
) -> None:
    plan = group(stage, "ab", "c", "d")
    silent(stage, plan, "a")
    results = run(stage, plan)
    assert {vm: (r.passed, r.ran) for vm, r in results.items()} == {
        "a": (False, True),
        "b": (True, True),
        "c": (False, False),
        "d": (False, False),
    }
    assert "stage 1 of its group failed (a)" in results["c"].failure
    assert {r.group_rto_seconds for r in results.values()} == {None}
    assert len(stage.restored) == 2
    assert stage.is_clean()


def test_a_machine_that_does_not_start_fails_its_stage_when_the_others_are_checked(
    stage: Stage,
) -> None:
    plan = group(stage, "ab", "c")
    stage.host.fail["start"] = HostError("no")
    results = run(stage, plan)
    assert [r.ran for r in results.values()] == [True, True, False]
    assert stage.is_clean()


def test_a_group_without_a_network_is_told_as_not_run(stage: Stage) -> None:
    stage.host.fail["create-network"] = HostError("no bridge")
    results = run(stage, group(stage, "a", "b"))
    assert [(r.ran, r.passed) for r in results.values()] == [(False, False)] * 2
    assert "no bridge" in results["a"].failure
    assert stage.is_clean()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Interrupted])
@pytest.mark.parametrize("step", ["create-network", "restore", "start", "ping", "screenshot"])
def test_whatever_interrupts_a_group_all_of_it_is_taken_down(
    stage: Stage, step: str, error: type[BaseException]
) -> None:
    stage.host.fail[step] = error("end") if error is Interrupted else error()
    with pytest.raises(error):
        run(stage, group(stage, "ab", "c"))
    assert stage.is_clean()


def test_an_end_that_is_wanted_while_a_guest_boots_comes_at_once_and_takes_all_down(
    stage: Stage,
) -> None:
    """As the daemon wants it: whoever is told of the progress raises."""
    plan = group(stage, "a")
    silent(stage, plan, "a")

    class Ending(NoProgress):
        def stage(self, title: str, total_bytes: int | None = None) -> None:
            self.advance(0)

        def advance(self, done_bytes: int) -> None:
            if stage.host.machines:
                raise Interrupted("the daemon ends")

    with pytest.raises(Interrupted):
        run_group(plan, stage.tools(progress=Ending()))
    assert stage.is_clean()
    assert stage.clock.passed_s < 110


def test_the_problems_of_all_machines_are_told_at_once_and_their_room_is_summed(
    stage: Stage,
) -> None:
    stage.room = Room(free_bytes=RESERVE_BYTES + 65536, memory_bytes=256 << 20, closed=())
    assert len(group(stage, "a").machines) == 1
    with pytest.raises(PreflightFailed) as caught:
        group(stage, "a", "b")
    assert len(caught.value.problems) == 2
    assert stage.is_clean()


def test_a_machine_is_in_one_stage_only_and_no_stage_is_empty(stage: Stage) -> None:
    for stages in (("a", "a"), ("a", ""), ()):
        with pytest.raises(UsageError):
            group(stage, *stages)


def test_points_that_were_not_taken_together_are_said_to_be_so(stage: Stage) -> None:
    words = "not of one instant"
    apart = run(stage, group(stage, "a", "b"))["b"].not_proven
    assert any(words in line for line in apart)
    together = run(stage, group(stage, "a", "b", group="0123456789abcdef"))["b"].not_proven
    assert not any(words in line for line in together)


def test_a_group_that_lacks_a_member_is_no_proof_of_the_whole(stage: Stage) -> None:
    lacking = (Absent("c", "it has no good point"),)
    results = run(stage, dataclasses.replace(group(stage, "a", "b"), absent=lacking))
    for result in results.values():
        assert (result.passed, result.group_rto_seconds) == (True, None)
        assert result.group_absent == ("c: it has no good point",)
        assert "its group can be recovered" in result.not_proven[0]
        assert "c: it has no good point" in result.not_proven[0]
    assert results["a"].warnings == ("of the group: not drilled: c: it has no good point",)
    assert results["b"].warnings == ()


def test_a_machine_that_is_stopped_while_later_ones_come_up_has_failed(stage: Stage) -> None:
    plan = group(stage, "a", "b")
    first, second = plan.machines

    def agent() -> None:
        if stage.host.asked == second.name:
            stage.host.stopped.add(first.name)

    stage.host.agent = agent
    results = run(stage, plan)
    assert [result.passed for result in results.values()] == [False, True]
    assert "stopped, as vda" in results["a"].failure
    assert {result.group_rto_seconds for result in results.values()} == {None}
    assert stage.is_clean()


def test_each_stage_of_the_progress_says_whose_it_is(stage: Stage) -> None:
    class Told(NoProgress):
        def stage(self, title: str, total_bytes: int | None = None) -> None:
            titles.append(title)

    titles: list[str] = []
    run_group(group(stage, "a", "b", wait_s=1.0), stage.tools(progress=Told()))
    whose = [title.partition(": ")[0] for title in titles]
    assert set(whose) == {"a", "b", "waiting before the next stage"}


def point(stage: Stage, name: str, hour: int, label: str | None = None) -> Point:
    created = rfc3339(dt.datetime(2026, 11, 23, hour, tzinfo=dt.UTC))
    changes = {"id": new_point_id(), "created": created, "group": label}
    return Point(point_of(stage, name, **changes), "generation")


def chosen(points: list[Point], names: str) -> list[int]:
    found = points_of_group(points, [UUIDS[name] for name in names])
    return sorted(points.index(point) for point in found.values())


def test_points_of_the_newest_group_that_has_all_members_are_taken(stage: Stage) -> None:
    points = [
        *(point(stage, "a", 1, "g1"), point(stage, "b", 1, "g1")),
        *(point(stage, "a", 2, "g2"), point(stage, "b", 2, "g2")),
        point(stage, "a", 3, "g3"),
        point(stage, "b", 4),
    ]
    assert chosen(points, "ab") == [2, 3]
    assert chosen(points, "a") == [4]
    assert chosen(points, "abc") == [4, 5]
    assert chosen(points, "c") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_a_signal_while_a_group_is_taken_down_ends_the_command_when_all_is_gone(
    stage: Stage, error: type[BaseException]
) -> None:
    """It raises once, wherever the program is; nobody may swallow it."""
    stage.host.once["destroy-network"] = error("ended by SIGTERM")
    with pytest.raises(error):
        run(stage, group(stage, "a"))
    assert stage.is_clean()


def test_machines_of_one_mac_address_are_refused_where_one_is_asked_over_the_network(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of one would be taken for the other's."""
    monkeypatch.setattr(planning, "way_problems", lambda *_, **__: ())
    with pytest.raises(PreflightFailed) as caught:
        group(stage, "a", "b", checks=(TcpCheck(22),))
    (problem,) = caught.value.problems
    assert problem.startswith("a and b have the same MAC address")
    assert group(stage, "a", "b").machines


def test_of_machines_that_had_one_address_it_is_not_proven_which_one_answered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = iter(("02:00:00:00:00:01", "02:00:00:00:00:02"))
    had = (ip_interface("10.0.0.5/24"), ip_interface("fe80::1/64"))
    monkeypatch.setattr(planning, "way_problems", lambda *_, **__: ())
    monkeypatch.setattr(planning, "cards_of", lambda *_: (Card(next(cards), had),))
    plan = group(stage, "a", "b", checks=(TcpCheck(22),))
    one, other = plan.machines
    assert (plan.alike(one), plan.alike(other)) == (("b",), ("a",))
    said = not_proven(one, Member(plan.id, 1, True, plan.alike(one)))
    assert any("network: b had, or were asked at, an address" in line for line in said)


def test_of_machines_that_are_asked_at_one_address_it_is_not_proven_which_one_answered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of a policy is for all of its machines, unless it says for which."""
    cards = iter(("02:00:00:00:00:01", "02:00:00:00:00:02"))
    monkeypatch.setattr(planning, "way_problems", lambda *_, **__: ())
    monkeypatch.setattr(planning, "cards_of", lambda *_: (Card(next(cards), ()),))
    plan = group(stage, "a", "b", checks=(TcpCheck(22, address="10.0.0.5/24"),))
    one, other = plan.machines
    assert (plan.alike(one), plan.alike(other)) == (("b",), ("a",))
