"""The pages, as HTML: each is made by the server alone, and whole without a script."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import jinja2
import msgspec

from drvm import __version__
from drvm.core.clock import Clock
from drvm.core.errors import DrvmError
from drvm.report.html import drill_view, environment
from drvm.report.input import RunRow, VmRow
from drvm.report.model import DrillResult
from drvm.runs.model import Run
from drvm.web import views
from drvm.web.latest import Latest, Snapshot
from drvm.web.live import Look
from drvm.web.source import ACTIONS, Source

MAX_RUNS = 200
MAX_RUNS_OF_VM = 30
MAX_POINTS = 100
MAX_DRILLS = 6
MAX_RUNNING = 50
MAX_PICTURED = 2000


class NotThere(DrvmError):
    """What a path names is none of ours; it may have been."""


class Pages:
    """``command``: how drvm is called, for commands to copy."""

    def __init__(self, source: Source, latest: Latest, clock: Clock, command: str) -> None:
        self._source = source
        self._latest = latest
        self._clock = clock
        self._command = command
        self._ran: dict[str, frozenset[str]] = {}
        self._pictured: dict[str, bool] = {}
        self._templates = _templates()

    # -- what is known ------------------------------------------------------------------------
    def snapshot(self) -> Snapshot:
        return self._latest.get()

    def expire(self) -> None:
        self._latest.expire()

    def known_vm(self, uuid: str) -> VmRow:
        """Raises ``NotThere``."""
        for row in self.snapshot().report.vms:
            if row.vm_uuid == uuid:
                return row
        raise NotThere("no VM is known by this address", hint="it may be gone: see the overview")

    def known_drill(self, drill_id: str) -> DrillResult:
        for drill in self.snapshot().report.drills:
            if drill.id == drill_id:
                return drill
        raise NotThere("no drill is known by this address", hint="see the VM's page")

    def picture(self, drill_id: str) -> bytes:
        drill = self.known_drill(drill_id)
        picture = self._picture_of(drill)
        if picture is None:
            raise NotThere("this drill has no picture")
        return picture

    def look(self, vm_uuid: str) -> Look:
        """For the streams: errors leave things as they are shown."""
        runs = self._runs_now(vm_uuid)
        ids = frozenset(run.id for run in runs)
        if self._ran.get(vm_uuid, frozenset()) - ids:
            self.expire()  # something ended, and is in the report now
        self._ran = {vm_uuid: ids, **{k: v for k, v in self._ran.items() if k != vm_uuid}}
        try:
            version = str(self._latest.get(wait=False).version)
        except DrvmError:
            version = "none"
        html = self._render(
            "running.html.j2", running=self._views(runs[:MAX_RUNNING]), of_vm=vm_uuid
        )
        digest = hashlib.sha256("\0".join(sorted(ids)).encode()).hexdigest()[:16]
        return Look(html, f"{version}-{digest}")

    # -- pages --------------------------------------------------------------------------------
    def overview(self, csrf: str) -> str:
        return self._page(
            "overview.html.j2",
            csrf,
            self.snapshot(),
            running=self._running(""),
            of_vm="",
        )

    def vm(self, uuid: str, csrf: str, began: str) -> str:
        held = self.snapshot()
        row = self.known_vm(uuid)
        now = self._clock.now()
        points = self._source.points(uuid)
        drills = held.report.drills_of(uuid)
        return self._page(
            "vm.html.j2",
            csrf,
            held,
            row=row,
            last_drill=drills[0] if drills else None,
            concerns=held.concerns_of(uuid),
            actions=[action for action in ACTIONS if action in self._source.may_start(uuid)],
            began=next((action for action in ACTIONS if action == began), ""),
            running=self._running(uuid),
            of_vm=uuid,
            points=[
                views.point_view(
                    point, self._command, now, is_there=not row.gone, is_machine=row.machine
                )
                for point in points[:MAX_POINTS]
            ],
            points_left=max(0, len(points) - MAX_POINTS),
            growth=views.growth(points),
            stored_bytes=sum(point.stored_bytes for point in points),
            runs=self._finished(MAX_RUNS_OF_VM, uuid),
            drills=drills[:MAX_DRILLS],
            pictured={drill.id for drill in drills[:MAX_DRILLS] if self._has_picture(drill)},
            drills_left=max(0, len(drills) - MAX_DRILLS),
        )

    def runs(self, csrf: str, state: str) -> str:
        wished = state if state in views.STATES else ""
        runs = self._finished(MAX_RUNS)
        return self._page(
            "runs.html.j2",
            csrf,
            self.snapshot(),
            running=self._running(""),
            of_vm="",
            runs=[view for view in runs if wished in ("", view.run.state)],
            states=views.STATES,
            wished=wished,
            shown=MAX_RUNS,
        )

    def drill(self, drill_id: str, csrf: str) -> str:
        held = self.snapshot()
        drill = self.known_drill(drill_id)
        whole = msgspec.structs.replace(drill, screenshot_png=self._picture_of(drill))
        return self._page("drill.html.j2", csrf, held, item=drill_view(whole, "drill"), drill=drill)

    def login(self, problem: str = "") -> str:
        return self._render("login.html.j2", problem=problem, drvm_version=__version__)

    def problem(self, status: int, message: str, hint: str, csrf: str) -> str:
        return self._render(
            "problem.html.j2",
            status=status,
            message=message,
            hint=hint,
            csrf=csrf,
            drvm_version=__version__,
        )

    # -- parts --------------------------------------------------------------------------------
    def _runs_now(self, vm_uuid: str) -> list[Run]:
        return [run for run in self._source.running() if vm_uuid in ("", run.vm_uuid)]

    def _running(self, vm_uuid: str) -> list[views.RunView]:
        return self._views(self._runs_now(vm_uuid)[:MAX_RUNNING])

    def _finished(self, limit: int, vm_uuid: str | None = None) -> list[views.RunView]:
        return self._views(self._source.recent(limit, vm_uuid))

    def _views(self, runs: Iterable[Run | RunRow]) -> list[views.RunView]:
        now = self._clock.now()
        return [views.run_view(run, now) for run in runs]

    def _has_picture(self, drill: DrillResult) -> bool:
        """Drills never change, so each is asked for once."""
        if drill.id not in self._pictured:
            if len(self._pictured) >= MAX_PICTURED:
                self._pictured.clear()
            self._pictured[drill.id] = self._picture_of(drill) is not None
        return self._pictured[drill.id]

    def _picture_of(self, drill: DrillResult) -> bytes | None:
        return drill.screenshot_png or self._source.picture(drill)

    def _page(self, template: str, csrf: str, held: Snapshot, **values: Any) -> str:
        now = self._clock.now()
        return self._render(
            template,
            csrf=csrf,
            report=held.report,
            view=held.view,
            stale=held.problem,
            ago=functools.partial(views.ago, now=now),
            drvm_version=__version__,
            **values,
        )

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)


@functools.cache
def _templates() -> jinja2.Environment:
    return environment(jinja2.PackageLoader("drvm.web", "templates"))
