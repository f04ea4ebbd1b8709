"""Putting a machine back on its own images, from wherever a capture was left.

Leaving a capture and recovering from a crash both come here. Every step looks at libvirt anew,
writes the journal first and may be done again after a crash.
"""

from __future__ import annotations

import contextlib
import html
import os
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import CleanupFailed, DrvmError, HostError, HostUnreachable, UnknownVm
from drvm.core.files import remove_durably
from drvm.core.progress import Trace
from drvm.host.images import ImageTool, in_use
from drvm.host.model import Domain, Host
from drvm.snapshot import truth as truths
from drvm.snapshot.domainxml import Layer, Machine, read, with_disk_on_base
from drvm.snapshot.journal import Entry, Journal, JournalDisk
from drvm.snapshot.truth import Action

_HINT = "drvm doctor --fix goes on where this stopped; until then the machine runs as it is"
_POLL_S = 0.1
_RETRY_S = 1.0
_MAX_STEPS = 60
_MAX_FAILURES = 6
_THAW_TRIES = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is waited: for a commit that makes no headway, for any commit at all, and for a
    libvirtd that is away."""

    stall_s: float = 120.0
    commit_s: float = 12 * 3600.0
    unreachable_s: float = 90.0


class PutBack:
    def __init__(
        self,
        host: Host,
        images: ImageTool,
        journal: Journal,
        clock: Clock,
        trace: Trace,
        limits: Limits,
    ) -> None:
        self._host = host
        self._images = images
        self._journal = journal
        self._clock = clock
        self._trace = trace
        self._limits = limits

    def run(self, entry: Entry, *, bandwidth_mib_s: int = 0) -> None:
        """Returns when no chain names an overlay of ``entry``, they are deleted, and so is the
        journal, and the guest is thawed if a freeze of ours may be in force. The caller holds the
        machine's lock.

        Raises ``CleanupFailed`` with everything that could not be put back; then the journal
        stays, and so does every overlay that somebody may still need.
        """
        problems = self._thaw(entry) if entry.frozen else []
        for disk in entry.disks:
            try:
                entry = self._put_back(entry, disk.target, bandwidth_mib_s)
            except DrvmError as problem:
                problems.append(f"{disk.target}: {problem.message}")
        if not problems:
            try:
                self._remove_overlays(entry)
            except (DrvmError, OSError) as problem:
                problems.append(str(problem))
        if problems:
            raise CleanupFailed(
                f"{entry.vm_name} is not back on its own disks: {'; '.join(problems)}", hint=_HINT
            )
        self._journal.remove(entry.vm_uuid)
        self._trace("journal-removed")

    # -- one disk -----------------------------------------------------------------------------
    def _put_back(self, entry: Entry, target: str, bandwidth_mib_s: int) -> Entry:
        """Step by step until nothing is left to do but to remove the overlay."""
        lost_since_s: float | None = None
        failures = 0
        for _ in range(_MAX_STEPS):
            try:
                disk = _of(entry, target)
                step = self.next_step(entry, disk)
                if step.action is Action.DONE:
                    return entry
                if step.action is Action.FOREIGN:
                    raise CleanupFailed(step.reason)
                entry = self._do(step.action, entry, disk, bandwidth_mib_s)
                lost_since_s = None
            except HostUnreachable:
                now_s = self._clock.monotonic_s()
                lost_since_s = now_s if lost_since_s is None else lost_since_s
                if now_s - lost_since_s > self._limits.unreachable_s:
                    raise
                entry = self._again(entry, self._limits.unreachable_s / _MAX_STEPS * 2)
            except (HostError, UnknownVm):
                failures += 1
                if failures == _MAX_FAILURES:
                    raise
                entry = self._again(entry, _RETRY_S)
        raise HostError(f"{target} does not come to rest")

    def _again(self, entry: Entry, pause_s: float) -> Entry:
        """After a failed step: how far it came stands in the journal."""
        self._clock.sleep(pause_s)
        return self._journal.read(entry.vm_uuid) or entry

    def next_step(self, entry: Entry, disk: JournalDisk) -> truths.Step:
        """What ``run`` would do next for one disk; changes nothing."""
        domain = self._host.find_domain(entry.vm_uuid)
        truth = truths.look(domain)
        if domain is not None and truth.live is not None:
            _wait_for_calls(domain, truth.live, disk.target)
            truth = truths.look(domain)
        overlay, base = Path(disk.overlay), Path(disk.base)
        named = truths.names(truth, overlay) or truths.names(truth, base)
        return truths.next_step(
            disk,
            truth,
            overlay_exists=overlay.exists(),
            base_used_elsewhere=not named and self._named_by_others(entry, base),
        )

    def _do(self, action: Action, entry: Entry, disk: JournalDisk, bandwidth_mib_s: int) -> Entry:
        target = disk.target
        if action is Action.COMMIT:
            entry = self._note(entry.in_phase("committing", target))
            self._trace(f"commit-journaled-{target}")
            self._domain(entry).commit_start(target, bandwidth_mib_s=bandwidth_mib_s)
            self._trace(f"commit-started-{target}")
        elif action is Action.PIVOT:
            if self._wait_until_ready(entry, target):
                self._trace(f"commit-ready-{target}")
                entry = self._note(entry.in_phase("pivoting", target))
                self._domain(entry).block_job_pivot(target)
                self._trace(f"pivoted-{target}")
        elif action is Action.MERGE:
            entry = self._note(entry.in_phase("merging", target))
            self._trace(f"merge-journaled-{target}")
            self._images.commit_offline(Path(disk.overlay), Path(disk.base))
            entry = self._note(entry.in_phase("merged", target))
            self._trace(f"merged-{target}")
            if not self._redefine(entry, disk):
                self._remove_overlay(entry, disk)
        elif action is Action.REDEFINE:
            self._redefine(entry, disk)
        return entry

    def _wait_until_ready(self, entry: Entry, target: str) -> bool:
        """``False`` if the job is gone before it was ready. Bounded by headway, and as a whole."""
        start_s = moved_s = self._clock.monotonic_s()
        done_bytes = -1
        while True:
            job = self._domain(entry).block_job(target)
            if job is None:
                return False
            if job.ready:
                return True
            now_s = self._clock.monotonic_s()
            if job.done_bytes > done_bytes:
                done_bytes, moved_s = job.done_bytes, now_s
            if now_s - moved_s > self._limits.stall_s or now_s - start_s > self._limits.commit_s:
                raise CleanupFailed(
                    f"its commit stands at {job.done_bytes} of {job.total_bytes} bytes"
                    f" after {now_s - start_s:.0f} s"
                )
            self._clock.sleep(_POLL_S)

    def _redefine(self, entry: Entry, disk: JournalDisk) -> bool:
        """Only the definition is changed, and only this disk in it. ``False`` where there is no
        definition that names the overlay."""
        domain = self._host.find_domain(entry.vm_uuid)
        if domain is None:
            return False
        text = domain.xml(inactive=True, secure=True)
        stored = read(text).disk(disk.target)
        if stored is None or stored.top != Path(disk.overlay):
            return False
        base = Layer(disk.base_kind, Path(disk.base), disk.base_format)
        self._host.define(with_disk_on_base(text, disk.target, Path(disk.overlay), base))
        self._trace(f"redefined-{disk.target}")
        return True

    # -- the end ------------------------------------------------------------------------------
    def _remove_overlays(self, entry: Entry) -> None:
        for disk in entry.disks:
            if Path(disk.overlay).exists():
                self._remove_overlay(entry, disk)
        self._trace("overlays-removed")

    def _remove_overlay(self, entry: Entry, disk: JournalDisk) -> None:
        overlay = Path(disk.overlay)
        truth = truths.look(self._host.find_domain(entry.vm_uuid))
        if truths.names(truth, overlay) or self._named_by_others(entry, overlay):
            raise CleanupFailed(f"a machine still names {overlay}")
        if disk.phase != "planned" and in_use(overlay):
            raise CleanupFailed(f"{overlay} is still open in QEMU")
        _sync(Path(disk.base))
        remove_durably(overlay)

    def _thaw(self, entry: Entry) -> list[str]:
        """The last resort, behind the watchdog."""
        for _ in range(_THAW_TRIES):
            try:
                domain = self._host.find_domain(entry.vm_uuid)
                if domain is None or not domain.filesystems_frozen():
                    return []
                domain.thaw()
                self._trace("thawed")
            except HostError:
                self._clock.sleep(_RETRY_S)
        return ["its file systems are frozen, and its agent does not thaw them"]

    # -- looking ------------------------------------------------------------------------------
    def _named_by_others(self, entry: Entry, path: Path) -> bool:
        """Whether any other machine's definition mentions the path anywhere: when in doubt, yes."""
        for domain in self._host.domains():
            with contextlib.suppress(UnknownVm):  # gone since it was listed
                if domain.uuid != entry.vm_uuid and any(
                    str(path) in html.unescape(text)
                    for text in (domain.xml(), domain.xml(inactive=True))
                ):
                    return True
        return False

    def _domain(self, entry: Entry) -> Domain:
        return self._host.domain(entry.vm_uuid)

    def _note(self, entry: Entry) -> Entry:
        self._journal.write(entry)
        return entry


def _wait_for_calls(domain: Domain, live: Machine, target: str) -> None:
    """A client that was killed inside a call leaves libvirtd at work on that call: what is true
    is known only when it is done."""
    filled = [disk.target for disk in live.disks if disk.top is not None]
    if filled:
        domain.block_job(target if target in filled else filled[0])


def _of(entry: Entry, target: str) -> JournalDisk:
    return next(disk for disk in entry.disks if disk.target == target)


def _sync(path: Path) -> None:
    """What was committed is on the disk before the other copy goes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
