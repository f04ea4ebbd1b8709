import dataclasses
import datetime as dt
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from drvm.report.attention import Concern, attention
from drvm.report.input import CheckRow, JobRow, ReportInput, RunRow
from drvm.report.model import CheckResult
from tests.unit.report.results import NOW, make_drill, make_report, make_row

Make = Callable[..., Any]
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def concerns_of(*drills: Any, row: dict[str, Any] | None = None, **more: Any) -> list[Concern]:
    report = make_report(*drills, vms=(make_row(**(row or {})),), **more)
    return list(attention(report))


def run(**changes: Any) -> RunRow:
    fields: dict[str, Any] = {
        "job": "backup nightly", "kind": "backup", "vm": "web1", "vm_uuid": "uuid-web1",
        "host": "kvm1", "started": NOW - HOUR, "ended": NOW, "state": "failed",
        "message": "the store can't be reached", "hint": "look at the network",
    }  # fmt: skip
    return RunRow(**(fields | changes))


def test_nothing_is_wrong_with_a_vm_that_keeps_its_targets() -> None:
    assert concerns_of(make_drill()) == []


def test_a_missed_rpo_is_critical_since_the_target_passed() -> None:
    late = {"rpo_state": "missed", "rpo_age_seconds": 90_000.0,
            "last_point_created": NOW - dt.timedelta(seconds=90_000)}  # fmt: skip
    (concern,) = concerns_of(row=late)
    assert (concern.kind, concern.severity, concern.vm) == ("rpo", "critical", "web1")
    assert concern.since == NOW - dt.timedelta(seconds=3_600)
    assert "drvm backup web1" in concern.hint


def test_a_machine_that_is_held_is_told_while_its_policy_would_back_it_up() -> None:
    (concern,) = concerns_of(row={"held": "its host is away", "host": "not seen"})
    assert (concern.key, concern.severity) == ("held uuid-web1", "warning")
    assert concern.text == "it is not backed up: its host is away"


@pytest.mark.parametrize(("state", "severity"), [("never", "critical"), ("unknown", "warning")])
def test_no_point_and_no_age_are_concerns(state: str, severity: str) -> None:
    (concern,) = concerns_of(row={"rpo_state": state, "rpo_age_seconds": None})
    assert (concern.kind, concern.severity) == ("rpo", severity)


def test_drills_that_fail_one_after_the_other_are_one_concern_since_the_first() -> None:
    bad = {"passed": False, "rto_seconds": None}
    check = CheckResult(name="http 80", passed=False, seconds=1.0)
    drills = [
        make_drill(id="3", started=NOW, checks=(check,), **bad),
        make_drill(id="2", started=NOW - DAY, **bad),
        make_drill(id="1", started=NOW - 2 * DAY),
        make_drill(id="0", started=NOW - 3 * DAY, **bad),
    ]
    (concern,) = concerns_of(*drills)
    assert (concern.kind, concern.severity, concern.since) == ("drill", "critical", NOW - DAY)
    assert "http 80" in concern.text


def test_a_drill_of_a_clock_that_was_wrong_hides_no_failure() -> None:
    ahead = make_drill(id="2", started=NOW + 3650 * DAY)
    failed = make_drill(id="1", started=NOW, passed=False, rto_seconds=None)
    assert [c.key for c in concerns_of(ahead, failed)] == ["drill uuid-web1"]


def test_a_drill_over_its_rto_target_is_a_warning() -> None:
    (concern,) = concerns_of(make_drill(rto_seconds=1000.0))
    assert (concern.kind, concern.severity) == ("drill", "warning") and "RTO" in concern.text


@pytest.mark.parametrize(
    ("first_point_days", "drilled_days", "told"),
    [(30, 1, False), (30, 9, True), (30, None, True), (3, None, False)],
)
def test_a_drill_is_overdue_where_there_was_a_point_to_drill(
    first_point_days: int, drilled_days: int | None, told: bool
) -> None:
    drills = [] if drilled_days is None else [make_drill(started=NOW - drilled_days * DAY)]
    due = {"drill_due": NOW - 7 * DAY, "first_point_created": NOW - first_point_days * DAY}
    assert [c.key for c in concerns_of(*drills, row=due)] == ["drill-due uuid-web1"] * told


