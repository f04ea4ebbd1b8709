"""Config and fleet become tasks: which machines, when, within what limits, and since when."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Any, cast

import pytest

from drvm.config.load import parse_config
from drvm.config.settings import Settings, resolve
from drvm.core.errors import HostUnreachable, UsageError
from drvm.core.process import Processes
from drvm.daemon.duties import Duties
from drvm.daemon.task import Plan, Task
from drvm.daemon.tasks import ASKED, BACKUPS, DRILLS, UPKEEP, Doing, job_named, jobs_of, plan_of
from drvm.daemon.tasks_fleet import View
from drvm.daemon.tasks_vms import VmWork
from drvm.drill.group import Absent
from drvm.repository.points import Point
from drvm.schedule.rpo import rpo_state
from drvm.schedule.timing import Retry
from drvm.schedule.windows import parse_window
from drvm.wiring.fleet import UNREACHABLE, Fleet, FleetVm
from drvm.wiring.timetable import UPKEEP_RETRY
from tests.fakes.clock import FakeClock
from tests.unit.wiring.test_selection import point

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
HERE, THERE = "qemu:///system", "qemu+ssh://kvm2/system"
SESSION = "qemu:///session"
CONFIG = f"""
repository: {{url: "file:///srv/drvm", max_parallel: 3}}
hosts:
  - {{uri: "{HERE}", max_parallel: 1}}
  - {{uri: "{THERE}"}}
policies:
  - name: nightly
    vms: ["web*"]
    schedule: "0 3 * * *"
    time_zone: Europe/Berlin
    jitter: 10m
    blackouts: ["mon-fri 08:00-18:00"]
    retry: {{times: 2, after: 1m}}
    drill: {{schedule: "0 5 * * 0"}}
  - name: together
    vms: ["db*"]
    schedule: "0 4 * * *"
    group: true
  - name: by-hand
    vms: ["*"]
daemon: {{max_parallel: 5, max_parallel_drills: 2}}
prune: {{schedule: "0 13 * * *"}}
copies:
  - name: offsite
    repository: {{url: "file:///b"}}
    schedule: "30 6 * * *"
    blackouts: ["mon-fri 08:00-18:00"]
