"""Jobs that the command line and the daemon share: take a point, finish leftovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drvm.backup.plan import BackupPlan, plan_backup
from drvm.backup.run import Backup, BackupResult
from drvm.config.policies import PolicyConfig
from drvm.core.errors import DrvmError, Interrupted, UsageError
from drvm.core.findings import Finding
from drvm.core.ids import new_point_id
from drvm.core.progress import Progress, Trace, no_trace
from drvm.host.disks import ImageInfo
from drvm.host.model import Host
from drvm.snapshot import mountpoints
from drvm.snapshot.between import Stood, fold_by_hand, fold_where_short, listed
from drvm.snapshot.capture import CaptureRequest, ChangedBlocks, Engine, EngineWish
from drvm.snapshot.choose import choose_for
from drvm.snapshot.imagefiles import ImageFile, ImageFilesEngine, machine_uuid
from drvm.snapshot.imported import Import, ImportEngine
from drvm.snapshot.journal import Journal
from drvm.snapshot.mountpoints import MountPoints
from drvm.snapshot.recovery import Recovered, recover
from drvm.wiring.assembly import Wiring
from drvm.wiring.drills import drilled_elsewhere, if_gone, sweep_drills
from drvm.wiring.instant import sweep_boots
from drvm.wiring.probing import refuse_second_writer
from drvm.wiring.selection import policy_of_name


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How one VM is captured: by its policy, changed by what somebody asked for."""

    exclude_disks: frozenset[str] = frozenset()
    require_filesystem: bool = False
    freeze_timeout_s: int = 5
    commit_bandwidth_mib_s: int = 0
    read_bandwidth_mib_s: int = 0
    changed_blocks: ChangedBlocks = "checkpoint"
    freeze: MountPoints = mountpoints.ALL
    engine: EngineWish = "auto"
    memory: bool = False

    @staticmethod
    def of(policy: PolicyConfig | None, vm: str) -> BackupOptions:
        if policy is None:
            return BackupOptions()
        return BackupOptions(
            exclude_disks=policy.excluded_disks(vm),
            require_filesystem=policy.consistency == "filesystem",
            freeze_timeout_s=policy.freeze_timeout_s,
            commit_bandwidth_mib_s=policy.commit_bandwidth_mib_s or 0,
            read_bandwidth_mib_s=policy.read_bandwidth_mib_s or 0,
            changed_blocks=policy.changed_blocks,
            freeze=MountPoints(policy.freeze.include, policy.freeze.exclude),
            engine=policy.engine,
        )

    def request(self, vm: str) -> CaptureRequest:
        return CaptureRequest(
            vm=vm,
            point_id=new_point_id(),
            exclude_disks=self.exclude_disks,
            require_filesystem=self.require_filesystem,
            freeze_timeout_s=self.freeze_timeout_s,
            commit_bandwidth_mib_s=self.commit_bandwidth_mib_s,
            read_bandwidth_mib_s=self.read_bandwidth_mib_s,
            changed_blocks=self.changed_blocks,
            freeze=self.freeze,
            engine=self.engine,
            memory=self.memory,
        )


def plan_point(wiring: Wiring, vm: str, options: BackupOptions) -> BackupPlan:
    """Raises what ``take_point`` would raise before it touches anything."""
    host, domain = wiring.find(vm)
    parent = wiring.repository().newest_point(domain.uuid, wiring.clock.now())
    return plan_backup(wiring.parts(host), domain, options.request(domain.name), parent)


def refuse_busy(wiring: Wiring, vms: Mapping[str, str]) -> None:
    """UUID -> name. Raises ``Locked`` where a process of this host works on one of them, before the
    repository is read, a lease taken or a hook run for what would only find that in the end."""
    journal = Journal(Path(wiring.settings.state_dir))
    for uuid, name in vms.items():
        journal.refuse_locked(uuid, name)


def take_point(
    wiring: Wiring,
    vm: str,
    options: BackupOptions,
    progress: Progress,
    trace: Trace = no_trace,
    uri: str | None = None,
    heed: Callable[[], None] = lambda: None,
) -> BackupResult:
    """Back up one VM now, of whichever host has it or of the one named. The repository is opened
    before anything is asked of the guest. ``heed``: as ``Parts`` has it."""
    host, domain = wiring.find(vm, uri)
    refuse_busy(wiring, {domain.uuid: domain.name})
    backup = _backup(wiring, progress, trace)
    request = options.request(domain.name)
    engine = choose_for(wiring.parts(host, trace, heed), replace(request, vm=domain.uuid)).engine
    return backup.run(engine, request, domain.uuid)


def by_host(wiring: Wiring, vms: Sequence[str]) -> list[list[str]]:
    """The VMs of each host: what a policy with ``group`` means by its groups."""
    hosts: dict[str, list[str]] = {}
    for vm in vms:
        hosts.setdefault(wiring.find(vm)[0].uri, []).append(vm)
    return list(hosts.values())


