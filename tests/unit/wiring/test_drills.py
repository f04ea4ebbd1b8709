"""What the config says of drills reaches the room of drills in its own words."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.config.drills import CheckConfig, DrillConfig
from drvm.config.load import parse_config
from drvm.core.clock import SystemClock
from drvm.core.errors import HostError
from drvm.core.progress import NoProgress, Progress
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.registry import KINDS, make_check
from drvm.wiring import drills
from drvm.wiring.drills import Carried, carry_out_all, drill_checks, due_of, in_stages

CONFIG = b"""
policies:
  - name: nightly
    vms: ["web*"]
    drill:
      checks:
        - agent: {}
        - vms: [web1]
          command: {run: [test, -s, /data], expect_exit: 1, expect_output: "no.*", timeout: 2m}
"""


def config() -> DrillConfig:
    drill = parse_config(CONFIG, "config.yaml", {}).policies[0].drill
    assert drill is not None
    return drill


def test_every_kind_of_check_that_the_config_knows_can_be_made() -> None:
    assert set(CheckConfig.kinds()) == set(KINDS)
    agent, command = drill_checks(config(), "web1")
    assert agent == make_check("agent", {})
    expected = {
        "run": ("test", "-s", "/data"),
        "expect_exit": 1,
        "expect_output": "no.*",
        "timeout_s": 120.0,
    }
    assert command == make_check("command", expected)


def test_a_check_is_for_the_machines_that_it_names_and_the_agent_for_those_without_any() -> None:
    assert drill_checks(config(), "web2") == (AgentCheck(),)
    only = config().model_copy(update={"checks": config().checks[1:]})
    assert drill_checks(only, "web2") == (AgentCheck(),)


GROUP = b"""
policies:
  - name: shop
    vms: ["*"]
    time_zone: Europe/Berlin
    drill:
      schedule: "0 5 * * 0"
      stages: [{vms: ["db*"], wait: 10s}, {vms: [cache]}, {vms: ["web*", db1]}]
  - name: alone
    vms: ["*"]
    time_zone: Europe/Berlin
    drill: {schedule: "0 5 * * 0"}
"""
SHOP, ALONE = parse_config(GROUP, "config.yaml", {}).policies
SUNDAY = dt.datetime(2026, 11, 22, 4, 0, tzinfo=dt.UTC)
"""When the schedules fire, in Berlin."""
HOUR = dt.timedelta(hours=1)


def points(*names: str) -> list[Any]:
    return [SimpleNamespace(id=n, manifest=SimpleNamespace(vm=n, vm_uuid=n)) for n in names]


def names(found: Any) -> list[str]:
    return [point.manifest.vm for point in found]


def test_each_machine_is_in_the_first_stage_that_names_it_and_the_others_come_last() -> None:
    assert SHOP.drill is not None
    staged = in_stages(SHOP.drill.stages, points("new", "web1", "db1", "web2"))
    assert [(names(mine), wait_s) for mine, wait_s in staged] == [
        (["db1"], 10.0),
        (["web1", "web2"], 0.0),
        (["new"], 0.0),
    ]


@pytest.mark.parametrize(
    ("drilled", "now", "due"),
    [
        (None, SUNDAY - HOUR, True),
        (SUNDAY - HOUR, SUNDAY - HOUR, False),
        (SUNDAY - HOUR, SUNDAY + HOUR, True),
        (SUNDAY, SUNDAY + HOUR, False),
        (SUNDAY + HOUR, SUNDAY + 6 * 24 * HOUR, False),
        (SUNDAY + HOUR, SUNDAY + 8 * 24 * HOUR, True),
    ],
)
def test_a_machine_is_owed_a_drill_when_its_schedule_has_fired_since_the_last_one(
    drilled: dt.datetime | None, now: dt.datetime, due: bool
) -> None:
    last = {} if drilled is None else {"web1": drilled}
    assert names(due_of(ALONE, points("web1"), last, now)) == (["web1"] if due else [])


def test_a_group_is_owed_whole_and_single_machines_alone() -> None:
    last = {"web1": SUNDAY + HOUR}
    two = points("web1", "db1")
    assert names(due_of(ALONE, two, last, SUNDAY + 2 * HOUR)) == ["db1"]
    assert names(due_of(SHOP, two, last, SUNDAY + 2 * HOUR)) == ["web1", "db1"]
    assert due_of(SHOP, two, {**last, "db1": SUNDAY}, SUNDAY + 2 * HOUR) == ()


class Wirings:
    """Stands for ``Wiring``."""

    def another(self) -> Wirings:
        return self

    def __enter__(self) -> Wirings:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def passphrase(self) -> bytes:
        return b""


def carried(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[str, Progress], Any], count: int, parallel: int
) -> list[Carried]:
    monkeypatch.setattr(
        drills, "carry_out", lambda _wiring, plan, progress, _trace: work(plan.vm, progress)
    )
    plans: Any = [SimpleNamespace(vm=str(number)) for number in range(count)]
    wirings: Any = Wirings()
    return carry_out_all(wirings, plans, NoProgress(), parallel=parallel)


@pytest.mark.parametrize("parallel", [1, 3])
def test_an_error_ends_its_drill_alone_and_the_order_stays(
    monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    def work(vm: str, _progress: Progress) -> tuple[str, ...]:
        if vm == "1":
            raise HostError("no")
        return (vm,)

    done: Any = carried(monkeypatch, work, 4, parallel)
    assert [one.results for one in done] == [("0",), (), ("2",), ("3",)]
    assert [one.error is not None for one in done] == [False, True, False, False]


def test_so_many_drills_run_at_once_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)

    def work(vm: str, _progress: Progress) -> tuple[str, ...]:
        both.wait()
        return (vm,)

    assert len(carried(monkeypatch, work, 4, 2)) == 4


def test_an_interrupt_ends_all_drills_when_each_has_taken_down_what_it_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken_down: list[str] = []
    begun = threading.Event()

    def work(vm: str, progress: Progress) -> tuple[str, ...]:
        if vm == "0":
            assert begun.wait(30)
            raise KeyboardInterrupt  # as it would come to whoever waits for the first
        try:
            for _ in range(10_000):
                begun.set()
                progress.advance(0)
                SystemClock().sleep(0.01)
        finally:
            taken_down.append(vm)
        return (vm,)

    with pytest.raises(KeyboardInterrupt):
        carried(monkeypatch, work, 2, 2)
    assert taken_down == ["1"]
