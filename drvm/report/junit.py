"""The report as JUnit XML, the form that CI systems read: the state that things are in now.

The elements and attributes are those of Jenkins' ``junit-10.xsd``, which the other readers
follow: ``testsuites/testsuite/testcase/failure``. A suite for the latest drill of each VM, with a
case for the drill as a whole, one for each check and one for each target that it was measured
against; and a suite with a case for each job and VM, by its latest run. Readers know a case again
by its class and name, so each is there once: what failed and has passed since is green. The JSON
has all drills.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from drvm.core.text import printable
from drvm.core.units import format_seconds
from drvm.report.attention import is_made_good
from drvm.report.input import ReportInput, RunRow
from drvm.report.model import MAX_DETAIL_CHARS, DrillResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class _Case:
    """``failure`` is ``None`` if it passed, else message and text; ``skipped``: why there was
    nothing to find out, else empty. ``of``: its class."""

    of: str
    name: str
    seconds: float
    failure: tuple[str, str] | None = None
    skipped: str = ""


def junit_report(report: ReportInput) -> bytes:
    """VMs that are gone, and those that no policy covers and nobody drilled, are left out."""
    root = ElementTree.Element("testsuites")
    every: list[_Case] = []
    for suite, cases in (*_drills(report), *_jobs(report)):
        root.append(suite)
        skipped = str(sum(bool(case.skipped) for case in cases))
        for name, value in {**_counts(cases), "skipped": skipped}.items():
            suite.set(name, value)
        for case in cases:
            _add(suite, case)
        every += cases
    for name, value in {"name": "drvm", **_counts(every)}.items():
        root.set(name, value)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _drills(report: ReportInput) -> Iterator[tuple[ElementTree.Element, list[_Case]]]:
    names = Counter(row.vm for row in report.vms)
    for row in report.vms:
        drills = report.drills_of(row.vm_uuid)
        if row.gone or not (drills or (row.machine and row.policy is not None)):
            continue
        shown = row.vm if names[row.vm] == 1 else f"{row.vm} {row.vm_uuid}"
        suite = ElementTree.Element("testsuite", {"name": _clean(f"drill of {shown}")})
        of = f"drvm.drill.{shown}"
        if drills:
            _describe(suite, drills[0])
            yield suite, list(_cases(of, drills[0]))
        else:
            yield suite, [_Case(of, "drill", 0.0, skipped="it has never been drilled")]


def _jobs(report: ReportInput) -> Iterator[tuple[ElementTree.Element, list[_Case]]]:
    gone = {row.vm_uuid for row in report.vms if row.gone}
    latest: dict[tuple[str, str], RunRow] = {}
    for run in sorted(report.runs, key=lambda run: run.started):
        told_by_drill = run.kind == "drill" and run.result
        if run.ended is not None and run.vm_uuid not in gone and not told_by_drill:
            latest[run.job, run.vm_uuid] = run
    names = Counter((run.job, run.vm) for run in latest.values())
    cases = []
    for run in latest.values():
        name = run.vm or run.job
        if names[run.job, run.vm] > 1:
            name = f"{name} {run.vm_uuid}".rstrip()
        failure = None
        if run.state in ("failed", "lost") and not is_made_good(report, run):
            failure = ("the run failed", run.message or "no reason was given")
        seconds = max(0.0, ((run.ended or run.started) - run.started).total_seconds())
        cases.append(_Case(f"drvm.job.{run.job}", name, seconds, failure))
    if cases:
        cases.sort(key=lambda case: (case.of, case.name))
        yield ElementTree.Element("testsuite", {"name": "jobs"}), cases


def _cases(of: str, drill: DrillResult) -> Iterable[_Case]:
    verdict = None if drill.passed else ("the drill failed", drill.why_failed)
    yield _Case(of, "drill", (drill.finished - drill.started).total_seconds(), verdict)
    for check in drill.checks:
        failure = None if check.passed else ("the check failed", check.detail)
        yield _Case(of, f"check: {check.name}", check.seconds, failure)
    targets = (
        ("RTO", drill.rto_seconds, drill.rto_target_seconds, drill.rto_met),
        (
            "RTO of its group",
            drill.group_rto_seconds,
            drill.rto_target_seconds,
            drill.group_rto_met,
        ),
        ("RPO", drill.rpo_seconds, drill.rpo_target_seconds, drill.rpo_met),
    )
    for name, measured_s, target_s, met in targets:
        if target_s is not None and met is not None:
            failure = (
                None if met else (f"{name} over target", _measured(name, measured_s, target_s))
            )
            yield _Case(of, name, measured_s or 0.0, failure)


def _measured(name: str, measured_s: float | None, target_s: float) -> str:
    measured = "not reached" if measured_s is None else format_seconds(measured_s)
    return f"{name} {measured}, target {format_seconds(target_s)}"


def _describe(suite: ElementTree.Element, drill: DrillResult) -> None:
    for name, value in (
        ("id", drill.id),
        ("timestamp", drill.started.strftime("%Y-%m-%dT%H:%M:%S")),
        ("hostname", drill.host),
    ):
        suite.set(name, _clean(value))
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


def _add(suite: ElementTree.Element, case: _Case) -> None:
    fields = {
        "name": _clean(case.name),
        "classname": _clean(case.of),
        "time": f"{case.seconds:.3f}",
    }
    element = ElementTree.SubElement(suite, "testcase", fields)
    if case.skipped:
        ElementTree.SubElement(element, "skipped", {"message": case.skipped})
    if case.failure is not None:
        message, text = case.failure
        failure = ElementTree.SubElement(element, "failure", {"message": message, "type": "drvm"})
        failure.text = _clean(text)


def _counts(cases: list[_Case]) -> dict[str, str]:
    """What checks and targets took is part of what their drill took."""
    whole = [case for case in cases if case.name == "drill" or case.of.startswith("drvm.job.")]
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.failure is not None for case in cases)),
        "errors": "0",
        "time": f"{sum(case.seconds for case in whole):.3f}",
    }


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", printable(text, MAX_DETAIL_CHARS, lines=True))
