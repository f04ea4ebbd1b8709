"""What every capture engine is made of, and the parts that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError, HostError
from drvm.core.extents import Extent
from drvm.core.process import Processes
from drvm.core.progress import Trace, no_trace
from drvm.host.images import ImageTool
from drvm.host.model import Domain, Host
from drvm.host.nbd import NbdExport, nbd_changes, nbd_overlaid
from drvm.host.reach import is_here
from drvm.snapshot import guestview
from drvm.snapshot.capture import FrozenDisk
from drvm.snapshot.changes import bounded
from drvm.snapshot.checkpoints import Hint, Image
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.freeze import Instant, Taking, alone
from drvm.snapshot.frozen import ChangeGuard, FrozenImage
from drvm.snapshot.journal import Journal
from drvm.snapshot.overlays import Limits, Overlays
from drvm.snapshot.putback import PutBack
from drvm.snapshot.reading import Reading
from drvm.snapshot.space import Room
from drvm.snapshot.watchdog import Watchdog, watchdog


@dataclass(frozen=True, slots=True)
class Parts:
    """What the engines work with. ``overlay_dir``: where overlays of block devices go.
    ``overlay_reserve_bytes``: what must stay free where overlays grow. ``taking``: how the
    instant of a machine that runs is taken. ``heed`` raises ``Interrupted`` once an end is wanted:
    then the guest is put back though whoever reads its disks hangs in an upload."""

    host: Host
    images: ImageTool
    processes: Processes
    journal: Journal
    clock: Clock
    trace: Trace = no_trace
    taking: Taking = alone
    heed: Callable[[], None] = lambda: None
    limits: Limits = field(default_factory=Limits)
    overlay_dir: Path | None = None
    overlay_reserve_bytes: int = 1024 * 1024 * 1024

    def watchdog(self, vm_uuid: str, limit_s: float) -> AbstractContextManager[Watchdog]:
        """See ``watchdog``."""
        return watchdog(self.processes, self.host.uri, vm_uuid, limit_s)

    def put_back(self) -> PutBack:
        return PutBack(
            Overlays(
                self.host,
                self.images,
                self.journal,
                self.clock,
                self.trace,
                self.limits,
                self.room(),
            )
        )

    def room(self) -> Room:
        return Room(self.journal, self.overlay_reserve_bytes)


def require_local(host: Host) -> None:
    """Images are read as local files, so a capture runs on the KVM host itself."""
    if not is_here(host.uri):
        raise CaptureError(
            f"the disks of {host.uri} are not on this machine",
            hint="run drvm on the KVM host itself",
        )


def refuse_jobs(domain: Domain, machine: Machine) -> None:
    """Somebody else's job would be in our way, and ours in his. Raises ``CaptureError``."""
    hint = "wait until it is done, or end it; drvm touches nothing that it did not make"
    job = domain.domain_job()
    if job is not None:
        what = f"a {job}" if job != "other" else "another job"
        raise CaptureError(f"{domain.name} has {what} under way", hint=hint)
    for disk in machine.disks:
        if disk.top is None:
            continue
        if disk.mirror is not None or domain.block_job(disk.target) is not None:
            raise CaptureError(f"{disk.target} of {domain.name} has a block job", hint=hint)


def readable(
    images: Sequence[Image],
    processes: Processes,
    clock: Clock,
    stack: contextlib.ExitStack,
    reading: Reading,
    hints: Mapping[str, Hint] | None = None,
) -> tuple[FrozenDisk, ...]:
    """Readable disks of images that nobody may write to from now on; exports end with ``stack``.

    No lock keeps a writer away, as it would keep a guest from starting. Instead every read, and
    the end of the extents, looks whether any image of the chain was written to since this call,
    and raises ``CaptureError`` if one was: what has been read without error is one instant.

    ``hints`` by target: where one names a bitmap or a standing overlay, what that knows is read
    now, and where it can't be, the whole disk will be.
    """
    disks: list[FrozenDisk] = []
    for image in images:
        guard = ChangeGuard([layer.path for layer in image.chain], clock)
        hint = (hints or {}).get(image.target, Hint())
        socket, changes = None, None
        if image.info.format != "raw":
            try:
                socket, changes = _export(image, processes, stack, hint)
            except HostError as problem:
                if hint.is_doubtful:
                    raise
                hint = Hint(doubt=f"what changed can't be read: {problem.message}")
                socket, _ = _export(image, processes, stack, hint)
        disks.append(
            FrozenImage(
                image.target,
                image.info,
                guard,
                reading=reading,
                socket=socket,
                method=hint.method,
                changes=changes,
                own=image.own,
            )
        )
    return tuple(disks)


def _export(
    image: Image, processes: Processes, stack: contextlib.ExitStack, hint: Hint
) -> tuple[Path, tuple[Extent, ...] | None]:
    """The socket of an export that ends with ``stack``, and what ``hint`` leads to."""
    info = image.info
    with contextlib.ExitStack() as attempt:
        export = NbdExport(
            processes, info.path, info.format, bitmap=hint.bitmap, overlay=image.stands
        )
        socket = attempt.enter_context(export).socket
        changes = None
        if not hint.is_doubtful:
            told = nbd_overlaid(socket) if hint.overlaid else nbd_changes(socket, hint.bitmap or "")
            changes = bounded(told, "they are in")
        stack.push(attempt.pop_all())
    return socket, changes


def guest_facts(domain: Domain, instant: Instant, clock: Clock) -> dict[str, str]:
    """An agent that has just failed is not asked for more."""
    if instant.consistency != "filesystem":
        return {}
    frozen = {"frozen": ", ".join(instant.mount_points)} if instant.mount_points else {}
    return {**guestview.ask(domain, clock), **frozen}
