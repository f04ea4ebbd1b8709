"""What the daemon tells its dashboard, and does for it."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from drvm.config.load import DEFAULT_PATH
from drvm.core.clock import Clock, parse_rfc3339
from drvm.core.errors import Locked, UsageError
from drvm.daemon.duties import Duties
from drvm.daemon.gathering import Gathering
from drvm.daemon.loop import Service
from drvm.daemon.task import Key, Task
from drvm.report.input import ReportInput
from drvm.report.model import DrillResult
from drvm.repository.points import Point
from drvm.runs.log import RunLog
from drvm.runs.model import Run
from drvm.web.source import ACTIONS, Action, PointRow
from drvm.wiring.reporting import drill_of

SAME_CLICK_S = 5.0
"""What is asked for again so soon is one thing: a page sends a form twice on a double click."""


class DaemonSource:
    """Fulfils ``Source``. ``duties``, ``gathering``, ``asking`` and ``metrics``: those of the
    config in force. ``asking`` is for the repository alone: the points of a VM, and how to get it
    back, must not wait for a host that does not answer."""

    def __init__(
        self,
        service: Service,
        history: RunLog,
        duties: Callable[[], Duties],
        gathering: Callable[[], Gathering],
        asking: Callable[[], Gathering],
        metrics: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._asking = asking
        self._clock = clock
        self._starting = threading.Lock()
        self._started: dict[Key, tuple[float, str]] = {}
        self._service = service
        self._history = history
        self._duties = duties
        self._gathering = gathering
        self._metrics = metrics

    def report(self) -> ReportInput:
        return self._gathering().report()

    def running(self) -> Sequence[Run]:
        """Those of other processes of this host, too."""
        found = {run.id: run for run in self._history.running()}
        found |= {run.id: run for run in self._service.running()}
        return sorted(found.values(), key=lambda run: (run.started, run.id))

    def recent(self, limit: int, vm_uuid: str | None = None) -> Sequence[Run]:
        return self._history.recent(limit, vm_uuid)

    def points(self, vm_uuid: str) -> Sequence[PointRow]:
        listing = self._asking().ask(lambda wiring: wiring.repository().points(vm_uuid))
        return [_row(point) for point in reversed(listing.points)]

    def picture(self, drill: DrillResult) -> bytes | None:
        found = self._asking().ask(lambda wiring: drill_of(wiring, drill.id))
        return found.screenshot_png if found is not None else None

    def may_start(self, vm_uuid: str) -> Sequence[Action]:
        return [action for action in ACTIONS if self._task(action, vm_uuid) is not None]

    def start(self, action: Action, vm_uuid: str) -> str:
        task = self._duties().asked(action, vm_uuid)
        with self._starting:
            now_s = self._clock.monotonic_s()
            lately = {
                key: (at_s, run_id)
                for key, (at_s, run_id) in self._started.items()
                if now_s - at_s < SAME_CLICK_S
            }
            if task.key in lately:
                return lately[task.key][1]
            if any((run.job, run.vm_uuid) == task.key for run in self._service.running()):
                raise Locked(f"{task.job}: {task.vm} runs already", hint="wait until it has ended")
            run_id = self._service.ask(task)
            self._started = {**lately, task.key: (now_s, run_id)}
            return run_id

    def metrics(self) -> str:
        return self._metrics()

    def _task(self, action: Action, vm_uuid: str) -> Task | None:
        try:
            return self._duties().asked(action, vm_uuid)
        except UsageError:
            return None


def command_of(config: Path | None) -> str:
    """How drvm is called on this host with this config: for commands to copy."""
    if config is None or config == DEFAULT_PATH:
        return "drvm"
    return f"drvm --config {shlex.quote(str(config.absolute()))}"


def _row(point: Point) -> PointRow:
    manifest = point.manifest
    return PointRow(
        id=manifest.id,
        vm=manifest.vm,
        created=parse_rfc3339(manifest.created),
        consistency=manifest.consistency,
        engine=manifest.engine,
        disks=len(manifest.disks),
        disk_bytes=sum(disk.size_bytes for disk in manifest.disks),
        stored_bytes=manifest.stored_bytes,
        warnings=manifest.warnings,
    )
