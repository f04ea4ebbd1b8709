"""One machine of a drill, from its directory to its removal, and what is known of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from drvm import __version__
from drvm.core.errors import DrvmError, HostError, Interrupted, UnknownVm
from drvm.core.text import printable
from drvm.drill import statements
from drvm.drill.checks.base import Check, Checker, GuestUnderTest, Wire, is_scan, patiently
from drvm.drill.place import Note, drill_uuid, made, tear_down
from drvm.drill.plan import DrillPlan, network_xml
from drvm.drill.room import watched
from drvm.drill.tools import Heeding, Member, Tools
from drvm.drill.ways import way_into
from drvm.host.model import Domain
from drvm.host.tpm import write_state
from drvm.report.model import MAX_ABSENT, MAX_DETAIL_CHARS, SCAN, CheckResult, DrillResult
from drvm.restore.served.server import last_words

_MAX_PICTURE_BYTES = 8 * 1024 * 1024
_MAX_SHORT_CHARS = 300
_MAX_POINT_WARNINGS = 20


class Machine:
    """``begun_s``: on the monotonic clock, when the drill that it is part of was asked for, but
    for the ``plan_s`` that planning took. As a context: whatever was made of it is gone behind it.
    """

    def __init__(
        self,
        plan: DrillPlan,
        tools: Tools,
        *,
        begun_s: float,
        plan_s: float,
        member: Member | None = None,
    ) -> None:
        self.plan = plan
        self._tools = tools
        self._begun_s = begun_s
        self._plan_s = plan_s
        self._member = member
        self._clock = Heeding(tools.clock, tools.progress)
        self._up = ExitStack()
        self._is_gone = True
        self._domain: Domain | None = None
        self._checker: Checker | None = None
        self._started_s = begun_s
        self._up_s: float | None = None
        self._phases = {"plan": plan_s}
        self._checks: list[CheckResult] = []
        self._proven: list[str] = []
        self._warnings = [
            f"said when the point was made: {line}"
            for line in plan.request.point.warnings[:_MAX_POINT_WARNINGS]
        ]
        self._failure = ""
        self._ended_s: float | None = None
        self._data_bytes = 0
        self._log: Path | None = None
        self._picture: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with contextlib.suppress(Interrupted):
            self._tools.progress.stage("tearing the drill down")
        try:
            self._up.close()
        except Interrupted:
            raise
        except DrvmError as problem:
            self._warnings.append(f"not all of it could be removed: {problem.message}")
        self._tools.trace("torn-down")

    @property
    def rto_s(self) -> float | None:
        """Until all of its checks but scans had passed; ``None`` where anything failed so far."""
        if self._up_s is None or self._failure or not all(check.passed for check in self._checks):
            return None
        return self._plan_s + self._up_s - self._begun_s

    @property
    def passed(self) -> bool:
        return self.rto_s is not None

    @property
    def was_begun(self) -> bool:
        return self._ended_s is not None

    def warn(self, line: str) -> None:
        self._warnings.append(line)

    def _fail(self, words: str) -> None:
        self._failure = self._failure or words  # the first is the cause of others

    def bring_up(self, wire: Wire | None = None) -> None:
        """Until it is started. What breaks off is noted, as its failure. ``wire``: into its group's
        network, which is there; its own is made here."""
        with self._noted_failure():
            plan, tools = self.plan, self._tools
            with self._phase("data"):
                self._make_place()
                entered = tools.disks.prepared(plan, tools.progress, tools.trace)
                prepared = self._up.enter_context(entered)
                self._data_bytes, self._log = prepared.written_bytes, prepared.log
                self._up.callback(self._tear_down)  # before what its disks need ends
                self._place_tpm_state()
            self._proven.append(statements.data_proven(plan, self._data_bytes))
            with self._phase("define"):
                tools.progress.stage("starting the machine in isolation")
                if plan.network == plan.name:
                    tools.host.create_network(network_xml(plan.network))
                    tools.trace("network-made")
                    way = plan.network, plan.id, plan.cards, plan.checks, tools.trace
                    wire = self._up.enter_context(way_into(tools.host, *way))
                self._domain = domain = tools.host.start_transient(plan.definition.xml)
                tools.trace("machine-started")
            if plan.volumes is None:
                self._up.enter_context(watched(domain, plan.directory, self._fail, tools.free))
            self._proven.append(statements.started_proven(plan))
            guest = self._guest(domain, wire)
            self._checker = Checker(guest, plan.request.boot_timeout_s, self._clock)
        self._started_s = tools.clock.monotonic_s()

    def check(self) -> None:
        """All its checks but those of the disks alone, and a picture of its screen, where it was
        started."""
        if self._domain is None or self._checker is None:
            return
        with self._noted_failure():
            try:
                self._check(self._checker, [c for c in self.plan.checks if not is_scan(c)])
                self._up_s = self._tools.clock.monotonic_s()
                self._tools.trace("checks-ended")
                self._look_at_disks(self._domain)
            finally:
                self._take_picture(self._domain)

    def scan(self) -> None:
        """When all machines of the drill are up: whether this one still is; then the checks of the
        disks alone, which may take hours, and which the RTO does not count."""
        if self._domain is None or self._checker is None or self._up_s is None:
            return
        with self._noted_failure():
            self._look_at_disks(self._domain)
        with self._noted_failure():
            self._check(self._checker, [c for c in self.plan.checks if is_scan(c)])

    def _guest(self, domain: Domain, wire: Wire | None) -> GuestUnderTest:
        plan, exports = self.plan, self._tools.exports
        return GuestUnderTest(
            domain,
            vm=plan.vm,
            point=plan.request.point.id,
            drill=plan.id,
            cards=plan.cards,
            wire=wire,
            console=plan.console,
            directory=plan.directory,
            disks=None if exports is None else lambda: exports(plan.request.point),
            beat=lambda: self._tools.progress.advance(0),
        )

    def _check(self, checker: Checker, checks: list[Check]) -> None:
        clock = self._tools.clock
        since_s = self._started_s if not self._checks else clock.monotonic_s()
        for check in checks:
            self._tools.progress.stage(f"checking: {printable(check.name, 60)}")
            phase = SCAN if is_scan(check) else "checks" if self._checks else "boot"
            try:
                result = checker.run(check)
            finally:
                now_s = clock.monotonic_s()
                self._add(phase, now_s - since_s)
                since_s = now_s
            self._checks.append(result)
            if result.passed:
                self._proven.append(check.proves)

    def _look_at_disks(self, domain: Domain) -> None:
        """A guest that QEMU stopped, as its disks failed, is not recovered, whatever it said
        before; and where it said nothing, that is why. Raises ``HostError``."""
        try:
            stopped = patiently(domain.stopped_by_disks, self._clock)
        except UnknownVm:
            raise HostError("it had ended by itself when its checks were over") from None
        if stopped:
            names = ", ".join(sorted(stopped))
            where = f"is there room in {self.plan.request.directory}?"
            why = where if self._log is None else f"its server said: {last_words(self._log)}"
            raise HostError(f"it was stopped, as {names} could not be read or written: {why}")

    def _make_place(self) -> None:
        plan = self.plan
        note = Note(self._tools.host.uri)
        if plan.volumes is not None:
            note = Note(note.uri, plan.volumes.pool, plan.volumes.token)
        self._up.enter_context(made(plan.directory, note, self._tools.clock))
        self._is_gone = False
        self._up.callback(self._tear_down)
        self._tools.trace("directory-made")

    def _tear_down(self) -> None:
        if not self._is_gone:
            tools = self._tools
            self._warnings += tear_down(tools.host, self.plan.directory, tools.trace, tools.clock)
            self._is_gone = True

    def _place_tpm_state(self) -> None:
        """libvirt's place for it, which only ``tear_down`` and what finds leftovers empty again."""
        places = self._tools.host.places
        if places is None or not self.plan.tpm:
            return
        write_state(places.tpm, drill_uuid(self.plan.name), self.plan.tpm)
        self._tools.trace("tpm-state-placed")

    def _take_picture(self, domain: Domain) -> None:
        """Always, and most useful after a check that failed."""
        try:
            picture = domain.screenshot()
        except Interrupted:
            raise
        except DrvmError as problem:
            self._warnings.append(f"there is no picture of the screen: {problem.message}")
            return
        if len(picture) > _MAX_PICTURE_BYTES:
            self._warnings.append(f"the picture of the screen has {len(picture)} bytes: left out")
            return
        self._picture = picture

    @contextlib.contextmanager
    def _noted_failure(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except (DrvmError, OSError) as problem:
            hint = problem.hint if isinstance(problem, DrvmError) else ""
            self._fail(f"{problem}{': ' if hint else ''}{hint}")
        finally:
            self._ended_s = self._tools.clock.monotonic_s()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Counted also where it fails: that is where the time went."""
        begun_s = self._tools.clock.monotonic_s()
        try:
            yield
        finally:
            self._add(name, self._tools.clock.monotonic_s() - begun_s)

    def _add(self, phase: str, seconds: float) -> None:
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def result(self, *, group_rto_s: float | None = None, not_run: str = "") -> DrillResult:
        """``not_run``: why it was not brought up at all."""
        plan, member = self.plan, self._member
        point = plan.request.point
        rto_s = None if not_run else self.rto_s
        age_s = (plan.started - plan.created).total_seconds()
        if age_s < 0:
            self._warnings.append("the point is from the future: a clock is wrong, so is the RPO")
        if member is not None and not not_run and self._ended_s is not None:
            known_s = sum(self._phases.values())
            until_s = self._plan_s + self._ended_s - self._begun_s
            if rto_s is not None:
                known_s, until_s = known_s - self._phases.get(SCAN, 0.0), rto_s
            self._add("waits", max(0.0, until_s - known_s))
        return DrillResult(
            id=plan.id,
            vm=_short(point.vm),
            vm_uuid=point.vm_uuid,
            point=point.id,
            point_created=plan.created,
            consistency=point.consistency,
            started=plan.started,
            finished=self._tools.clock.now(),
            passed=rto_s is not None,
            rto_seconds=_rounded(rto_s),
            rto_target_seconds=plan.request.rto_target_s,
            rpo_seconds=round(max(0.0, age_s), 3),
            rpo_target_seconds=plan.request.rpo_target_s,
            phases={name: round(seconds, 3) for name, seconds in self._phases.items()},
            checks=tuple(self._checks),
            proven=_lines(self._proven, 50),
            not_proven=_lines(statements.not_proven(plan, member), 50),
            warnings=_lines(self._warnings, 100),
            failure=_long(not_run or self._failure),
            host=_short(plan.host),
            drvm_version=__version__,
            data_bytes=self._data_bytes,
            screenshot_png=self._picture,
            method=plan.request.method,
            group=member.group if member is not None else "",
            stage=member.stage if member is not None else 0,
            group_rto_seconds=_rounded(group_rto_s),
            group_absent=_lines(member.absent, MAX_ABSENT) if member is not None else (),
            ran=not not_run,
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _short(text: str) -> str:
    return printable(text, _MAX_SHORT_CHARS)[:_MAX_SHORT_CHARS]


def _long(text: str) -> str:
    return printable(text, MAX_DETAIL_CHARS)[: 2 * MAX_DETAIL_CHARS]


def _lines(lines: list[str] | tuple[str, ...], most: int) -> tuple[str, ...]:
    return tuple(_long(line) for line in lines[:most])
