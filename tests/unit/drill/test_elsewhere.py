"""Drills on other hosts are planned through their pools, and known by a note on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import PreflightFailed
from drvm.core.progress import NoProgress
from drvm.drill import taken
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.tcp import TcpCheck
from drvm.drill.leftovers import find_leftovers, hosts_noted, remove_leftovers
from drvm.drill.place import Note, drill_name, made
from drvm.drill.statements import not_proven
from drvm.drill.turns import PATIENCE_S, turn
from drvm.restore.targets.volume_lease import owner_token
from tests.fakes.drill_host import DrillHost
from tests.unit.drill.conftest import Stage

THERE = "qemu+ssh://root@spare/system"
NAME = drill_name("0123456789abcdef")


def test_images_are_volumes_of_the_pool_in_the_drills_directory(stage: Stage) -> None:
    plan = stage.plan_there()
    assert plan.volumes is not None
    assert (plan.uri, plan.volumes.pool) == (THERE, "spare")
    (image,) = plan.images
    assert (image.pool, image.path.parent) == ("spare", stage.directory)
    for path in (image.path, plan.nvram_path):
        assert owner_token(path.name) == plan.volumes.token
    assert str(image.path) in plan.definition.xml
    assert plan.directory == stage.directory.with_name("notes") / plan.name


def test_the_pools_room_is_asked_for_when_libvirt_has_looked_anew(stage: Stage) -> None:
    """What it tells is as old as its last look: others may have filled the disk since."""
    asked = stage.host.pools

    def pools() -> list[Any]:
        if "look at pool spare" not in stage.host.calls:
            return asked()
        return [dataclasses.replace(pool, available_bytes=0) for pool in asked()]

    stage.host.pools = pools  # type: ignore[method-assign]
    with pytest.raises(PreflightFailed) as caught:
        stage.plan_there()
    assert "has 0 B left" in caught.value.problems[0]


def test_a_host_without_such_a_pool_is_refused_with_the_directories_that_it_has(
    stage: Stage,
) -> None:
    with pytest.raises(PreflightFailed) as caught:
        stage.plan_there(directory=Path("/nowhere"))
    (problem,) = caught.value.problems
    assert "no active pool in /nowhere" in problem
    assert f"{stage.directory} (spare)" in problem


@pytest.mark.parametrize(("memory_mib", "fits"), [(None, True), (256, True), (255, False)])
def test_a_host_that_has_not_the_memory_left_for_the_machine_is_refused(
    stage: Stage, memory_mib: int | None, fits: bool
) -> None:
    stage.host.memory_bytes = None if memory_mib is None else memory_mib << 20
    if fits:
        assert stage.plan_there().memory_bytes == 256 << 20
        return
    with pytest.raises(PreflightFailed) as caught:
        stage.plan_there()
    (problem,) = caught.value.problems
    assert "256.0 MiB of memory and the host has 255.0 MiB available" in problem


def test_memory_that_other_drills_take_on_that_host_is_not_there(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taken, "shared_directory", lambda: tmp_path)
    stage.host.memory_bytes = 400 << 20
    first, second = stage.plan_there(), stage.plan_there()
    host: Any = stage.host
    with (
        turn(host, [first], stage.clock, NoProgress()),
        pytest.raises(PreflightFailed),
        turn(host, [second], stage.clock, NoProgress()),
    ):
        pass
    assert stage.clock.passed_s >= PATIENCE_S


def test_a_boot_over_the_repository_is_for_this_machine_alone(stage: Stage) -> None:
    with pytest.raises(PreflightFailed) as caught:
        stage.plan_there(method="boot")
    assert "--method restore" in caught.value.problems[0]


def test_what_can_not_be_asked_from_here_is_left_out_and_said_to_be_not_proven(
    stage: Stage,
) -> None:
    plan = stage.plan_there(checks=(AgentCheck(), TcpCheck(port=22)))
    assert plan.checks == (AgentCheck(),)
    (said,) = [line for line in not_proven(plan) if "not asked" in line]
    assert plan.not_made[0].name in said


def test_where_nothing_can_be_asked_the_drill_is_refused(stage: Stage) -> None:
    with pytest.raises(PreflightFailed) as caught:
        stage.plan_there(checks=(TcpCheck(port=22),))
    assert any("none of its checks" in problem for problem in caught.value.problems)


def abandoned(directory: Path, uri: str) -> None:
    with made(directory / NAME, Note(uri), SystemClock()):
        pass


@pytest.mark.parametrize("remote", [False, True])
def test_what_a_drill_left_is_looked_for_on_its_own_host_alone(
    tmp_path: Path, remote: bool
) -> None:
    here, there = DrillHost(), DrillHost(THERE, remote=True)
    own, other = (there, here) if remote else (here, there)
    abandoned(tmp_path, own.uri)
    own.networks.add(NAME)
    assert hosts_noted(tmp_path) == (own.uri,)
    hosts: list[Any] = [other, own]
    assert [len(find_leftovers(host, tmp_path).dead) for host in hosts] == [0, 1]
    for host in hosts:
        remove_leftovers(host, find_leftovers(host, tmp_path))
    assert own.networks == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("note", [b"", b"{}", b'{"uri":1}', b'{"uri":"x","token":"../etc"}'])
def test_a_note_that_says_nothing_leads_nowhere_and_its_directory_goes(
    tmp_path: Path, note: bytes
) -> None:
    host: Any = DrillHost()
    abandoned(tmp_path, host.uri)
    (tmp_path / NAME / "note").write_bytes(note)
    (removed,) = remove_leftovers(host, find_leftovers(host, tmp_path))
    assert removed.problems == ()
    assert list(tmp_path.iterdir()) == []
