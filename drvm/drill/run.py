"""Doing what a plan says, measuring it, and leaving nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from drvm import __version__
from drvm.core.clock import Clock
from drvm.core.errors import DrvmError
from drvm.core.files import write_durably
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.text import printable
from drvm.drill import statements
from drvm.drill.checks.base import Checker, Exports, GuestUnderTest, Wire, in_order
from drvm.drill.place import drill_uuid, made, tear_down
from drvm.drill.plan import DrillPlan, network_xml
from drvm.drill.ways import way_into
from drvm.host.model import Domain, Host
from drvm.host.tpm import write_state
from drvm.report.model import MAX_DETAIL_CHARS, CheckResult, DrillResult
from drvm.restore.targets.images import PlannedImage

_MAX_PICTURE_BYTES = 8 * 1024 * 1024
_MAX_SHORT_CHARS = 300
_MAX_POINT_WARNINGS = 20


Disks = Callable[[], contextlib.AbstractContextManager[Exports]]
"""Serves the point's disks, read-only."""


class Restorer(Protocol):
    def restore(self, image: PlannedImage, progress: Progress) -> int:
        """See ``ImageRestorer``."""
        ...


def run_drill(
    plan: DrillPlan,
    host: Host,
    restorer: Restorer,
    clock: Clock,
    progress: Progress,
    trace: Trace = no_trace,
    disks: Disks | None = None,
) -> DrillResult:
    """Restore into isolation, boot, check, tear down.

    A restore that breaks off, a guest that does not start and a check that does not pass are a
    result with ``passed`` false. It is passed when every check is: the targets for RTO and RPO
    are judged beside it. The RTO is the time of planning and of everything from the call of this
    function until the last check passed.

    Everything made is removed also when this is interrupted; what could not be removed is a
    warning. A SIGKILL ends the machine (AUTODESTROY) and leaves directory and network, which
    ``leftovers`` finds.
    """
    return _Drill(plan, host, restorer, clock, progress, trace, disks).run()


