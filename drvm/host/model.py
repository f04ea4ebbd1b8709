"""What drvm asks of a KVM host, in the host's own words. No libvirt type leaves this room."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from drvm.host.places import StatePlaces
from drvm.host.storage import Storage


class DomainState(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shutoff"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class BlockJob:
    """A block job of one disk. ``kind``: libvirt's ``commit``, ``active-commit``, ``copy``,
    ``pull``, ``backup`` or ``other``. ``ready``: the XML's ``<mirror ready='yes'>``, as
    ``done_bytes == total_bytes`` is not enough to pivot."""

    kind: str
    done_bytes: int
    total_bytes: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool. ``path`` is its target directory as the host sees it."""

    name: str
    kind: str
    active: bool
    path: str
    available_bytes: int


@dataclass(frozen=True, slots=True)
class HostCapabilities:
    """What the host can run. ``machines``: machine types and their aliases for x86_64;
    ``virt_types``: ``kvm``, ``qemu``; ``firmwares``: ``bios``, ``efi``."""

    arch: str
    machines: frozenset[str]
    virt_types: frozenset[str]
    firmwares: frozenset[str]


@dataclass(frozen=True, slots=True)
class CpuObstacle:
    """A processor that a host can't give, in libvirt's words, and the modes and models it can."""

    reason: str
    usable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuestCommandResult:
    """A command that ran to its end in the guest. Streams are cut at 64 KiB."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Domain(Protocol):
    """A virtual machine of the host. Every call asks libvirt anew: nothing is remembered."""

    @property
    def name(self) -> str: ...

    @property
    def uuid(self) -> str: ...

    def state(self) -> DomainState: ...

    def xml(self, *, inactive: bool = False, secure: bool = False) -> str:
        """``secure`` includes passwords: store encrypted, never print."""
        ...

    def has_managed_save(self) -> bool:
        """Whether its memory was saved to disk when it was last running: the next start goes on
        there, and needs the disks as they are."""
        ...

    # -- snapshots and checkpoints ------------------------------------------------------------
    def create_disk_snapshot(
        self, snapshot_xml: str, *, quiesce: bool, memory: bool = False
    ) -> None:
        """DISK_ONLY (or LIVE with ``memory``) | ATOMIC | NO_METADATA | REUSE_EXT, and QUIESCE.
        All disks or none. With ``quiesce`` freeze and thaw are inside this one call; raises
        ``AgentError`` when the freeze failed (then there is no snapshot), ``HostError`` else."""
        ...

    def snapshot_names(self) -> list[str]: ...

    def external_snapshot_names(self) -> list[str]:
        """Those of ``snapshot_names`` that keep disks or memory in files of their own."""
        ...

    def checkpoint_names(self) -> list[str]: ...

    def checkpoint_xml(self, name: str) -> str:
        """Without the domain's definition inside. Raises ``HostError`` where there is none."""
        ...

    def create_checkpoint(self, checkpoint_xml: str) -> None:
        """A persistent dirty bitmap in each qcow2 that the XML names, from now on; all or none.
        The machine must be running or paused."""
        ...

    def delete_checkpoint(self, name: str) -> None:
        """With those of its bitmaps that are there; the machine must be running or paused. A
        crash half-way may leave bitmaps that no checkpoint names."""
        ...

    # -- backup jobs --------------------------------------------------------------------------
    def domain_job(self) -> str | None:
        """The job that keeps every other one out: ``backup``, ``migration``, ``save``,
        ``restore``, ``snapshot``, ``dump`` or ``other``. To begin a second one blocks 30 s. That
        of a call that is still under way is told too."""
        ...

    def backup_begin(self, backup_xml: str, checkpoint_xml: str | None) -> None:
        """A backup job, and in the same instant a checkpoint; both or none, but for a failure to
        serve what is ready, which leaves the checkpoint. The scratch files that the XML names must
        exist: whoever made them removes them. The machine must be running or paused."""
        ...

    def backup_xml(self) -> str | None:
        """Of the backup job under way; ``None`` where there is none, or while it begins."""
        ...

    def abort_domain_job(self) -> None:
        """Whosever it is: ask before. Does not wait until it has ended."""
        ...

    def own_directory(self, machines: Path) -> Path | None:
        """libvirt's directory for this run of the machine, below ``StatePlaces.machines``: QEMU
        may make files in it, and it goes with the run. ``None`` where the machine is off."""
        ...

    # -- block jobs ---------------------------------------------------------------------------
    def commit_start(self, target: str, *, bandwidth_mib_s: int = 0) -> None:
        """Active commit of the disk's top layer into the image right below it, and no further
        (SHALLOW: a base image with a backing file of its own must not be merged into that)."""
        ...

    def commit_below_start(
        self, target: str, *, top: Path, base: Path, bandwidth_mib_s: int = 0
    ) -> None:
        """Commit of ``top``, a layer of the disk's chain that is not the one in use, into
        ``base``, the one right below it. Needs no pivot: when the job is gone and succeeded, the
        chain is without ``top``, live and stored. Zeroes are written, not punched."""
        ...

    def pull_start(self, target: str, *, bandwidth_mib_s: int = 0) -> None:
        """Copy into the disk's image what it takes from its backing chain. Needs no pivot: when
        the job is gone and succeeded, there is no backing chain any more, live and stored."""
        ...

    def flush(self, target: str) -> None:
        """What QEMU still holds in memory of the disk's image is written, and durable, while the
        guest runs on. The image of a pull that has ended lacks much of its metadata until then
        (seen with QEMU 7.2)."""
        ...

    def block_job(self, target: str) -> BlockJob | None:
        """Waits until no call that changes the machine is under way in libvirtd, also none of a
        client that is dead (30 s at most, then ``HostError``)."""
        ...

    def set_commit_bandwidth(self, target: str, bandwidth_mib_s: int) -> None:
        """Of a commit that runs; 0: no limit."""
        ...

    def block_job_pivot(self, target: str) -> None: ...

    def block_job_abort(self, target: str) -> None: ...

    # -- the agent ----------------------------------------------------------------------------
    def set_agent_timeout(self, timeout_s: int) -> None:
        """Bounds every later agent call, the freeze inside a snapshot included; libvirt's own
        default is -2, for ever."""
        ...

    def agent_ping(self, *, timeout_s: int = 5) -> None:
        """Raises ``AgentError``."""
        ...

    def agent_command(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any:
        """One QMP-style agent command; what it returns is hostile input of bounded size."""
        ...

    def guest_run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> GuestCommandResult:
        """``guest-exec`` and wait. Raises ``AgentError`` also when the time is up."""
        ...

    def filesystems_frozen(self, *, timeout_s: int = 5) -> bool | None:
        """``None`` where the agent does not say."""
        ...

    def freeze(self, mount_points: Sequence[str] = ()) -> int:
        """All file systems of the guest, or those; returns how many, as its agent says. Raises
        ``AgentError``; some may be frozen then. Whoever calls it must see to it that somebody
        thaws, also if we are killed."""
        ...

    def thaw(self) -> None: ...

    # -- life ---------------------------------------------------------------------------------
    def start(self) -> None: ...

    def stopped_by_disks(self) -> frozenset[str]:
        """The disks that QEMU paused the machine for, as they could not be written or read: for
        want of room, or for another I/O error. Empty where it is not paused, or for other
        reasons."""
        ...

    def resume(self) -> None:
        """Let a paused machine go on; I/O that had failed is tried again."""
        ...

    def managed_save(self, *, running: bool) -> None:
        """Save its memory to disk and end it: the next start goes on there, ``running`` or paused.
        Also of one that is paused as its disks failed. Takes as long as its memory is large."""
        ...

    def shutdown(self) -> None:
        """Ask the guest; does not wait."""
        ...

    def destroy(self) -> None:
        """Pull the plug. No error if it is off already."""
        ...

    def undefine(self) -> None:
        """Forget the definition and its NVRAM; disks stay. No error if it is gone already."""
        ...

    def screenshot(self) -> bytes:
        """PNG of the first screen. Raises ``HostError`` where the guest has none."""
        ...


class Host(Protocol):
    """A connection to one libvirtd. Reconnects by itself once per call after a lost one."""

    @property
    def uri(self) -> str: ...

    @property
    def remote(self) -> bool:
        """Whether it is reached over a network: then its files are not ours to touch."""
        ...

    @property
    def storage(self) -> Storage: ...

    @property
    def places(self) -> StatePlaces | None:
        """``None`` where drvm does not know them, or they are on another machine."""
        ...

    def hostname(self) -> str: ...

    def domains(self) -> list[Domain]: ...

    def domain(self, name_or_uuid: str) -> Domain:
        """Raises ``UnknownVm``."""
        ...

    def find_domain(self, name_or_uuid: str) -> Domain | None: ...

    def define(self, domain_xml: str) -> Domain: ...

    def restore_running(self, memory: Path, domain_xml: str) -> None:
        """Bring a defined machine back from libvirt's file of its memory; on errors it is off."""
        ...

    def start_transient(self, domain_xml: str) -> Domain:
        """Create and start a domain that libvirt destroys by itself when this connection ends,
        also when we are killed (AUTODESTROY)."""
        ...

    def capabilities(self) -> HostCapabilities: ...

    def available_memory_bytes(self) -> int | None:
        """About what a new machine can have; ``None``, where libvirt does not say."""
        ...

    def qemu_user(self) -> tuple[int, int] | None:
        """(uid, gid) that machines run as; ``None``, where libvirt does not say: libvirtd's own."""
        ...

    def pools(self) -> list[Pool]: ...

    def pool(self, name: str) -> Pool:
        """Raises ``HostError`` with the names there are as the hint."""
        ...

    def refresh_pool(self, name: str) -> None: ...

    def firmware_file(self, domain_xml: str) -> Path | None:
        """The code of the UEFI firmware that such a machine would be started with; ``None`` where
        libvirt does not say, or it is none."""
        ...

    def refusal(self, domain_xml: str) -> str | None:
        """Why libvirt would not take this definition, in its words; ``None`` where it would, or
        does not say. Defines nothing, and looks at no image."""
        ...

    def cpu_obstacle(self, domain_xml: str) -> CpuObstacle | None:
        """Why such a machine would not be started with the processor that it asks for; ``None``
        where it would, or where libvirt does not say."""
        ...

    def network_names(self) -> list[str]:
        """The active ones."""
        ...

    def bridges(self) -> frozenset[str] | None:
        """Those of the host that a card can be put on; ``None`` where libvirt does not say."""
        ...

    def create_network(self, network_xml: str) -> None:
        """A transient network: gone when it is destroyed or libvirtd's host restarts."""
        ...

    def network_bridge(self, name: str) -> str:
        """What an active network is made of on the host. Raises ``HostError``."""
        ...

    def destroy_network(self, name: str) -> None:
        """No error if it is gone already."""
        ...

    def close(self) -> None: ...