@pytest.mark.parametrize(
    ("state", "last_days", "failed", "told"),
    [
        ("no-target", 3, False, True),
        ("met", 3, False, True),
        ("no-target", 1, False, False),
        ("missed", 3, False, False),  # told by that
        ("no-target", 3, True, False),
    ],
)
def test_a_vm_whose_backups_do_not_begin_is_told_also_without_an_rpo(
    state: str, last_days: int, failed: bool, told: bool
) -> None:
    row = {
        "rpo_state": state,
        "rpo_age_seconds": 3 * 86400.0,
        "last_point_created": NOW - last_days * DAY,
        "backup_due": NOW - 2 * DAY,
    }
    runs = (run(retry_at=NOW),) * failed
    found = [c.severity for c in concerns_of(row=row, runs=runs) if c.key == "backup-due uuid-web1"]
    assert found == ["warning"] * told


def test_a_vm_without_a_policy_is_unprotected_and_nothing_else() -> None:
    (concern,) = concerns_of(row={"policy": None, "rpo_state": "never"})
    assert (concern.kind, concern.severity) == ("unprotected", "warning")


@pytest.mark.parametrize("change", [{"machine": False}, {"policy": None, "doubt": "kvm2 is away"}])
def test_what_is_stored_by_hand_or_has_a_policy_that_nobody_knows_is_no_concern(
    change: dict[str, Any],
) -> None:
    assert concerns_of(row={"rpo_state": "missed", "rpo_age_seconds": 9e9, **change}) == []


@pytest.mark.parametrize(("days", "count"), [(2, 1), (40, 0)])
def test_a_vm_that_is_gone_is_asked_about_for_a_month(days: int, count: int) -> None:
    gone = {"gone": True, "rpo_state": "missed", "last_point_created": NOW - days * DAY}
    found = concerns_of(row=gone, runs=(run(),))
    assert [concern.kind for concern in found] == ["unprotected"] * count


@pytest.mark.parametrize(("state", "count"), [("met", 0), ("no-target", 0), ("missed", 1)])
def test_a_vm_that_another_hosts_daemon_backs_up_is_not_asked_about(state: str, count: int) -> None:
    """Several daemons, each for its own hosts, on one repository."""
    there = {"gone": True, "elsewhere": True, "rpo_state": state}
    assert len(concerns_of(row={**there, "last_point_created": NOW - HOUR})) == count


def test_commands_to_copy_are_safe_in_a_shell() -> None:
    name = "a b; rm -rf $(x) '"
    failed = make_drill(vm=name, passed=False, rto_seconds=None)
    late = {"vm": name, "rpo_state": "missed", "rpo_age_seconds": 9e9}
    due = {"vm": name, "drill_due": NOW - DAY, "first_point_created": NOW - 9 * DAY}
    gone = {"vm": name, "gone": True, "last_point_created": NOW - DAY}
    job = JobRow(job=f"copy {name}", kind="copy", due=NOW, last_good=None)
    found = [*concerns_of(failed, row=late, jobs=(job,)), *concerns_of(row=due)]
    hints = [concern.hint for concern in (*found, *concerns_of(row=gone))]
    assert len(hints) == 5
    for hint in hints:
        assert shlex.quote(name) in hint or shlex.quote(f"copy {name}") in hint


def test_a_failed_backup_is_made_good_by_any_younger_point() -> None:
    failed = run(ended=NOW - HOUR)
    for created, count in ((NOW - DAY, 1), (NOW - HOUR / 2, 0), (NOW + DAY, 1)):
        row = {"last_point_created": created}
        assert len(concerns_of(row=row, runs=(failed,))) == count
    assert len(concerns_of(row={"last_point_created": NOW}, runs=(run(kind="drill"),))) == 1


def test_a_job_that_failed_for_good_says_why() -> None:
    (concern,) = concerns_of(row={}, runs=(run(),))
    assert (concern.kind, concern.severity) == ("failure", "warning")
    assert "the store can't be reached" in concern.text and concern.hint == "look at the network"
    assert concerns_of(runs=(run(retry_at=NOW + HOUR), run(state="done"))) == []


@pytest.mark.parametrize(("kind", "severity"), [("gc", "warning"), ("check", "critical")])
def test_a_failed_check_is_critical_and_other_upkeep_can_wait(kind: str, severity: str) -> None:
    (concern,) = concerns_of(runs=(run(job=kind, kind=kind, vm="", vm_uuid=""),))
    assert (concern.severity, concern.key) == (severity, f"failure {kind}")


