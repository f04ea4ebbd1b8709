"""What the daemon does for its dashboard."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from drvm.cli.dashboard import SAME_CLICK_S, DaemonSource, command_of
from drvm.core.errors import Locked, UsageError
from drvm.daemon.task import Outcome, Task
from drvm.runs.model import Run
from drvm.schedule.timing import Timing
from tests.fakes.clock import FakeClock
from tests.fakes.dashboard import DB1, WEB1, run

TASK = Task("backup a", "backup", Timing("0 0 1 1 *"), lambda _: Outcome(), "web1", WEB1)


class FakeDuties:
    def asked(self, kind: str, vm_uuid: str) -> Task:
        if (kind, vm_uuid) != ("backup", WEB1):
            raise UsageError("there is none")
        return TASK


class FakeService:
    def __init__(self) -> None:
        self.asked: list[Task] = []
        self.runs: tuple[Run, ...] = ()

    def ask(self, task: Task) -> str:
        self.asked.append(task)
        return f"run-{len(self.asked)}"

    def running(self) -> tuple[Run, ...]:
        return self.runs


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def source(service: FakeService, clock: FakeClock) -> DaemonSource:
    def unused() -> Any:
        raise AssertionError("not asked for here")

    history: Any = service
    duties: Any = FakeDuties()
    fake: Any = service
    return DaemonSource(fake, history, lambda: duties, unused, unused, unused, clock)


def test_what_no_policy_allows_is_neither_offered_nor_begun(
    source: DaemonSource, service: FakeService
) -> None:
    assert list(source.may_start(WEB1)) == ["backup"] and list(source.may_start(DB1)) == []
    for action, vm in (("drill", WEB1), ("backup", DB1)):
        with pytest.raises(UsageError):
            source.start(action, vm)  # type: ignore[arg-type]
    assert service.asked == []


def test_a_double_click_is_one_run_though_it_began_in_between(
    source: DaemonSource, service: FakeService, clock: FakeClock
) -> None:
    first = source.start("backup", WEB1)
    clock.sleep(SAME_CLICK_S / 2)
    assert source.start("backup", WEB1) == first and len(service.asked) == 1


def test_what_runs_is_not_begun_again_and_afterwards_it_is(
    source: DaemonSource, service: FakeService, clock: FakeClock
) -> None:
    service.runs = (run("backup a", "web1", WEB1, 0.1, state="running", ended=None),)
    with pytest.raises(Locked, match="runs already"):
        source.start("backup", WEB1)
    service.runs = ()
    source.start("backup", WEB1)
    clock.sleep(SAME_CLICK_S)
    source.start("backup", WEB1)
    assert len(service.asked) == 2


def test_what_other_processes_run_is_shown_and_the_daemon_knows_its_own_best(
    source: DaemonSource, service: FakeService
) -> None:
    mine = run("backup a", "web1", WEB1, 0.1, state="running", ended=None)

    class Record:
        def running(self) -> tuple[Run, ...]:
            other = run("backup b", "db1", DB1, 0.2, state="running", ended=None)
            return (mine, other)

    service.runs = (dataclasses.replace(mine, done_bytes=7),)
    source._history = Record()  # type: ignore[assignment]
    assert [(one.job, one.done_bytes) for one in source.running()] == [
        ("backup b", 0),
        ("backup a", 7),
    ]


def test_commands_name_a_config_that_is_not_the_usual_one() -> None:
    assert command_of(None) == command_of(Path("/etc/drvm/config.yaml")) == "drvm"
    assert command_of(Path("/srv/my site.yaml")) == "drvm --config '/srv/my site.yaml'"
