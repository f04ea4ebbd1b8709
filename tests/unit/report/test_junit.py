from collections.abc import Callable
from typing import Any

import defusedxml.ElementTree as SafeElementTree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.report.junit import junit_report
from drvm.report.model import CheckResult

Make = Callable[..., Any]


def check(**changes: Any) -> CheckResult:
    fields: dict[str, Any] = {"name": "agent", "passed": True, "seconds": 1.5, "detail": "ok"}
    return CheckResult(**(fields | changes))


def test_each_drill_is_a_suite_and_each_check_a_case(drill: Make, report: Make) -> None:
    root = SafeElementTree.fromstring(junit_report(report(drill(), drill(id="2"))))
    assert root.tag == "testsuites" and root.get("tests") == "8"
    assert [suite.tag for suite in root] == ["testsuite", "testsuite"]
    cases = [case.get("name") for case in root[0].findall("testcase")]
    assert cases == ["drill", "check: agent", "RTO", "RPO"]


def test_a_suite_tells_the_method_the_group_and_the_stage(drill: Make, report: Make) -> None:
    grouped = drill(method="boot", group="g1", stage=2)
    root = SafeElementTree.fromstring(junit_report(report(grouped)))
    told = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert (told["method"], told["group"], told["stage"]) == ("boot", "g1", "2")


def test_counts_agree_with_the_cases(drill: Make, report: Make) -> None:
    failed = drill(
        passed=False, rto_seconds=None, checks=(check(), check(name="file", passed=False))
    )
    root = SafeElementTree.fromstring(junit_report(report(failed, drill())))
    for suite in root:
        assert int(suite.get("tests")) == len(suite.findall("testcase"))
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
    assert int(root.get("failures")) == len(root.findall(".//failure")) == 3


def test_a_drill_that_never_booted_fails_with_its_reason(drill: Make, report: Make) -> None:
    broken = drill(passed=False, rto_seconds=None, checks=(), failure="the guest never booted")
    root = SafeElementTree.fromstring(junit_report(report(broken)))
    assert root.find("testsuite/testcase/failure").text == "the guest never booted"


def test_no_drill_makes_an_empty_document(report: Make) -> None:
    assert SafeElementTree.fromstring(junit_report(report())).get("tests") == "0"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_any_text_makes_valid_xml(drill: Make, report: Make, text: str) -> None:
    hostile = drill(
        vm=text, host=text, point=text, id=text, failure=text, passed=False, consistency=text,
        drvm_version=text, checks=(check(name=text, detail=text, passed=False),),
    )  # fmt: skip
    root = SafeElementTree.fromstring(junit_report(report(hostile)))
    assert len(root.findall("testsuite/testcase")) == 4
