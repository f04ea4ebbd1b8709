"""docs/MONITORING.md names the metrics that there are, and its rules can be read."""

from __future__ import annotations

import re
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from drvm.report.input import StorageSample
from drvm.report.metrics import Figures, JobFigures, WayFigures, exposition
from tests.architecture.source import ROOT
from tests.unit.report.results import NOW, make_drill, make_report, make_row

SAMPLE = StorageSample(taken=NOW, stored_bytes=1, protected_bytes=1, points_bytes=1, points=1)
PAGE = (ROOT / "docs/MONITORING.md").read_text("utf-8")


def metrics() -> dict[str, set[str]]:
    """The labels of each metric that there is."""
    report = make_report(make_drill(), vms=(make_row(),), storage=(SAMPLE,))
    jobs, ways = [JobFigures("x", 0, 0, NOW, 1.0)], [WayFigures("mail", 0, 0, 0)]
    text = exposition(Figures(report, looked=NOW, jobs=jobs, ways=ways)).decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_names_every_metric_and_no_other() -> None:
    named = set(re.findall(r"drvm_[a-z_]+", PAGE))
    assert named == set(metrics())


def test_the_rules_are_rules_of_prometheus_about_metrics_that_there_are() -> None:
    text = PAGE.partition("```yaml\n")[2].partition("```")[0]
    (group,) = yaml.safe_load(text)["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    labels = metrics()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(re.findall(r"drvm_[a-z_]+", rule["expr"])) <= set(labels)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["expr"].count("(") == rule["expr"].count(")")
        named = [metric for metric in labels if re.search(rf"\b{metric}\b", rule["expr"])]
        shared = set.intersection(*(labels[metric] for metric in named))
        if "sum(" in rule["expr"]:
            shared = set()
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= shared
