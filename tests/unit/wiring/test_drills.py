"""What the config says of drills reaches the room of drills in its own words."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drvm.config.drills import DrillConfig
from drvm.config.load import parse_config
from drvm.core.clock import SystemClock
from drvm.core.errors import HostUnreachable, UsageError
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.command import CommandCheck
from drvm.drill.checks.registry import KINDS
from drvm.drill.group import Absent
from drvm.drill.place import Note, drill_name, made
from drvm.wiring import drills
from drvm.wiring.drills import (
    Members,
    absent_from,
    drill_checks,
    drills_to_forget,
    due_of,
    in_stages,
    members_by_policy,
    owed,
)

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
    drill = parse_config(CONFIG, "config.yaml", {}, lambda: KINDS).policies[0].drill
    assert drill is not None
    return drill


def test_checks_are_made_as_the_config_says_in_its_order() -> None:
    assert drill_checks(config(), "web1") == (
        AgentCheck(),
        CommandCheck(("test", "-s", "/data"), 1, "no.*", timeout_s=120.0),
    )


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


def vm(name: str, **changes: Any) -> Any:
    definition = SimpleNamespace()
    last = SimpleNamespace(manifest=SimpleNamespace(definition=definition))
    fields = {"name": name, "uuid": name, "policy": "shop", "last": last, "doubt": ""}
    return SimpleNamespace(**(fields | changes))


def members(monkeypatch: pytest.MonkeyPatch, *vms: Any) -> Members:
    fleet = SimpleNamespace(vms=vms)
    monkeypatch.setattr(drills, "fleet_of", lambda *_: fleet)
    monkeypatch.setattr(drills, "last_drills", lambda _: {})
    clock = SimpleNamespace(now=lambda: SUNDAY)
    wiring: Any = SimpleNamespace(clock=clock, settings=SimpleNamespace(policies=(SHOP,)))
    stored = points(*(one.name for one in vms if one.last is not None))
    found = members_by_policy(wiring, stored)["shop"]
    due = owed(wiring, stored)
    assert [(one.points, one.absent) for one in due] == [(found.points, found.absent)]
    return found


def test_image_files_are_never_due_and_are_no_missing_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = vm("files", last=SimpleNamespace(manifest=SimpleNamespace(definition=None)))
    found = members(monkeypatch, vm("db1"), files, vm("web1"))
    assert (names(found.points), found.absent, found.images) == (["db1", "web1"], (), ("files",))


def test_a_member_without_a_good_point_is_told_and_one_of_another_policy_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = vm("web3", policy="alone", last=None)
    found = members(monkeypatch, vm("db1"), vm("web2", last=None), other)
    assert names(found.points) == ["db1"]
    assert found.absent == (Absent("web2", "it has no good point"),)


def test_a_machine_that_may_be_a_member_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    doubt = {"policy": None, "doubt": "kvm2 does not answer, and may have it"}
    found = members(monkeypatch, vm("db1"), vm("db9", **doubt), vm("other", **doubt))
    assert [one.vm for one in found.absent] == ["db9", "other"]
    only_db = SHOP.model_copy(update={"vms": ("db*",)})
    assert [one.vm for one in absent_from([vm("db9", **doubt), vm("x", **doubt)], only_db)] == [
        "db9"
    ]


@pytest.mark.parametrize("answers", [True, False])
def test_drills_on_a_host_that_answers_are_not_to_be_forgotten(
    tmp_path: Path, answers: bool
) -> None:
    uri = "qemu+ssh://root@spare/system"
    with made(tmp_path / drill_name("a" * 16), Note(uri), SystemClock()):
        pass

    def hostname() -> str:
        if not answers:
            raise HostUnreachable("no connection")
        return "spare"

    host = SimpleNamespace(hostname=hostname)
    wiring: Any = SimpleNamespace(host=lambda _: host, drill_directories=lambda: [tmp_path])
    if not answers:
        ((left,), why) = drills_to_forget(wiring, uri)
        assert (left.directory.name, why) == (drill_name("a" * 16), "no connection")
        return
    with pytest.raises(UsageError, match="answers"):
        drills_to_forget(wiring, uri)
