"""What putting back and folding have in common: looking at a machine, waiting for a commit,
putting a definition right, removing an overlay that nothing needs any more."""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CaptureError, CleanupFailed, HostError, UnknownVm
from drvm.core.files import remove_durably
from drvm.core.progress import Trace
from drvm.host.images import ImageTool, in_use
from drvm.host.model import Domain, Host
from drvm.snapshot import truth as truths
from drvm.snapshot.domainxml import Machine
from drvm.snapshot.journal import Entry, Journal, JournalDisk
from drvm.snapshot.space import Room
from drvm.snapshot.truth import Truth

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is waited: for a commit that makes no headway, for one that makes some but leaves
    no less to do (the guest writes faster), for any commit at all, and for a libvirtd that is
    away."""

    stall_s: float = 120.0
    converge_s: float = 600.0
    commit_s: float = 12 * 3600.0
    unreachable_s: float = 90.0


@dataclass(frozen=True, slots=True)
class Overlays:
    host: Host
    images: ImageTool
    journal: Journal
    clock: Clock
    trace: Trace
    limits: Limits
    room: Room

    def domain(self, entry: Entry) -> Domain:
        return self.host.domain(entry.vm_uuid)

    def note(self, entry: Entry) -> Entry:
        """Where the journal can't be written, what stands there is an earlier step. From that
        recovery goes on too, or at worst leaves a file alone that it can't tell; but a guest
        that stays on its overlay until somebody makes room would fill the next file system."""
        with contextlib.suppress(CaptureError):
            self.journal.write(entry)
        return entry

    def truth(self, entry: Entry, target: str) -> Truth:
        """When no call that changes the machine is under way any more."""
        domain = self.host.find_domain(entry.vm_uuid)
        truth = truths.look(domain)
        if domain is not None and truth.live is not None:
            _wait_for_calls(domain, truth.live, target)
            truth = truths.look(domain)
        return truth

    def wait_for_commit(self, entry: Entry, target: str) -> bool:
        """``True`` if it is ready to pivot, ``False`` if the job is gone.

        Bounded by headway, and as a whole. The limit of its bandwidth goes where the guest writes
        faster than that, or where room gets short: then the overlay must go first of all.
        """
        start_s = moved_s = nearer_s = self.clock.monotonic_s()
        done_bytes, left_bytes = -1, -1
        limited = entry.commit_bandwidth_mib_s > 0
        while True:
            job = self.domain(entry).block_job(target)
            if job is None:
                return False
            if job.ready:
                return True
            now_s = self.clock.monotonic_s()
            if job.done_bytes > done_bytes:
                done_bytes, moved_s = job.done_bytes, now_s
            if left_bytes < 0 or job.total_bytes - job.done_bytes < left_bytes:
                left_bytes, nearer_s = job.total_bytes - job.done_bytes, now_s
            strays = now_s - nearer_s > self.limits.converge_s
            if limited and (strays or self.room.shortage(entry, committing=True)):
                self.domain(entry).set_commit_bandwidth(target, 0)
                self.trace(f"commit-unlimited-{target}")
                limited, strays, nearer_s = False, False, now_s
            stalls = now_s - moved_s > self.limits.stall_s
            if stalls or strays or now_s - start_s > self.limits.commit_s:
                why = "; the guest writes faster than it" if strays and not stalls else ""
                raise CleanupFailed(
                    f"its commit stands at {job.done_bytes} of {job.total_bytes} bytes"
                    f" after {now_s - start_s:.0f} s{why}"
                )
            self.clock.sleep(_POLL_S)

    def redefine(self, entry: Entry, target: str, change: Callable[[str], str]) -> bool:
        """Only the definition is changed, by ``change``. ``False`` where there is none, or where
        nothing in it is to be changed."""
        domain = self.host.find_domain(entry.vm_uuid)
        if domain is None:
            return False
        text = domain.xml(inactive=True, secure=True)
        changed = change(text)
        if changed == text:
            return False
        self.host.define(changed)
        self.trace(f"redefined-{target}")
        return True

    def remove(self, entry: Entry, disk: JournalDisk) -> None:
        """The file of ``disk``'s overlay, when what it held is safe in its base. Raises
        ``CleanupFailed`` where somebody may still need it."""
        overlay = Path(disk.overlay)
        truth = truths.look(self.host.find_domain(entry.vm_uuid))
        if truths.names(truth, overlay) or self.named_by_others(entry, overlay):
            raise CleanupFailed(f"a machine still names {overlay}")
        try:
            if disk.phase != "planned" and in_use(overlay):
                raise CleanupFailed(f"{overlay} is still open in QEMU")
            sync(Path(disk.base))
            remove_durably(overlay)
        except OSError as problem:
            raise HostError(f"{overlay} can't be removed: {problem.strerror}") from None

    def named_by_others(self, entry: Entry, path: Path) -> bool:
        """Whether any other machine's definition mentions the path anywhere: when in doubt, yes."""
        for domain in self.host.domains():
            with contextlib.suppress(UnknownVm):  # gone since it was listed
                if domain.uuid != entry.vm_uuid and any(
                    str(path) in html.unescape(text)
                    for text in (domain.xml(), domain.xml(inactive=True))
                ):
                    return True
        return False


def sync(path: Path) -> None:
    """What was committed is on the disk before the other copy goes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_for_calls(domain: Domain, live: Machine, target: str) -> None:
    """A client that was killed inside a call leaves libvirtd at work on that call: what is true
    is known only when it is done."""
    filled = [disk.target for disk in live.disks if disk.top is not None]
    if filled:
        domain.block_job(target if target in filled else filled[0])