def test_a_drill_job_that_has_a_result_is_told_by_that() -> None:
    assert concerns_of(runs=(run(job="drill nightly", kind="drill", result="d1"),)) == []


def test_a_drill_that_failed_is_one_concern_whoever_ran_it() -> None:
    failed = make_drill(started=NOW, passed=False, rto_seconds=None)
    alone = run(job="drill nightly", kind="drill")
    assert [c.key for c in concerns_of(failed, runs=(alone,))] == ["drill uuid-web1"]
    together = run(job="drill nightly", kind="drill", vm="web1, db1", vm_uuid="nightly")
    grouped = make_drill(started=NOW, passed=False, rto_seconds=None, group="g")
    assert [c.key for c in concerns_of(grouped, runs=(together,))] == ["drill uuid-web1"]
    before = make_drill(started=NOW - DAY)
    assert [c.key for c in concerns_of(before, runs=(alone, together))] == [
        "failure drill nightly nightly",
        "failure drill nightly uuid-web1",
    ]


def test_a_failure_of_machines_together_names_them_and_is_no_vms() -> None:
    (concern,) = concerns_of(runs=(run(vm="web1, db1", vm_uuid="nightly on kvm1"),))
    assert (concern.vm, concern.vm_uuid) == ("", "")
    assert "web1, db1" in concern.text and concern.key == "failure backup nightly nightly on kvm1"


def test_a_run_whose_process_died_failed() -> None:
    (concern,) = concerns_of(runs=(run(state="lost", message="drvm ended in the middle of it"),))
    assert concern.kind == "failure" and "in the middle" in concern.text
    assert concerns_of(runs=(run(state="lost", retry_at=NOW + HOUR), run(state="stopped"))) == []


def test_a_retry_that_nobody_made_for_a_day_is_awaited_no_more() -> None:
    assert concerns_of(runs=(run(retry_at=NOW - HOUR),)) == []
    assert len(concerns_of(runs=(run(retry_at=NOW - 2 * DAY),))) == 1


def test_a_copy_is_behind_where_it_was_not_made_since_it_was_due() -> None:
    job = JobRow(job="copy offsite", kind="copy", due=NOW - DAY, last_good=NOW - 2 * DAY)
    (concern,) = concerns_of(jobs=(job,))
    assert "behind" in concern.text and concern.since == NOW - DAY
    for kept in ({"due": None}, {"last_good": NOW - DAY}):
        fields = {"job": "gc", "kind": "gc", "due": NOW - DAY, "last_good": None, **kept}
        assert concerns_of(jobs=(JobRow(**fields),)) == []  # type: ignore[arg-type]


def test_damage_stands_until_it_was_read_again() -> None:
    check = CheckRow(
        began=NOW - DAY, host="kvm1", share=1.0, packs=9, read_bytes=9, damaged_packs=2, stands=True
    )
    (concern,) = concerns_of(checks=(check,))
    assert (concern.kind, concern.severity, concern.since) == ("damage", "critical", NOW - DAY)
    assert concerns_of(checks=(CheckRow(**{**_fields(check), "stands": False}),)) == []


def test_what_the_repository_says_is_lost_and_hosts_that_are_silent_are_critical() -> None:
    found = concerns_of(problems=("a", "b"), unreachable=(("qemu+ssh://kvm2/system", "no route"),))
    assert [c.kind for c in found] == ["damage", "failure"]
    assert all(c.severity == "critical" for c in found)
    assert "and 1 more" in found[0].text and "kvm2" in found[1].text


def test_what_is_critical_comes_first_and_keys_are_unique() -> None:
    rows = tuple(
        make_row(vm=f"vm{n}", vm_uuid=str(n), **change)
        for n, change in enumerate(
            ({"policy": None}, {"rpo_state": "never"}, {}, {"rpo_state": "missed"})
        )
    )
    report = make_report(make_drill(vm_uuid="2", passed=False), vms=rows)
    found = attention(report)
    assert [c.vm for c in found] == ["vm1", "vm3", "vm2", "vm0"]
    assert len({c.key for c in found}) == len(found)
    assert isinstance(report, ReportInput) and dataclasses.is_dataclass(found[0])


def _fields(check: CheckRow) -> dict[str, Any]:
    return {name: getattr(check, name) for name in check.__struct_fields__}
