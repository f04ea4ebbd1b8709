from __future__ import annotations

import datetime as dt
import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from drvm.report.input import StorageSample
from drvm.report.metrics import MAX_VMS, Figures, JobFigures, WayFigures, exposition
from tests.unit.report.results import NOW, make_drill, make_report, make_row


def samples(figures: Figures) -> dict[tuple[str, str], float]:
    """Value by name, and the VM or whatever it is of."""
    found = {}
    for family in text_string_to_metric_families(exposition(figures).decode()):
        for sample in family.samples:
            label = sample.labels.get("vm") or next(iter(sample.labels.values()), "")
            found[sample.name, label] = sample.value
    return found


def test_a_vm_is_seen_with_its_points_its_targets_and_its_last_drill() -> None:
    row = make_row(points=7, stored_bytes=1000, disk_bytes=5000)
    drill = make_drill(started=NOW - dt.timedelta(days=1), rto_seconds=42.5)
    old = make_drill(id="old", started=NOW - dt.timedelta(days=9), passed=False)
    report = make_report(old, drill, vms=(row,))
    found = samples(Figures(report, reachable=True, looked=NOW))
    assert row.last_point_created is not None
    for name, value in {
        "protected": 1,
        "points": 7,
        "stored_bytes": 1000,
        "disk_bytes": 5000,
        "last_point_timestamp_seconds": row.last_point_created.timestamp(),
        "rpo_target_seconds": row.rpo_target_seconds,
        "rpo_met": 1,
        "last_drill_timestamp_seconds": drill.started.timestamp(),
        "last_drill_passed": 1,
        "last_drill_rto_seconds": 42.5,
        "rto_target_seconds": drill.rto_target_seconds,
    }.items():
        assert found[f"drvm_vm_{name}", "web1"] == value, name
    assert found["drvm_repository_reachable", ""] == 1
    assert found["drvm_last_look_timestamp_seconds", ""] == NOW.timestamp()


def test_what_is_not_known_has_no_figure_rather_than_a_wrong_one() -> None:
    row = make_row(
        rpo_state="never", last_point=None, last_point_created=None, rpo_age_seconds=None
    )
    found = samples(Figures(make_report(vms=(row,))))
    assert found["drvm_vm_rpo_met", "web1"] == 0
    assert ("drvm_vm_last_point_timestamp_seconds", "web1") not in found
    assert ("drvm_vm_last_drill_passed", "web1") not in found
    assert ("drvm_last_look_timestamp_seconds", "") not in found


def test_a_vm_whose_policy_nobody_can_tell_is_not_called_unprotected() -> None:
    doubted = make_row(policy=None, doubt="kvm2 is away")
    bare = make_row(vm="bare", vm_uuid="2", policy=None)
    found = samples(Figures(make_report(vms=(doubted, bare))))
    assert ("drvm_vm_protected", "web1") not in found and found["drvm_vm_protected", "bare"] == 0


def test_a_vm_that_is_gone_keeps_its_points_and_rings_no_bell() -> None:
    found = samples(Figures(make_report(vms=(make_row(gone=True, points=3, rpo_state="missed"),))))
    assert found["drvm_vm_points", "web1"] == 3
    assert ("drvm_vm_rpo_met", "web1") not in found


def test_image_files_that_were_stored_by_hand_ring_no_bell() -> None:
    found = samples(Figures(make_report(vms=(make_row(machine=False, rpo_state="missed"),))))
    assert ("drvm_vm_rpo_met", "web1") not in found and ("drvm_vm_points", "web1") in found


