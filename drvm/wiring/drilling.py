"""Doing the drills that were planned: one after the other, or several at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from drvm.core.errors import DrvmError, Interrupted, PreflightFailed, RestoreError
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.threads import Threads
from drvm.drill.checks.base import Exports
from drvm.drill.disks import Disks, RestoredDisks, ServedDisks, VolumeDisks
from drvm.drill.group import GroupPlan
from drvm.drill.place import remember
from drvm.drill.plan import DrillPlan
from drvm.drill.run import run_drill, run_group
from drvm.drill.tools import Titled, Tools
from drvm.drill.turns import turn
from drvm.host.model import Host
from drvm.report.model import DrillResult, encode_drill
from drvm.repository.manifest import Manifest
from drvm.repository.select import select
from drvm.restore.served.server import Service
from drvm.restore.served.supervised import serving
from drvm.wiring.assembly import Wiring
from drvm.wiring.drills import Plan, sweep_drills
from drvm.wiring.serving import service_of


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of a plan: the results, and what went wrong where there are none, or where they
    could not be kept."""

    plan: Plan
    results: tuple[DrillResult, ...] = ()
    error: DrvmError | None = None

    @property
    def vms(self) -> tuple[str, ...]:
        return tuple(machine.vm for machine in _machines(self.plan))


def carry_out(wiring: Wiring, plan: Plan, progress: Progress, trace: Trace = no_trace) -> Carried:
    """Drill when there is room for it, and keep the results in the repository, passed or not.
    Raises ``Interrupted``; all that goes wrong else is this drill's own, and in what it gives."""
    try:
        results = _drilled(wiring, plan, progress, trace)
        _refuse_removed(wiring, results)
    except Interrupted:
        raise
    except (DrvmError, OSError) as error:
        return Carried(plan, error=_explained(error, f"{_title(plan)} could not be drilled"))
    return Carried(plan, results, _keep(wiring, results))


def carry_out_all(
    wiring: Wiring,
    plans: Sequence[Plan],
    progress: Progress,
    trace: Trace = no_trace,
    *,
    parallel: int = 1,
) -> list[Carried]:
    """What becomes of each, in their order, so many at once. An error ends that drill alone; an
    interrupt all of them, when each has taken down what it made."""
    parallel = min(parallel, len(plans))
    if len(plans) == 1:
        return [carry_out(wiring, plans[0], progress, trace)]
    if parallel <= 1:
        titled = [(plan, Titled(progress, _title(plan))) for plan in plans]
        return [carry_out(wiring, plan, own, trace) for plan, own in titled]
    end = threading.Event()
    shown = threading.Lock()

    def work(plan: Plan) -> Carried:
        with wiring.another() as own:
            return carry_out(own, plan, _Beside(progress, _title(plan), end, shown), trace)

    wiring.passphrase()  # asked for once, and here
    threads = Threads(parallel, "drill")
    try:
        return [future.result() for future in [threads.submit(work, plan) for plan in plans]]
    finally:
        end.set()
        threads.end()


def _drilled(
    wiring: Wiring, plan: Plan, progress: Progress, trace: Trace
) -> tuple[DrillResult, ...]:
    host = wiring.host(plan.uri)
    machines = _machines(plan)
    disks = _disks(wiring, host, machines[0], trace)
    tools = Tools(host, disks, wiring.clock, progress, trace, lambda point: _exports(wiring, point))
    sweep_drills(wiring, host)  # what can't be removed stays in doctor
    if machines[0].volumes is None:
        remember(wiring.drill_notes, machines[0].request.directory)
    with turn(host, machines, wiring.clock, progress):
        if isinstance(plan, GroupPlan):
            return run_group(plan, tools)
        return (run_drill(plan, tools),)


def _refuse_removed(wiring: Wiring, results: Sequence[DrillResult]) -> None:
    """What broke off as somebody removed the point meanwhile says nothing of the machine: neither
    it nor what waited for it in its group is a drill that failed. Raises ``RestoreError``."""
    for result in results:
        if result.ran and result.failure and _is_removed(wiring, result):
            raise RestoreError(
                f"point {result.point} of {result.vm} was removed while it was drilled, so nothing "
                f"is proven: {result.failure}",
                hint="drill again: the latest point is taken",
            )


def _is_removed(wiring: Wiring, result: DrillResult) -> bool:
    """False where the store does not tell: then the drill has failed as it says."""
    try:
        there = wiring.repository().points(result.vm_uuid).points
    except Interrupted:
        raise
    except DrvmError:
        return False
    return all(point.id != result.point for point in there)


def _keep(wiring: Wiring, results: Sequence[DrillResult]) -> DrvmError | None:
    """Each that can be; why one could not."""
    found = None
    for result in results:
        try:
            wiring.repository().drills.put(result.vm_uuid, result.id, encode_drill(result))
        except Interrupted:
            raise
        except (DrvmError, OSError) as error:
            verdict = "passed" if result.passed else "failed"
            words = f"the drill of {result.vm} {verdict}, and its result could not be kept"
            found = found or _explained(error, words)
    return found


def _explained(error: DrvmError | OSError, words: str) -> DrvmError:
    if isinstance(error, PreflightFailed):
        return error
    if isinstance(error, DrvmError):
        error.message = f"{words}: {error.message}"
        return error
    where = f" ({error.filename})" if error.filename is not None else ""
    reason = (error.strerror or type(error).__name__).lower()
    return DrvmError(f"{words}: {reason}{where}", hint="make room there, then drill again")


def _machines(plan: Plan) -> tuple[DrillPlan, ...]:
    return plan.machines if isinstance(plan, GroupPlan) else (plan,)


def _title(plan: Plan) -> str:
    return "the group" if isinstance(plan, GroupPlan) else plan.vm


def _disks(wiring: Wiring, host: Host, plan: DrillPlan, trace: Trace) -> Disks:
    if plan.volumes is not None:
        return VolumeDisks(host, wiring.volume_restorer(host))
    if plan.request.method == "boot":
        return ServedDisks(
            host,
            wiring.image_tool(),
            lambda point: _service(wiring, point),
            wiring.processes,
            wiring.clock,
        )
    return RestoredDisks(wiring.restorer(trace))


def _service(wiring: Wiring, manifest: Manifest) -> Service:
    """Of a boot: what it reads is noted, so that the next one finds it at once."""
    point = select(wiring.repository().points(manifest.vm_uuid).points, manifest.id)
    return service_of(wiring, point, boot=True)


@contextlib.contextmanager
def _exports(wiring: Wiring, manifest: Manifest) -> Iterator[Exports]:
    point = select(wiring.repository().points(manifest.vm_uuid).points, manifest.id)
    service = service_of(wiring, point)
    with serving(wiring.processes, wiring.clock, service) as served:
        yield Exports(served.socket, service.disks)


@dataclass(frozen=True, slots=True)
class _Beside:
    """Implements ``Progress``: of one of several at once. Bytes of different drills don't add up,
    so only the stages are shown."""

    progress: Progress
    title: str
    end: threading.Event = field(repr=False)
    shown: threading.Lock = field(repr=False)

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self._heed()
        with self.shown:
            self.progress.stage(f"{self.title}: {title}")

    def advance(self, done_bytes: int) -> None:
        self._heed()

    def _heed(self) -> None:
        if self.end.is_set():
            raise Interrupted("the drills were interrupted")
