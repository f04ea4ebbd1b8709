"""A group's backup: hooks for each of its machines, and what becomes of each is told."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drvm.config.load import parse_config
from drvm.config.policies import PolicyConfig
from drvm.core.errors import (
    CaptureError,
    DrillFailed,
    DrvmError,
    HostError,
    Locked,
    ProcessFailed,
    StoreUnreachable,
)
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.daemon import tasks_vms
from drvm.daemon.tasks_vms import Member, VmWork, _drilled
from drvm.report.model import CheckResult, DrillResult
from drvm.snapshot.journal import Journal
from drvm.wiring.jobs import refuse_busy
from tests.unit.report.results import make_drill
from tests.unit.wiring.test_selection import point

MEMBERS = [Member("db1", "uuid 1", "qemu:///system"), Member("db2", "uuid 2", "qemu:///system")]


def policy(log: Path, before: str = "true") -> PolicyConfig:
    text = f"""
policies:
  - name: together
    vms: ["db*"]
    group: true
    hooks:
      before: [["sh", "-c", "echo before $DRVM_VM >> {log}; {before}"]]
      after: [["sh", "-c", "echo after $DRVM_VM $DRVM_OUTCOME $DRVM_POINT >> {log}"]]
"""
    return parse_config(text.encode(), "c.yaml", {}).policies[0]


def work(monkeypatch: pytest.MonkeyPatch, results: Sequence[Any]) -> VmWork:
    def take(*_: Any, **__: Any) -> list[Any]:
        return list(zip(["db1", "db2"], results, strict=True))

    monkeypatch.setattr(tasks_vms, "take_group", take)
    monkeypatch.setattr(tasks_vms, "refuse_busy", lambda *_: None)
    monkeypatch.setattr(
        tasks_vms, "leased", lambda _wiring, _uuids, progress: contextlib.nullcontext(progress)
    )
    nothing: Any = contextlib.nullcontext
    return VmWork(nothing, SystemProcesses())


def taken(vm: str) -> Any:
    return SimpleNamespace(point=point(vm, "u"), cleanup=None)


def test_each_machine_of_a_group_has_its_hooks_and_all_are_one_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    made = work(monkeypatch, [taken("db1"), taken("db2")])
    outcome = made.group("backup together", policy(log), MEMBERS)(NoProgress())
    zeroes = "0" * 16
    assert outcome.result == f"{zeroes}, {zeroes}" and not outcome.warned
    assert log.read_text().splitlines() == [
        "before db1",
        "before db2",
        f"after db1 done {zeroes}",
        f"after db2 done {zeroes}",
    ]


def test_one_that_fails_fails_the_run_and_the_others_points_are_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    made = work(monkeypatch, [taken("db1"), CaptureError("no agent")])
    with pytest.raises(CaptureError, match="db2: no agent"):
        made.group("backup together", policy(log), MEMBERS)(NoProgress())
    assert log.read_text().splitlines()[2:] == [f"after db1 done {'0' * 16}", "after db2 failed"]


def test_where_a_hook_of_one_fails_none_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    made = work(monkeypatch, [])
    monkeypatch.setattr(tasks_vms, "take_group", lambda *_, **__: pytest.fail("captured"))
    refusing = policy(log, "test $DRVM_VM = db0")
    with pytest.raises(ProcessFailed):
        made.group("backup together", refusing, MEMBERS)(NoProgress())
    assert log.read_text().splitlines() == ["before db1", "after db1 failed"]


def test_a_drill_that_did_not_pass_is_a_failure_that_says_why() -> None:
    def result(vm: str, *, passed: bool, failure: str = "") -> DrillResult:
        return make_drill(
            id="d1", vm=vm, point="p1", passed=passed, rto_seconds=9.6, warnings=(),
            failure=failure, checks=(CheckResult("agent", passed, 1.0),),
        )  # fmt: skip

    def done(*results: Any, error: DrvmError | None = None) -> Any:
        return [SimpleNamespace(results=results, error=error)]

    good = result("web1", passed=True)
    outcome = _drilled(done(good), ["point p1 was written by another host: kvm2"])
    assert outcome.message == "web1: RTO 10 s; point p1 was written by another host: kvm2"
    assert (outcome.result, outcome.warned) == ("d1", False)
    failed = _drilled(done(good, result("db1", passed=False)), [])
    assert isinstance(failed.failure, DrillFailed) and failed.result == "d1, d1"
    assert failed.failure.message == "db1: the drill of point p1 failed: agent did not pass"
    failed = _drilled(done(result("db1", passed=False, failure="never booted")), [])
    assert failed.failure is not None and "never booted" in failed.failure.message
    with pytest.raises(HostError, match="not kept"):
        _drilled(done(good, error=HostError("not kept")), [])


def test_a_group_is_put_off_only_where_all_of_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    some = work(monkeypatch, [Locked("busy"), taken("db2")])
    with pytest.raises(CaptureError, match="db1: busy"):
        some.group("backup together", policy(log), MEMBERS)(NoProgress())
    none = work(monkeypatch, [Locked("busy"), Locked("busy")])
    with pytest.raises(Locked):
        none.group("backup together", policy(log), MEMBERS)(NoProgress())
    assert "after db2 stopped" in log.read_text()


def test_no_hook_is_run_and_no_lease_taken_where_this_host_is_at_work_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    made = work(monkeypatch, [])
    monkeypatch.setattr(tasks_vms, "refuse_busy", refuse_busy)
    monkeypatch.setattr(tasks_vms, "leased", lambda *_: pytest.fail("it took a lease"))
    wiring = SimpleNamespace(settings=SimpleNamespace(state_dir=tmp_path))
    made = VmWork(lambda: contextlib.nullcontext(cast(Any, wiring)), made.processes)
    members = [Member(vm.name, str(uuid.uuid4()), vm.host) for vm in MEMBERS]
    with Journal(tmp_path).lock(members[1].uuid, "db2"):
        for run in (
            made.backup("backup together", policy(log), members[1]),
            made.group("backup together", policy(log), members),
        ):
            with pytest.raises(Locked, match="works on db2"):
                run(NoProgress())
    assert not log.exists()


def test_no_hook_is_run_where_another_host_is_at_work_and_all_where_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    made = work(monkeypatch, [])
    for problem in (Locked("kvm1 backs it up"), StoreUnreachable("no route")):

        def refuse(*_: Any, problem: Exception = problem) -> Any:
            raise problem

        monkeypatch.setattr(tasks_vms, "leased", refuse)
        for run in (
            made.backup("backup together", policy(log), MEMBERS[0]),
            made.group("backup together", policy(log), MEMBERS[:1]),
        ):
            with pytest.raises(type(problem)):
                run(NoProgress())
        if isinstance(problem, Locked):
            assert not log.exists()
    assert log.read_text().split() == ["before", "db1", "after", "db1", "failed"] * 2
