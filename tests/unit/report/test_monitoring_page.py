"""docs/MONITORING.md names the metrics that there are, and its rules can be read."""

from __future__ import annotations

import re
from typing import Any

import yaml

from drvm.report.metrics import Figures, JobFigures, WayFigures, exposition
from tests.architecture.source import ROOT
from tests.unit.report.results import NOW, make_drill, make_report, make_row

PAGE = (ROOT / "docs/MONITORING.md").read_text("utf-8")


def metrics() -> set[str]:
    report = make_report(make_drill(), vms=(make_row(),), storage=())
    figures = Figures(
        report, looked=NOW, jobs=[JobFigures("x")], ways=[WayFigures("mail", 0, 0, 0)]
    )
    names = set()
    for line in exposition(figures).decode().splitlines():
        if line.startswith("# TYPE "):
            names.add(line.split()[2])
    return names


def test_the_page_names_every_metric_and_no_other() -> None:
    named = set(re.findall(r"drvm_[a-z_]+", PAGE))
    assert named == metrics()


def test_the_rules_are_rules_of_prometheus_about_metrics_that_there_are() -> None:
    text = PAGE.partition("```yaml\n")[2].partition("```")[0]
    (group,) = yaml.safe_load(text)["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(re.findall(r"drvm_[a-z_]+", rule["expr"])) <= metrics()
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["expr"].count("(") == rule["expr"].count(")")
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in ("vm", "job", "way")
