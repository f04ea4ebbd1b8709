"""What a monitoring system draws and judges: figures in Prometheus' text format.

Labels are bounded: VMs of the fleet, jobs and ways of the config; never what somebody outside may
choose at will, but the names of VMs, and of those the first ``MAX_VMS``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from drvm import __version__
from drvm.core.text import printable
from drvm.report.attention import Concern, ConcernKind, Severity
from drvm.report.input import ReportInput, VmRow

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_VMS = 2000
MAX_JOBS = 500
MAX_LABEL_CHARS = 200


@dataclass(frozen=True, slots=True)
class JobFigures:
    """A job over all of its VMs. ``failures``: counted since this host's record of runs began."""

    job: str
    running: int = 0
    failures: int = 0
    last_success: dt.datetime | None = None
    last_duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class WayFigures:
    name: str
    failed: int
    lost: int
    pending: int


@dataclass(frozen=True, slots=True)
class Figures:
    """``report``: of the last look that could look, ``None`` before there was one; ``reachable``:
    whether the last one could."""

    report: ReportInput | None
    concerns: Sequence[Concern] = ()
    reachable: bool = False
    looked: dt.datetime | None = None
    jobs: Sequence[JobFigures] = ()
    ways: Sequence[WayFigures] = ()


def exposition(figures: Figures) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Figures(figures))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield _gauge("build_info", "Which drvm this is.", ["version"], [([__version__], 1)])
        yield _gauge("repository_reachable", "Whether the last look could read the repository.", [],
                     [([], figures.reachable)])  # fmt: skip
        yield _gauge("last_look_timestamp_seconds", "When the daemon last looked.", [],
                     _known([], _stamp(figures.looked)))  # fmt: skip
        yield from _concerns(figures.concerns)
        if figures.report is not None:
            yield from _vms(figures.report)
            yield from _repository(figures.report)
        yield from _jobs(figures.jobs[:MAX_JOBS])
        yield from _ways(figures.ways)


def _concerns(concerns: Sequence[Concern]) -> Iterator[Metric]:
    counted = {
        (kind, severity): 0 for kind in get_args(ConcernKind) for severity in get_args(Severity)
    }
    for concern in concerns:
        counted[concern.kind, concern.severity] += 1
    rows = [([kind, severity], count) for (kind, severity), count in counted.items()]
    yield _gauge("concerns", "What is wrong now, as drvm status says.", ["kind", "severity"], rows)


def _vms(report: ReportInput) -> Iterator[Metric]:
    rows = report.vms[:MAX_VMS]
    here = [row for row in rows if row.machine and not row.gone]

    def of(names: Sequence[VmRow], value: str) -> list[tuple[list[str], float]]:
        return [
            ([_label(row.vm), row.vm_uuid], found)
            for row in names
            if (found := _vm_value(report, row, value)) is not None
        ]

    for value, text in _VM_FIGURES.items():
        names = rows if value in ("points", "stored_bytes") else here
        yield _gauge(f"vm_{value}", text, ["vm", "uuid"], of(names, value))


_VM_FIGURES = {
    "protected": "Whether a policy covers the VM.",
    "points": "Good points of the VM.",
    "stored_bytes": "What the VM's points added to the repository.",
    "disk_bytes": "The disks of the VM's last point, as large as the guest sees them.",
    "last_point_timestamp_seconds": "The instant that the VM's last good point shows.",
    "rpo_target_seconds": "How old the last good point may get.",
    "rpo_met": "Whether the last good point is young enough.",
    "last_drill_timestamp_seconds": "When the VM's last drill began.",
    "last_drill_passed": "Whether it passed.",
    "last_drill_rto_seconds": "From the first byte to all checks passed, of the last drill.",
    "rto_target_seconds": "How long that may take.",
}


def _vm_value(report: ReportInput, row: VmRow, value: str) -> float | None:
    drills = report.drills_of(row.vm_uuid)
    drill = drills[0] if drills else None
    match value:
        case "protected":
            return None if row.doubt and row.policy is None else row.policy is not None
        case "points":
            return row.points
        case "stored_bytes":
            return row.stored_bytes
        case "disk_bytes":
            return row.disk_bytes if row.last_point is not None else None
        case "last_point_timestamp_seconds":
            return _stamp(row.last_point_created)
        case "rpo_target_seconds":
            return row.rpo_target_seconds
        case "rpo_met":
            return row.rpo_state == "met" if row.rpo_target_seconds is not None else None
        case "last_drill_timestamp_seconds":
            return _stamp(drill.started) if drill is not None else None
        case "last_drill_passed":
            return drill.passed if drill is not None else None
        case "last_drill_rto_seconds":
            return drill.rto_seconds if drill is not None else None
        case "rto_target_seconds":
            return drill.rto_target_seconds if drill is not None else None
    raise AssertionError(value)


def _repository(report: ReportInput) -> Iterator[Metric]:
    stored = float(report.storage[-1].stored_bytes) if report.storage else None
    text = "All packs of the repository."
    yield _gauge("repository_stored_bytes", text, [], _known([], stored))
    away = len(report.unreachable)
    yield _gauge("hosts_unreachable", "KVM hosts that did not answer.", [], [([], away)])


def _jobs(jobs: Sequence[JobFigures]) -> Iterator[Metric]:
    names = [[_label(job.job)] for job in jobs]
    pairs = list(zip(names, jobs, strict=True))
    yield _gauge("job_running", "Runs of the job that are under way.", ["job"],
                 [(name, job.running) for name, job in pairs])  # fmt: skip
    yield _gauge("job_last_success_timestamp_seconds", "When its last good run began.", ["job"],
                 [row for name, job in pairs
                  for row in _known(name, _stamp(job.last_success))])  # fmt: skip
    yield _gauge("job_last_duration_seconds", "How long its last run took.", ["job"],
                 [row for name, job in pairs
                  for row in _known(name, job.last_duration_s)])  # fmt: skip
    yield _counter("job_failures", "Runs of the job that failed, retries among them.", ["job"],
                   [(name, job.failures) for name, job in pairs])  # fmt: skip


def _ways(ways: Sequence[WayFigures]) -> Iterator[Metric]:
    yield _counter("notifications_failed", "Attempts to tell that failed.", ["way"],
                   [([way.name], way.failed) for way in ways])  # fmt: skip
    yield _counter("notifications_lost", "Messages that were given up.", ["way"],
                   [([way.name], way.lost) for way in ways])  # fmt: skip
    yield _gauge("notifications_pending", "Messages that are still to be told.", ["way"],
                 [([way.name], way.pending) for way in ways])  # fmt: skip


def _gauge(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    family = GaugeMetricFamily(f"drvm_{name}", text, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), float(value))
    return family


def _counter(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    """Its series end in ``_total``."""
    family = CounterMetricFamily(f"drvm_{name}", text, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), float(value))
    return family


def _known(labels: list[str], value: float | None) -> list[tuple[list[str], float]]:
    return [] if value is None else [(labels, value)]


def _stamp(moment: dt.datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def _label(text: str) -> str:
    return printable(text, MAX_LABEL_CHARS)