def take_group(
    wiring: Wiring,
    vms: Sequence[str],
    options: Callable[[str], BackupOptions],
    progress: Progress,
    trace: Trace = no_trace,
    uri: str | None = None,
    heed: Callable[[], None] = lambda: None,
) -> list[tuple[str, BackupResult | DrvmError]]:
    """Back up VMs of one host as one consistency group: see ``Backup.run_group``."""
    found = [wiring.find(vm, uri) for vm in vms]
    if len({host.uri for host, _ in found}) > 1:
        raise UsageError("the VMs of a group must run on one host", hint="drvm vms")
    refuse_busy(wiring, {domain.uuid: domain.name for _, domain in found})
    backup = _backup(wiring, progress, trace)
    group = new_point_id()
    members = [
        (replace(options(domain.name).request(domain.name), group=group), domain.uuid)
        for _, domain in found
    ]
    results = backup.run_group(wiring.parts(found[0][0], trace, heed), members)
    return [(domain.name, result) for (_, domain), result in zip(found, results, strict=True)]


def take_image_point(
    wiring: Wiring, name: str, files: Sequence[ImageFile], progress: Progress
) -> BackupResult:
    """Back up image files that belong to no VM of a host, under ``name``; read at the pace that
    the policy of that name says."""
    engine = ImageFilesEngine(wiring.image_tool(), wiring.processes, wiring.clock, files)
    return _take_files(wiring, name, engine, progress, no_trace)


def look_at_import(wiring: Wiring, what: Import) -> dict[str, ImageInfo]:
    """What would be imported. Raises ``HostError``."""
    return ImportEngine(what, wiring.processes, wiring.clock).look()


def take_imported_point(
    wiring: Wiring, name: str, what: Import, progress: Progress, trace: Trace = no_trace
) -> BackupResult:
    """Store images of another hypervisor, and the machine around them, under ``name``; read at the
    pace that the policy of that name says. Raises ``UsageError`` where another machine's points
    have that name: it would say nothing any more."""
    listed = wiring.repository().points().points
    if any(p.manifest.vm == name and p.manifest.vm_uuid != machine_uuid(name) for p in listed):
        raise UsageError(
            f"there are points of another machine that is called {name!r}",
            hint="choose another --name",
        )
    engine = ImportEngine(what, wiring.processes, wiring.clock, trace)
    return _take_files(wiring, name, engine, progress, trace)


def finish_leftovers(wiring: Wiring, host: Host) -> list[Finding]:
    """Put every guest of the host back that a killed process left half-way, and remove what killed
    drills and boots left; a finding for each, ``ok`` where nothing is left to do. Raises what makes
    the whole host unreachable."""
    done = [_finding(recovered) for recovered in recover(wiring.parts(host))]
    return done + sweep_drills(wiring, host) + sweep_boots(wiring, host)


def finish_elsewhere(wiring: Wiring) -> list[Finding]:
    """The same of drills on hosts that the settings don't name."""
    done: list[Finding] = []
    for uri in drilled_elsewhere(wiring):
        try:
            done += sweep_drills(wiring, wiring.host(uri))
        except Interrupted:
            raise
        except DrvmError as error:
            done.append(Finding(f"drills on {uri}", False, error.message, if_gone(uri)))
    return done


def standing(wiring: Wiring, hosts: Sequence[Host]) -> list[Stood]:
    """The machines that run on an overlay of drvm's between backups."""
    return [stood for host in hosts for stood in listed(wiring.parts(host))]


def fold_back(wiring: Wiring, vm: str) -> Finding:
    """Put one such machine back on its own images. Raises ``UnknownVm`` and ``Locked``."""
    hosts = wiring.hosts()
    for host in hosts:
        if any(vm in (stood.vm_name, stood.vm_uuid) for stood in listed(wiring.parts(host))):
            return _finding(fold_by_hand(wiring.parts(host), vm))
    return _finding(fold_by_hand(wiring.parts(hosts[0]), vm))


def watch_standing(wiring: Wiring) -> list[Finding]:
    """Fold back what has not the room to stand; a finding for each."""
    folded = (done for host in wiring.hosts() for done in fold_where_short(wiring.parts(host)))
    return [_finding(done) for done in folded]


def _finding(done: Recovered) -> Finding:
    words = done.problem or "; ".join(done.steps)
    return Finding(done.vm_name, not done.problem, words, done.hint)


def _take_files(
    wiring: Wiring, name: str, engine: Engine, progress: Progress, trace: Trace
) -> BackupResult:
    backup = _backup(wiring, progress, trace)
    policy = policy_of_name(wiring.settings.policies, name)
    request = CaptureRequest(
        vm=name,
        point_id=new_point_id(),
        read_bandwidth_mib_s=BackupOptions.of(policy, name).read_bandwidth_mib_s,
    )
    return backup.run(engine, request, machine_uuid(name))


def _backup(wiring: Wiring, progress: Progress, trace: Trace) -> Backup:
    refuse_second_writer(wiring)
    return Backup(
        wiring.repository(),
        writer=wiring.writer,
        level=wiring.level,
        clock=wiring.clock,
        progress=progress,
        trace=trace,
    )
