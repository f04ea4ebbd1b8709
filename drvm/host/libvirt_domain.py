"""One virtual machine through libvirt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import AgentError, HostError, UnknownVm
from drvm.host import agent, libvirt_backup, libvirt_checkpoints, libvirt_xml, screenshot
from drvm.host.libvirt_connection import Connection
from drvm.host.model import BlockJob, DomainState, GuestCommandResult
from drvm.host.patience import within

T = TypeVar("T")

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.SHUTOFF,
}
_JOB_KINDS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active-commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "backup",
}
_WITH_OUR_FILES = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)
_SNAPSHOT = _WITH_OUR_FILES | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
_MEMORY_SNAPSHOT = _WITH_OUR_FILES | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
_HMP = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
_PATIENCE_S = 8.0
"""Above an agent command's own limit: libvirtd first waits up to 5 s to get in step with it."""

_THAW_LIMIT_S = 30.0
_MAX_PICTURE_BYTES = 32 * 1024 * 1024


class LibvirtDomain:
    """Implements ``Domain``. The machine is looked up anew by its UUID for every call."""

    def __init__(
        self, connection: Connection, name: str, uuid: str, clock: Clock | None = None
    ) -> None:
        self._connection = connection
        self._name = name
        self._uuid = uuid
        self._clock = clock or SystemClock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def uuid(self) -> str:
        return self._uuid

    def state(self) -> DomainState:
        return _STATES.get(self._ask(lambda d: d.state()[0]), DomainState.OTHER)

    def xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        flags |= libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        return self._ask(lambda d: str(d.XMLDesc(flags)))

    def has_managed_save(self) -> bool:
        return self._ask(lambda d: bool(d.hasManagedSaveImage(0)))

    # -- snapshots and block jobs -------------------------------------------------------------
    def create_disk_snapshot(
        self, snapshot_xml: str, *, quiesce: bool, memory: bool = False
    ) -> None:
        flags = _MEMORY_SNAPSHOT if memory else _SNAPSHOT
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if quiesce else 0
        self._change(lambda d: d.snapshotCreateXML(snapshot_xml, flags))

    def snapshot_names(self) -> list[str]:
        return self._ask(lambda d: sorted(d.snapshotListNames(0)))

    def external_snapshot_names(self) -> list[str]:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_EXTERNAL
        return self._ask(lambda d: sorted(s.getName() for s in d.listAllSnapshots(flags)))

    def checkpoint_names(self) -> list[str]:
        return self._ask(lambda d: sorted(c.getName() for c in d.listAllCheckpoints(0)))

    def checkpoint_xml(self, name: str) -> str:
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
        return self._ask(lambda d: str(d.checkpointLookupByName(name, 0).getXMLDesc(flags)))

    def create_checkpoint(self, checkpoint_xml: str) -> None:
        self._change(lambda d: d.checkpointCreateXML(checkpoint_xml, 0))

    def delete_checkpoint(self, name: str) -> None:
        self._change(lambda d: libvirt_checkpoints.delete(d, name))

    def domain_job(self) -> str | None:
        return self._ask(libvirt_backup.job)

    def backup_begin(self, backup_xml: str, checkpoint_xml: str | None) -> None:
        try:
            self._change(lambda d: libvirt_backup.begin(d, backup_xml, checkpoint_xml))
        except AgentError as problem:  # no agent has a part in it: some name in the words does
            raise HostError(problem.message) from None

    def backup_xml(self) -> str | None:
        return self._ask(libvirt_backup.xml)

    def abort_domain_job(self) -> None:
        self._change(lambda d: d.abortJob())

    def own_directory(self, machines: Path) -> Path | None:
        return self._ask(lambda d: libvirt_backup.own_directory(d, machines))

    def commit_start(self, target: str, *, bandwidth_mib_s: int = 0) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW | libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        self._change(lambda d: d.blockCommit(target, None, None, bandwidth_mib_s, flags))

    def commit_below_start(
        self, target: str, *, top: Path, base: Path, bandwidth_mib_s: int = 0
    ) -> None:
        self._change(lambda d: d.blockCommit(target, str(base), str(top), bandwidth_mib_s, 0))

    def pull_start(self, target: str, *, bandwidth_mib_s: int = 0) -> None:
        self._change(lambda d: d.blockPull(target, bandwidth_mib_s, 0))

    def flush(self, target: str) -> None:
        """Past libvirt, which has no call for it, and marks the machine as tainted."""

        def ask(domain: Any) -> None:
            node = f"libvirt-{libvirt_xml.source_index(domain.XMLDesc(0), target)}-format"
            answer: str = libvirt_qemu.qemuMonitorCommand(domain, f'qemu-io {node} "flush"', _HMP)
            if answer.strip():
                raise HostError(f"QEMU can't flush {target}: {answer.strip()[:200]}")

        self._ask(ask)

    def block_job(self, target: str) -> BlockJob | None:
        def ask(domain: Any) -> BlockJob | None:
            info = domain.blockJobInfo(target)
            if not info:
                return None
            kind = _JOB_KINDS.get(info["type"], "other")
            found = libvirt_xml.mirror(domain.XMLDesc(0), target)
            return BlockJob(kind, info["cur"], info["end"], ready=found is not None and found[1])

        return self._ask(ask)

    def set_commit_bandwidth(self, target: str, bandwidth_mib_s: int) -> None:
        self._ask(lambda d: d.blockJobSetSpeed(target, bandwidth_mib_s, 0))

    def block_job_pivot(self, target: str) -> None:
        self._change(lambda d: d.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT))

    def block_job_abort(self, target: str) -> None:
        self._change(lambda d: d.blockJobAbort(target, 0))

    # -- the agent ----------------------------------------------------------------------------
    def set_agent_timeout(self, timeout_s: int) -> None:
        self._ask(lambda d: d.agentSetResponseTimeout(timeout_s, 0))

    def agent_ping(self, *, timeout_s: int = 5) -> None:
        self.agent_command("guest-ping", timeout_s=timeout_s)

    def agent_command(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any:
        request = agent.request(command, arguments)

        def send(domain: Any) -> Any:
            return libvirt_qemu.qemuAgentCommand(domain, request, timeout_s, 0)

        try:
            reply = within(timeout_s + _PATIENCE_S, lambda: self._change(send))
        except UnknownVm:
            raise
        except HostError as problem:
            raise AgentError(problem.message, hint=problem.hint) from None
        return agent.reply(reply)

    def guest_run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> GuestCommandResult:
        return agent.run(self.agent_command, argv, stdin, timeout_s, self._clock)

    def filesystems_frozen(self, *, timeout_s: int = 5) -> bool | None:
        try:
            status = self.agent_command("guest-fsfreeze-status", timeout_s=timeout_s)
        except AgentError:
            return None
        return {"frozen": True, "thawed": False}.get(status) if isinstance(status, str) else None

    def freeze(self, mount_points: Sequence[str] = ()) -> int:
        try:
            return self._change(lambda d: int(d.fsFreeze(list(mount_points) or None)))
        except UnknownVm:
            raise
        except HostError as problem:
            raise AgentError(problem.message, hint=problem.hint) from None

    def thaw(self) -> None:
        try:
            within(_THAW_LIMIT_S, lambda: self._change(lambda d: d.fsThaw()))
        except HostError as problem:
            raise AgentError(problem.message, hint=problem.hint) from None

    # -- life ---------------------------------------------------------------------------------
    def start(self) -> None:
        self._change(lambda d: d.create())

    def stopped_by_disks(self) -> frozenset[str]:
        def ask(domain: Any) -> frozenset[str]:
            if domain.state() != [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
                return frozenset()
            return frozenset(domain.diskErrors(0) or {})

        return self._ask(ask)

    def resume(self) -> None:
        self._change(lambda d: d.resume())

    def managed_save(self, *, running: bool) -> None:
        flag = libvirt.VIR_DOMAIN_SAVE_RUNNING if running else libvirt.VIR_DOMAIN_SAVE_PAUSED
        self._change(lambda d: d.managedSave(flag))

    def shutdown(self) -> None:
        self._change(lambda d: d.shutdown())

    def destroy(self) -> None:
        with contextlib.suppress(UnknownVm):
            self._ask(lambda d: d.destroy() if d.isActive() else None)

    def undefine(self) -> None:
        with contextlib.suppress(UnknownVm):
            self._ask(lambda d: d.undefineFlags(_UNDEFINE) if d.isPersistent() else None)

    def screenshot(self) -> bytes:
        def take(connection: Any) -> tuple[str, bytes]:
            stream = connection.newStream()
            try:
                mime = connection.lookupByUUIDString(self._uuid).screenshot(stream, 0)
                data = bytearray()
                while block := stream.recv(65536):
                    data += block
                    if len(data) > _MAX_PICTURE_BYTES:
                        raise HostError(f"a screenshot of over {_MAX_PICTURE_BYTES} bytes")
                stream.finish()
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    stream.abort()
                raise
            return str(mime), bytes(data)

        return screenshot.as_png(*self._connection.call(take, repeatable=True))

    def _ask(self, work: Callable[[Any], T]) -> T:
        """Reads, and changes that may be made twice."""
        return self._with_domain(work, repeatable=True)

    def _change(self, work: Callable[[Any], T]) -> T:
        return self._with_domain(work, repeatable=False)

    def _with_domain(self, work: Callable[[Any], T], *, repeatable: bool) -> T:
        return self._connection.call(
            lambda c: work(c.lookupByUUIDString(self._uuid)), repeatable=repeatable
        )
