"""The contract of every capture engine."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from drvm.core.extents import Extent
from drvm.host.disks import BlockReader
from drvm.snapshot import mountpoints
from drvm.snapshot.mountpoints import MountPoints

Consistency = Literal["filesystem", "crash", "offline"]
EngineWish = Literal["auto", "external", "pull"]
"""Which engine is to capture a machine that runs; one that is off is read as it lies there."""

ChangedBlocks = Literal["checkpoint", "standing-overlay", "full-read"]
"""How changes may be found: by checkpoints, made with every point; by the overlay of the point,
on which the machine runs until the next; or by reading all."""


@dataclass(frozen=True, slots=True)
class ParentPoint:
    """The good point that UNCHANGED refers to. ``sizes_bytes``: its disks by target."""

    id: str
    sizes_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """One VM, one instant.

    ``point_id`` names the files that the capture makes. ``exclude_disks`` are targets such as
    ``vdb``; every other disk that can't be captured is an error. ``require_filesystem`` makes a
    failed freeze an error instead of the label ``crash``. A bandwidth of 0 is no limit; that of
    reading is for all disks together. ``parent`` is the point whose disk maps
    the backup will share; without one no extent is UNCHANGED. Where ``changed_blocks`` is not
    ``checkpoint``, none is made, none is believed, and drvm's own are removed; where it is not
    ``standing-overlay``, none is left standing. ``freeze``: which file systems of the guest.
    ``group``: the id of the consistency group that it is captured with. ``memory``: with the
    machine's memory, instead of a freeze; only the external engine can.
    ``engine`` is for whoever chooses one.
    """

    vm: str
    point_id: str
    exclude_disks: frozenset[str] = frozenset()
    require_filesystem: bool = False
    freeze_timeout_s: int = 5
    commit_bandwidth_mib_s: int = 0
    read_bandwidth_mib_s: int = 0
    parent: ParentPoint | None = None
    engine: EngineWish = "auto"
    changed_blocks: ChangedBlocks = "checkpoint"
    freeze: MountPoints = mountpoints.ALL
    group: str | None = None
    memory: bool = False


class FrozenDisk(Protocol):
    """One disk at the instant of the capture; immutable until the capture ends."""

    @property
    def target(self) -> str:
        """``vda``; for an image without a VM ``disk0``, ``disk1``, ..."""
        ...

    @property
    def size_bytes(self) -> int:
        """What the guest sees. Not always a multiple of 4096."""
        ...

    @property
    def format(self) -> str:
        """Of the image it was read from: ``qcow2`` or ``raw``."""
        ...

    @property
    def image_options(self) -> Mapping[str, str]:
        """qcow2's own options, so that a restore can make an image alike."""
        ...

    @property
    def method(self) -> str:
        """How its changes were found, for people: ``checkpoint``, ``standing-overlay``, or
        ``full-read`` with the reason behind a colon."""
        ...

    def extents(self) -> Iterator[Extent]:
        """Ordered, without gaps, covering the whole disk. UNCHANGED is relative to the request's
        parent, and to nothing else."""
        ...

    def open(self) -> BlockReader:
        """A reader for the calling thread; any number of them at once."""
        ...


@dataclass(frozen=True, slots=True)
class FrozenMachine:
    """What a capture yields: a machine at one instant.

    ``definition_xml`` is the inactive XML with its secure parts as it was *before* the capture
    (it names the base images, never an overlay), ``None`` for images without a VM. It may hold
    passwords. ``tpm`` is the state of an emulated TPM, file name -> content. ``frozen_s`` is how
    long the file systems were frozen at most, 0 where they were not. ``memory``: libvirt's file
    of the machine's memory.
    """

    name: str
    uuid: str
    taken_at: dt.datetime
    consistency: Consistency
    engine: str
    disks: tuple[FrozenDisk, ...]
    definition_xml: str | None = field(default=None, repr=False)
    nvram: bytes | None = field(default=None, repr=False)
    tpm: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    guest: Mapping[str, str] = field(default_factory=dict)
    frozen_s: float = 0.0
    warnings: tuple[str, ...] = ()
    memory: FrozenDisk | None = None


class Engine(Protocol):
    name: str

    def capture(self, request: CaptureRequest) -> AbstractContextManager[FrozenMachine]:
        """Freeze one instant of the machine for as long as the context lasts.

        Entering raises ``CaptureError`` (or ``HostError``) with the guest as it was before.
        Leaving, for whatever reason, puts the guest back on its own images and removes what the
        capture made; where that fails it raises ``CleanupFailed`` and the journal stays, so that
        recovery can finish it. Where the request wants a standing overlay, leaving without an
        error says that the point is good: then the capture's own overlay stays, and after an
        error the one that stood before.
        """
        ...
