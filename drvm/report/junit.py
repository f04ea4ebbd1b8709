"""The report as JUnit XML, the form that CI systems read.

The elements and attributes are those of Jenkins' ``junit-10.xsd``, which the other readers
follow: ``testsuites/testsuite/testcase/failure``, a suite for each drill, a case for each check,
and a case of its own for the drill as a whole and for the targets that it was measured against.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

from drvm.core.text import printable
from drvm.core.units import format_seconds
from drvm.report.input import ReportInput
from drvm.report.model import MAX_DETAIL_CHARS, DrillResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Case:
    """One test case: ``failure`` is ``None`` if it passed, else message and text."""

    def __init__(self, name: str, seconds: float, failure: tuple[str, str] | None) -> None:
        self.name = name
        self.seconds = seconds
        self.failure = failure


def junit_report(report: ReportInput) -> bytes:
    suites = [(drill, list(_cases(drill))) for drill in report.latest_first()]
    everything = [case for _drill, cases in suites for case in cases]
    root = ElementTree.Element("testsuites", {"name": "drvm drills", **_counts(everything)})
    for drill, cases in suites:
        _suite(root, drill, cases)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _cases(drill: DrillResult) -> Iterable[_Case]:
    failed_checks = [check.name for check in drill.checks if not check.passed]
    verdict = None
    if not drill.passed:
        reason = drill.failure or (
            f"failed checks: {', '.join(failed_checks)}" if failed_checks else "see the targets"
        )
        verdict = ("the drill failed", reason)
    yield _Case("drill", (drill.finished - drill.started).total_seconds(), verdict)
    for check in drill.checks:
        failure = None if check.passed else ("the check failed", check.detail)
        yield _Case(f"check: {check.name}", check.seconds, failure)
    if drill.rto_target_seconds is not None:
        yield _target_case("RTO", drill.rto_seconds, drill.rto_target_seconds, drill.rto_met)
    if drill.rpo_target_seconds is not None:
        yield _target_case("RPO", drill.rpo_seconds, drill.rpo_target_seconds, drill.rpo_met)


def _target_case(name: str, measured_s: float | None, target_s: float, met: bool | None) -> _Case:
    if met:
        return _Case(name, measured_s or 0.0, None)
    measured = "not reached" if measured_s is None else format_seconds(measured_s)
    text = f"{name} {measured}, target {format_seconds(target_s)}"
    return _Case(name, measured_s or 0.0, (f"{name} over target", text))


def _suite(root: ElementTree.Element, drill: DrillResult, cases: list[_Case]) -> None:
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": _clean(f"drill of {drill.vm}"),
            "id": _clean(drill.id),
            "timestamp": drill.started.strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": _clean(drill.host),
            **_counts(cases),
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("point", drill.point),
        ("point_created", drill.point_created.isoformat()),
        ("consistency", drill.consistency),
        ("data_bytes", str(drill.data_bytes)),
        ("drvm_version", drill.drvm_version),
        ("method", drill.method),
        ("group", drill.group),
        ("stage", str(drill.stage)),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for case in cases:
        element = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "name": _clean(case.name),
                "classname": _clean(f"drvm.drill.{drill.vm}"),
                "time": f"{case.seconds:.3f}",
            },
        )
        if case.failure is not None:
            message, text = case.failure
            failure = ElementTree.SubElement(
                element, "failure", {"message": message, "type": "drill"}
            )
            failure.text = _clean(text)


def _counts(cases: list[_Case]) -> dict[str, str]:
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.failure is not None for case in cases)),
        "errors": "0",
        "time": f"{sum(case.seconds for case in cases if case.name == 'drill'):.3f}",
    }


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", printable(text, MAX_DETAIL_CHARS, lines=True))
