"""Jobs that the command line and the daemon share: take a point, finish what was left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drvm.backup.plan import BackupPlan, plan_backup
from drvm.backup.run import Backup, BackupResult
from drvm.config.model import PolicyConfig
from drvm.core.ids import new_point_id
from drvm.core.progress import Progress, Trace, no_trace
from drvm.drill.leftovers import Leftovers, find_leftovers, remove_leftovers
from drvm.host.model import Host
from drvm.snapshot.capture import CaptureRequest
from drvm.snapshot.choose import choose
from drvm.snapshot.imagefiles import ImageFile, ImageFilesEngine, machine_uuid
from drvm.snapshot.recovery import recover
from drvm.wiring.assembly import Wiring


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How one VM is captured: by its policy, changed by what somebody asked for."""

    exclude_disks: frozenset[str] = frozenset()
    require_filesystem: bool = False
    freeze_timeout_s: int = 5
    commit_bandwidth_mib_s: int = 0

    @staticmethod
    def of(policy: PolicyConfig | None, vm: str) -> BackupOptions:
        if policy is None:
            return BackupOptions()
        return BackupOptions(
            exclude_disks=policy.excluded_disks(vm),
            require_filesystem=policy.consistency == "filesystem",
            freeze_timeout_s=policy.freeze_timeout_s,
            commit_bandwidth_mib_s=policy.commit_bandwidth_mib_s or 0,
        )

    def request(self, vm: str) -> CaptureRequest:
        return CaptureRequest(
            vm=vm,
            point_id=new_point_id(),
            exclude_disks=self.exclude_disks,
            require_filesystem=self.require_filesystem,
            freeze_timeout_s=self.freeze_timeout_s,
            commit_bandwidth_mib_s=self.commit_bandwidth_mib_s,
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """Something that a killed process left. ``detail``: what was done, or what stands in the
    way where it is not ``ok``."""

    what: str
    ok: bool
    detail: str
    hint: str = ""


def plan_point(wiring: Wiring, vm: str, options: BackupOptions) -> BackupPlan:
    """Raises what ``take_point`` would raise before it touches anything."""
    host, domain = wiring.find(vm)
    points = wiring.repository().points(domain.uuid).points
    parent = points[-1] if points else None
    return plan_backup(wiring.parts(host), domain, options.request(domain.name), parent)


def take_point(
    wiring: Wiring,
    vm: str,
    options: BackupOptions,
    progress: Progress,
    trace: Trace = no_trace,
) -> BackupResult:
    """Back up one VM now. The repository is opened before the guest is looked at."""
    backup = _backup(wiring, progress, trace)
    host, domain = wiring.find(vm)
    engine = choose(wiring.parts(host, trace), domain.uuid).engine
    return backup.run(engine, options.request(domain.name), domain.uuid)


def take_image_point(
    wiring: Wiring, name: str, files: Sequence[ImageFile], progress: Progress
) -> BackupResult:
    """Back up image files that belong to no VM of a host, under ``name``."""
    backup = _backup(wiring, progress, no_trace)
    engine = ImageFilesEngine(wiring.image_tool(), wiring.processes, wiring.clock, files)
    request = CaptureRequest(vm=name, point_id=new_point_id())
    return backup.run(engine, request, machine_uuid(name))


def find_drill_leftovers(wiring: Wiring, host: Host) -> list[Leftovers]:
    return [find_leftovers(host, directory) for directory in wiring.drill_directories()]


def finish_leftovers(wiring: Wiring) -> list[Finished]:
    """Put every guest of the hosts back that a killed process left half-way, and remove what
    killed drills left. Raises what makes a whole host unreachable."""
    done: list[Finished] = []
    for host in wiring.hosts():
        for recovered in recover(wiring.parts(host)):
            words = recovered.problem or "; ".join(recovered.steps)
            done.append(Finished(recovered.vm_name, not recovered.problem, words, recovered.hint))
        for found in find_drill_leftovers(wiring, host):
            for removed in remove_leftovers(host, found):
                words = "; ".join(removed.problems) or "removed"
                done.append(Finished(str(removed.directory), not removed.problems, words))
    return done


def _backup(wiring: Wiring, progress: Progress, trace: Trace) -> Backup:
    return Backup(
        wiring.repository(),
        writer=wiring.writer,
        level=wiring.level,
        clock=wiring.clock,
        progress=progress,
        trace=trace,
    )
