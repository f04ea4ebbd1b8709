import datetime as dt
from collections.abc import Callable
from typing import Any

import defusedxml.ElementTree as SafeElementTree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.report.input import RunRow
from drvm.report.junit import junit_report
from drvm.report.model import CheckResult
from tests.unit.report.results import NOW

DAY = dt.timedelta(days=1)
Make = Callable[..., Any]


def check(**changes: Any) -> CheckResult:
    fields: dict[str, Any] = {"name": "agent", "passed": True, "seconds": 1.5, "detail": "ok"}
    return CheckResult(**(fields | changes))


def run(**changes: Any) -> RunRow:
    fields: dict[str, Any] = {
        "job": "backup nightly", "kind": "backup", "vm": "web1", "vm_uuid": "uuid-web1",
        "host": "kvm1", "started": NOW, "ended": NOW + DAY / 100, "state": "done",
    }  # fmt: skip
    return RunRow(**(fields | changes))


def test_the_latest_drill_of_each_vm_is_a_suite_and_each_check_a_case(
    drill: Make, row: Make, report: Make
) -> None:
    other = drill(id="2", vm="db1", vm_uuid="2")
    vms = (row(), row(vm="db1", vm_uuid="2"))
    root = SafeElementTree.fromstring(junit_report(report(drill(), other, vms=vms)))
    assert root.tag == "testsuites" and root.get("tests") == "8"
    assert [suite.get("name") for suite in root] == ["drill of web1", "drill of db1"]
    cases = [case.get("name") for case in root[0].findall("testcase")]
    assert cases == ["drill", "check: agent", "RTO", "RPO"]


def test_what_failed_and_passed_later_is_green(drill: Make, report: Make) -> None:
    failed = drill(id="1", started=NOW - DAY, passed=False, checks=(check(passed=False),))
    root = SafeElementTree.fromstring(junit_report(report(failed, drill(id="2"))))
    assert (root.get("tests"), root.get("failures"), len(root)) == ("4", "0", 1)
    assert root[0].get("id") == "2"


def test_no_case_is_there_twice(drill: Make, row: Make, report: Make) -> None:
    """Readers put cases of one class and name together."""
    vms = (row(), row(vm_uuid="2"), row(vm="db1", vm_uuid="3"))
    drills = [drill(id=f"{uuid}{n}", vm_uuid=uuid) for uuid in ("uuid-web1", "2") for n in range(3)]
    runs = tuple(run(vm_uuid=uuid) for uuid in ("uuid-web1", "2", "2"))
    cases = SafeElementTree.fromstring(junit_report(report(*drills, vms=vms, runs=runs))).iter(
        "testcase"
    )
    named = [(case.get("classname"), case.get("name")) for case in cases]
    assert len(set(named)) == len(named) == 2 * 4 + 1 + 2


def test_a_vm_that_was_never_drilled_is_not_green(row: Make, report: Make) -> None:
    vms = (row(), row(vm="test", vm_uuid="2", policy=None), row(vm_uuid="3", machine=False))
    root = SafeElementTree.fromstring(junit_report(report(vms=vms)))
    (suite,) = root
    assert suite.get("skipped") == "1"
    assert suite.find("testcase/skipped").get("message") == "it has never been drilled"


def test_a_vm_that_is_gone_is_red_no_more(drill: Make, row: Make, report: Make) -> None:
    data = report(drill(passed=False), vms=(row(gone=True),), runs=(run(state="failed"),))
    assert SafeElementTree.fromstring(junit_report(data)).get("tests") == "0"


def test_each_job_is_a_case_for_each_vm_by_its_latest_run(row: Make, report: Make) -> None:
    vms = (row(), row(vm="db1", vm_uuid="2"))
    runs = (
        run(started=NOW - 2 * DAY, state="failed", message="no room"),
        run(started=NOW - DAY),
        run(vm="db1", vm_uuid="2", state="lost", message="its process died"),
        run(job="gc", kind="gc", vm="", vm_uuid=""),
        run(job="drill nightly", kind="drill", state="failed", result="d1"),
    )
    root = SafeElementTree.fromstring(junit_report(report(vms=vms, runs=runs)))
    jobs = next(suite for suite in root if suite.get("name") == "jobs")
    told = {
        (case.get("classname"), case.get("name")): case.findtext("failure")
        for case in jobs.iter("testcase")
    }
    assert told == {
        ("drvm.job.backup nightly", "web1"): None,
        ("drvm.job.backup nightly", "db1"): "its process died",
        ("drvm.job.gc", "gc"): None,
    }


def test_a_backup_that_failed_is_green_once_there_is_a_younger_point(
    row: Make, report: Make
) -> None:
    failed = run(started=NOW - DAY, ended=NOW - DAY, state="failed")
    data = report(vms=(row(),), runs=(failed,))
    assert SafeElementTree.fromstring(junit_report(data)).get("failures") == "0"


def test_the_time_of_a_group_is_a_case_of_its_own(drill: Make, report: Make) -> None:
    grouped = drill(group="g", group_rto_seconds=1000.0, rto_target_seconds=900.0)
    root = SafeElementTree.fromstring(junit_report(report(grouped)))
    (failed,) = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed.get("name") == "RTO of its group"
    assert failed.findtext("failure") == ("RTO of its group 16 min 40 s, target 15 min 00 s")


def test_a_suite_tells_the_method_the_group_and_the_stage(drill: Make, report: Make) -> None:
    grouped = drill(method="boot", group="g1", stage=2)
    root = SafeElementTree.fromstring(junit_report(report(grouped)))
    told = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert (told["method"], told["group"], told["stage"]) == ("boot", "g1", "2")


def test_counts_agree_with_the_cases(drill: Make, report: Make) -> None:
    failed = drill(
        passed=False, rto_seconds=None, checks=(check(), check(name="file", passed=False))
    )
    root = SafeElementTree.fromstring(junit_report(report(failed)))
    for suite in root:
        assert int(suite.get("tests")) == len(suite.findall("testcase"))
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    assert int(root.get("failures")) == len(root.findall(".//failure")) == 3
    assert root.get("time") == "240.000"


def test_a_drill_that_never_booted_fails_with_its_reason(drill: Make, report: Make) -> None:
    broken = drill(passed=False, rto_seconds=None, checks=(), failure="the guest never booted")
    root = SafeElementTree.fromstring(junit_report(report(broken)))
    assert root.find("testsuite/testcase/failure").text == "the guest never booted"


def test_an_empty_fleet_makes_an_empty_document(report: Make) -> None:
    assert SafeElementTree.fromstring(junit_report(report(vms=()))).get("tests") == "0"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_any_text_makes_valid_xml(drill: Make, report: Make, text: str) -> None:
    hostile = drill(
        vm=text, host=text, point=text, id=text, failure=text, passed=False, consistency=text,
        drvm_version=text, checks=(check(name=text, detail=text, passed=False),),
    )  # fmt: skip
    root = SafeElementTree.fromstring(junit_report(report(hostile)))
    assert len(root.findall("testsuite/testcase")) == 4