class _Drill:
    """One drill, and what is known of it so far."""

    def __init__(
        self,
        plan: DrillPlan,
        host: Host,
        restorer: Restorer,
        clock: Clock,
        progress: Progress,
        trace: Trace,
        disks: Disks | None,
    ) -> None:
        self._plan = plan
        self._host = host
        self._restorer = restorer
        self._clock = clock
        self._progress = progress
        self._trace = trace
        self._disks = disks
        self._started_s = clock.monotonic_s()
        self._phases = {"plan": plan.plan_s}
        self._checks: list[CheckResult] = []
        self._proven: list[str] = []
        self._warnings = [
            f"said when the point was made: {line}"
            for line in plan.request.point.warnings[:_MAX_POINT_WARNINGS]
        ]
        self._failure = ""
        self._rto_s: float | None = None
        self._data_bytes = 0
        self._picture: bytes | None = None

    def run(self) -> DrillResult:
        try:
            with made(self._plan.directory, self._clock):
                try:
                    self._trace("directory-made")
                    with contextlib.ExitStack() as ways:
                        self._recover(ways)
                finally:
                    self._progress.stage("tearing the drill down")
                    self._warnings += tear_down(self._host, self._plan.directory)
                    self._trace("torn-down")
        except (DrvmError, OSError) as problem:
            self._fail(problem)
        return self._result()

    def _recover(self, ways: contextlib.ExitStack) -> None:
        with self._phase("data"):
            for image in self._plan.images:
                self._data_bytes += self._restorer.restore(image, self._progress)
                self._trace(f"restored {image.disk.target}")
            if self._plan.nvram is not None:
                write_durably(self._plan.nvram_path, self._plan.nvram)
            self._place_tpm_state()
        self._proven.append(statements.data_proven(self._plan, self._data_bytes))
        with self._phase("define"):
            self._progress.stage("starting the machine in isolation")
            if self._plan.network is not None:
                self._host.create_network(network_xml(self._plan.network))
                self._trace("network-made")
            wire = ways.enter_context(self._way_in())
            domain = self._host.start_transient(self._plan.definition.xml)
            self._trace("machine-started")
        self._proven.append(statements.started_proven(self._plan))
        try:
            self._check(domain, wire)
        except DrvmError as problem:
            self._fail(problem)
        self._trace("checks-ended")
        self._take_picture(domain)

    def _way_in(self) -> contextlib.AbstractContextManager[Wire | None]:
        plan = self._plan
        return way_into(
            self._host, plan.network, plan.id, plan.cards, plan.request.checks, self._trace
        )

    def _place_tpm_state(self) -> None:
        places = self._host.places
        if places is not None and self._plan.tpm:
            write_state(places.tpm, drill_uuid(self._plan.name), self._plan.tpm)
            self._trace("tpm-state-placed")

    def _check(self, domain: Domain, wire: Wire | None) -> None:
        """Those of the disks alone come last: the machine is up before, which is what the RTO
        counts."""
        request, plan = self._plan.request, self._plan
        guest = GuestUnderTest(
            domain,
            vm=request.point.vm,
            point=request.point.id,
            drill=plan.id,
            cards=plan.cards,
            wire=wire,
            console=plan.console,
            directory=plan.directory,
            disks=self._disks,
        )
        checker = Checker(guest, request.boot_timeout_s, self._clock)
        up_s = 0.0
        for number, check in enumerate(in_order(request.checks)):
            self._progress.stage(f"checking: {printable(check.name, 60)}")
            with self._phase("checks" if number else "boot"):
                result = checker.run(check)
            self._checks.append(result)
            if result.passed:
                self._proven.append(check.proves)
            if "disks" not in check.needs:
                up_s = self._clock.monotonic_s() - self._started_s
        if all(result.passed for result in self._checks):
            self._rto_s = self._plan.plan_s + up_s

    def _take_picture(self, domain: Domain) -> None:
        """Always, and most useful after a check that failed."""
        try:
            picture = domain.screenshot()
        except DrvmError as problem:
            self._warnings.append(f"there is no picture of the screen: {problem.message}")
            return
        if len(picture) > _MAX_PICTURE_BYTES:
            self._warnings.append(f"the picture of the screen has {len(picture)} bytes: left out")
            return
        self._picture = picture

    def _fail(self, problem: DrvmError | OSError) -> None:
        hint = problem.hint if isinstance(problem, DrvmError) else ""
        self._failure = f"{problem}{': ' if hint else ''}{hint}"

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Counted also where it fails: that is where the time went."""
        begun_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            passed_s = self._clock.monotonic_s() - begun_s
            self._phases[name] = self._phases.get(name, 0.0) + passed_s

    def _result(self) -> DrillResult:
        plan = self._plan
        point = plan.request.point
        age_s = (plan.started - plan.created).total_seconds()
        if age_s < 0:
            self._warnings.append("the point is from the future: a clock is wrong, so is the RPO")
        return DrillResult(
            id=plan.id,
            vm=_short(point.vm),
            vm_uuid=point.vm_uuid,
            point=point.id,
            point_created=plan.created,
            consistency=point.consistency,
            started=plan.started,
            finished=self._clock.now(),
            passed=self._rto_s is not None and not self._failure,
            rto_seconds=None if self._rto_s is None else round(self._rto_s, 3),
            rto_target_seconds=plan.request.rto_target_s,
            rpo_seconds=round(max(0.0, age_s), 3),
            rpo_target_seconds=plan.request.rpo_target_s,
            phases={name: round(seconds, 3) for name, seconds in self._phases.items()},
            checks=tuple(self._checks),
            proven=_lines(self._proven, 50),
            not_proven=_lines(statements.not_proven(plan), 50),
            warnings=_lines(self._warnings, 100),
            failure=_long(self._failure),
            host=_short(plan.host),
            drvm_version=__version__,
            data_bytes=self._data_bytes,
            screenshot_png=self._picture,
        )


def _short(text: str) -> str:
    return printable(text, _MAX_SHORT_CHARS)[:_MAX_SHORT_CHARS]


def _long(text: str) -> str:
    return printable(text, MAX_DETAIL_CHARS)[: 2 * MAX_DETAIL_CHARS]


def _lines(lines: list[str] | tuple[str, ...], most: int) -> tuple[str, ...]:
    return tuple(_long(line) for line in lines[:most])