def test_jobs_ways_and_the_repository_have_theirs() -> None:
    sample = StorageSample(
        taken=NOW, stored_bytes=10**15, protected_bytes=2, points_bytes=3, points=4
    )
    figures = Figures(
        make_report(vms=(), storage=(sample,)),
        jobs=[JobFigures("backup nightly", 2, 5, NOW, 61.5), JobFigures("gc")],
        ways=[WayFigures("mail", failed=3, lost=1, pending=2)],
    )
    found = samples(figures)
    assert found["drvm_repository_stored_bytes", ""] == 10**15
    assert found["drvm_job_running", "backup nightly"] == 2
    assert found["drvm_job_failures_total", "backup nightly"] == 5
    assert found["drvm_job_last_success_timestamp_seconds", "backup nightly"] == NOW.timestamp()
    assert found["drvm_job_last_duration_seconds", "backup nightly"] == 61.5
    assert ("drvm_job_last_success_timestamp_seconds", "gc") not in found
    assert found["drvm_notifications_failed_total", "mail"] == 3
    assert found["drvm_notifications_lost_total", "mail"] == 1
    assert found["drvm_notifications_pending", "mail"] == 2


def test_the_figures_of_a_fleet_without_end_have_one() -> None:
    rows = tuple(make_row(vm="x" * 5000, vm_uuid=f"u{number}") for number in range(MAX_VMS + 100))
    text = exposition(Figures(make_report(vms=rows))).decode()
    assert text.count("drvm_vm_points{") == MAX_VMS
    assert max(map(len, text.splitlines())) < 400


def test_a_hostile_name_breaks_no_line() -> None:
    row = make_row(vm='a"} 1\ndrvm_vm_points{vm="b\\')
    found = samples(Figures(make_report(vms=(row,))))
    assert [name for name, _ in found].count("drvm_vm_points") == 1


def test_there_is_something_to_scrape_before_the_first_look() -> None:
    found = samples(Figures(None))
    assert found["drvm_repository_reachable", ""] == 0
    assert [name for name, _ in found if name == "drvm_build_info"] == ["drvm_build_info"]


_NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(
    rf"(?P<name>{_NAME})(?:\{{(?P<labels>{_LABEL}(?:,{_LABEL})*)\}})? (?P<value>[-+0-9.e]+)"
)


def strictly(text: str) -> set[str]:
    """The series, by the rules of Prometheus' text format 0.0.4 and of promtool's linter."""
    assert text.endswith("\n")
    series: set[str] = set()
    told: dict[str, dict[str, str]] = {}
    family = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# "):
            _, kind, name, words = line.split(" ", 3)
            assert kind in ("HELP", "TYPE") and kind not in told.setdefault(name, {}), line
            told[name][kind] = words
            family = name
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match["name"] == family, "a family's lines stand together, behind its words"
        assert set(told[family]) == {"HELP", "TYPE"} and told[family]["HELP"].endswith(".")
        counter = told[family]["TYPE"] == "counter"
        assert counter == family.endswith("_total") and (counter or told[family]["TYPE"] == "gauge")
        assert re.fullmatch("[a-z][a-z_]*", family) and "__" not in family
        float(match["value"])
        key = f"{family}{{{match['labels']}}}"
        assert key not in series, f"twice: {key}"
        series.add(key)
    return series


@given(names=st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_whatever_vms_are_called_the_exposition_keeps_the_formats_rules(names: list[str]) -> None:
    rows = tuple(make_row(vm=name, vm_uuid=f"u{n}") for n, name in enumerate(names))
    drills = [make_drill(id=row.vm_uuid, vm=row.vm, vm_uuid=row.vm_uuid) for row in rows]
    sample = StorageSample(taken=NOW, stored_bytes=1, protected_bytes=1, points_bytes=1, points=1)
    figures = Figures(
        make_report(*drills, vms=rows, storage=(sample,)),
        looked=NOW,
        jobs=[JobFigures("backup nightly", 1, 2, NOW, 3.5), JobFigures("gc")],
        ways=[WayFigures("mail", 1, 2, 3)],
    )
    series = strictly(exposition(figures).decode())
    assert sum(one.startswith("drvm_vm_points{") for one in series) == len(rows)
    assert len(series) == 11 * len(rows) + 15 + 2 * 2 + 2 + 3