"""


def settings(text: str = CONFIG) -> Settings:
    rules: dict[str, Callable[[str], str | None]] = {}
    return resolve(parse_config(text.encode(), "c.yaml", rules), {})


def doing() -> Doing:
    nothing: Any = contextlib.nullcontext
    return Doing(nothing, {"offsite": nothing}, cast(Processes, None))


def vm(
    name: str,
    policy: str | None = "nightly",
    host: str | None = HERE,
    state: str | None = "running",
    points: tuple[Point, ...] = (),
) -> FleetVm:
    last = points[-1] if points else None
    rpo = rpo_state(None, None, NOW)
    return FleetVm(name, f"uuid of {name}", host, state, None, policy, "", len(points), last, rpo)


def view(*vms: FleetVm, drilled: dict[str, dt.datetime] | None = None) -> View:
    return View(Fleet(vms, ()), drilled or {})


def plan(seen: View) -> Plan:
    config = settings()
    return plan_of(jobs_of(config, doing()), seen, config)


def of(seen: View, kind: str) -> list[Task]:
    return [task for task in plan(seen).tasks if task.kind == kind]


def test_a_vm_of_a_policy_is_a_task_that_says_when_and_within_which_limits() -> None:
    (task,) = of(view(vm("web1", points=(point("web1", "u"),))), "backup")
    assert (task.job, task.vm, task.vm_uuid, task.host) == (
        "backup nightly",
        "web1",
        "uuid of web1",
        HERE,
    )
    assert task.uses == (BACKUPS, f"host {HERE}", "repository file:///srv/drvm")
    assert (task.timing.schedule, task.timing.time_zone) == ("0 3 * * *", "Europe/Berlin")
    assert task.timing.jitter_s == 600.0
    assert task.timing.blackouts == (parse_window("mon-fri 08:00-18:00"),)
    assert task.retry == Retry(2, 60.0)
    assert task.touches == {"uuid of web1"} and task.last_good == NOW


def test_the_limits_are_those_of_the_config() -> None:
    assert plan(view()).limits == {
        BACKUPS: 5,
        DRILLS: 2,
        UPKEEP: 1,
        f"host {HERE}": 1,
        "repository file:///srv/drvm": 3,
    }


def test_new_vms_join_and_those_of_no_policy_or_host_have_no_task() -> None:
    seen = view(
        vm("web1"),
        vm("web2"),
        vm("web3", policy=None),
        vm("web4", host=None, state=UNREACHABLE),
        vm("web5", host=None, state=None),
        vm("misc", policy="by-hand"),
    )
    assert [task.vm for task in of(seen, "backup")] == ["web1", "web2"]


def test_what_lies_on_another_host_is_backed_up_by_drvm_there_and_drilled_from_here() -> None:
    some = (point("web1", "u"),)
    seen = view(vm("web1", host=THERE, points=some), vm("db1", "together", THERE), vm("web2"))
    assert [task.vm for task in of(seen, "backup")] == ["web2"]
    assert [task.vm for task in of(seen, "drill")] == ["web1"]


def test_a_group_is_a_task_for_each_host_owed_as_its_oldest_point() -> None:
    with_point = (point("db1", "u"),)
    seen = view(
        vm("db1", "together", points=with_point),
        vm("db2", "together", SESSION, points=with_point),
        vm("db3", "together"),
    )
    tasks = of(seen, "backup")
    assert {(task.vm, task.host, task.last_good) for task in tasks} == {
        ("db1, db3", HERE, None),
        ("db2", SESSION, NOW),
    }
    assert {task.vm_uuid for task in tasks} == {f"together on {HERE}", f"together on {SESSION}"}
    assert tasks[0].touches | tasks[1].touches == {f"uuid of db{n}" for n in (1, 2, 3)}


def test_a_drill_is_for_vms_that_have_a_point_and_are_not_gone() -> None:
    some = (point("web1", "u"),)
    seen = view(
        vm("web1", points=some),
        vm("web2"),
        vm("web3", host=None, state=UNREACHABLE, points=some),
        vm("web4", host=None, state=None, points=some),
        drilled={"uuid of web1": NOW},
    )
    tasks = of(seen, "drill")
    assert [(task.vm, task.last_good) for task in tasks] == [("web1", NOW), ("web3", None)]
    assert {task.uses for task in tasks} == {(DRILLS,)} and tasks[0].touches == frozenset()


def test_drills_are_tried_again_as_backups_are_and_upkeep_by_a_rule_of_its_own() -> None:
    tasks = {task.kind: task for task in plan(view(vm("web1", points=(point("web1", "u"),)))).tasks}
    assert tasks["drill"].retry == tasks["backup"].retry == Retry(2, 60.0)
    assert tasks["prune"].retry == tasks["copy"].retry == UPKEEP_RETRY


def test_upkeep_has_blackouts_as_policies_have() -> None:
    (copy,) = of(view(), "copy")
    assert copy.timing.blackouts == (parse_window("mon-fri 08:00-18:00"),)


def test_drills_with_stages_are_one_task_for_all_vms_of_the_policy() -> None:
    staged = CONFIG.replace(
        'drill: {schedule: "0 5 * * 0"}',
        'drill: {schedule: "0 5 * * 0", stages: [{vms: [web2]}, {vms: ["web*"]}]}',
    )
    some = (point("web1", "u"),)
    seen = view(vm("web1", points=some), vm("web2", points=some), drilled={"uuid of web1": NOW})
    (task,) = job_named(jobs_of(settings(staged), doing()), "drill nightly").tasks(seen)
    assert (task.vm, task.vm_uuid, task.last_good) == ("web1, web2", "nightly", None)


def test_a_member_without_a_point_is_known_to_the_drill_of_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staged = CONFIG.replace(
        'drill: {schedule: "0 5 * * 0"}',
        'drill: {schedule: "0 5 * * 0", stages: [{vms: ["web*"]}]}',
    )
    given: list[Any] = []
    monkeypatch.setattr(VmWork, "drill", lambda _self, *arguments: given.append(arguments))
    seen = view(vm("web1", points=(point("web1", "u"),)), vm("web2"))
    job_named(jobs_of(settings(staged), doing()), "drill nightly").tasks(seen)
    ((_, vms, absent),) = given
    assert [one.name for one in vms] == ["web1"]
    assert absent == (Absent("web2", "it has no good point"),)


def test_backups_go_before_drills_and_those_before_upkeep_and_policies_in_their_order() -> None:
    some = (point("web1", "u"),)
    found = plan(view(vm("db1", "together"), vm("web1", points=some))).tasks
    assert [task.job for task in sorted(found, key=lambda task: task.order)] == [
        "backup nightly",
        "backup together",
        "drill nightly",
        "prune",
        "copy offsite",
    ]


def test_of_a_policy_those_begin_first_that_it_names_first_and_those_by_a_tag_last() -> None:
    config = settings('policies: [{name: a, vms: ["db*", web1], tags: [gold], schedule: "@daily"}]')
    names = ("mail", "web1", "db2", "db1")
    (backup,) = [job for job in jobs_of(config, doing()) if job.name == "backup a"]
    tasks = backup.tasks(view(*(vm(name, "a") for name in names)))
    in_order = sorted(tasks, key=lambda task: (task.order, task.vm))
    assert [task.vm for task in in_order] == ["db1", "db2", "web1", "mail"]


def test_a_job_without_a_schedule_can_be_asked_for_by_name_only() -> None:
    jobs = jobs_of(settings(), doing())
    job = job_named(jobs, "backup  by-hand")
    (task,) = job.tasks(view(vm("misc", "by-hand")))
    assert job.timing is None and task.timing == ASKED
    with pytest.raises(UsageError) as caught:
        job_named(jobs, "backup weekly")
    assert "'backup nightly'" in caught.value.hint and "'check'" in caught.value.hint


class Seen(Duties):
    """``seen``: what the next look finds."""

    def __init__(self) -> None:
        super().__init__(settings(), doing(), FakeClock())
        self.seen: View | HostUnreachable = view()
        self._watch.view = self._found  # type: ignore[method-assign]

    def _found(self) -> View:
        if isinstance(self.seen, HostUnreachable):
            raise self.seen
        return self.seen


def test_what_somebody_asks_for_is_found_by_its_kind_and_vm() -> None:
    duties = Seen()
    with pytest.raises(UsageError):
        duties.asked("backup", "uuid of web1")
    duties.seen = view(vm("web1"), vm("db1", "together"), vm("misc", "by-hand"))
    duties.plan()
    assert duties.asked("backup", "uuid of web1").job == "backup nightly"
    assert duties.asked("backup", "uuid of db1").job == "backup together"
    assert duties.asked("backup", "uuid of misc").job == "backup by-hand"
    assert duties.asked("gc", "").job == "gc"
    with pytest.raises(UsageError):
        duties.asked("drill", "uuid of web1")
