"""Putting a machine back on its own images, from wherever a capture was left.

Leaving a capture and recovering from a crash both come here. Every step looks at libvirt anew,
writes the journal first and may be done again after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from drvm.core.errors import CleanupFailed, DrvmError, HostError, HostUnreachable, UnknownVm
from drvm.snapshot import checkpoints
from drvm.snapshot import truth as truths
from drvm.snapshot.chainxml import on_own_images
from drvm.snapshot.fold import Fold
from drvm.snapshot.journal import Entry, JournalDisk
from drvm.snapshot.memoryend import MemoryEnd
from drvm.snapshot.overlays import Overlays
from drvm.snapshot.pullend import PullEnd
from drvm.snapshot.truth import Action

_HINT = "drvm doctor --fix goes on where this stopped; until then the machine runs as it is"
_RETRY_S = 1.0
_MAX_STEPS = 60
_MAX_FAILURES = 6
_THAW_TRIES = 3

Advance = Callable[[Entry, str], tuple[Entry, bool]]
"""One step for one disk: the entry as it is then, and whether nothing is left to do."""


class PutBack:
    def __init__(self, overlays: Overlays) -> None:
        self._overlays = overlays
        self._fold = Fold(overlays)

    def run(self, entry: Entry) -> tuple[str, ...]:
        """Returns when the machine is where ``entry.aim`` says: no chain names an overlay that
        was to go, they are deleted, the journal says what stands or is deleted, and the guest is
        thawed if a freeze of ours may be in force. The caller holds the machine's lock.

        Returns what people should know. Raises ``CleanupFailed`` with everything that could not
        be put back; then the journal stays, and so does every overlay that somebody may still
        need.
        """
        problems = self._thaw(entry) if entry.frozen else []
        if entry.pull is not None:
            try:
                PullEnd(self._overlays).run(entry, entry.pull)
            except (DrvmError, OSError) as problem:
                problems.append(str(problem))
        memory = MemoryEnd(self._overlays)
        problems += memory.begin(entry) if entry.memory else []
        targets = [disk.target for disk in entry.disks]
        if entry.aim == "forward":
            stood = {disk.target for disk in entry.standing}
            both = [target for target in targets if target in stood]
            entry = self._all(entry, both, self._fold.advance, problems)
        if entry.aim != "forward":
            entry = self._all(entry, targets, self._advance, problems)
        if entry.disks and entry.aim != "forward" and not problems:
            self._overlays.trace("overlays-removed")
        if entry.memory and not problems:
            problems += memory.finish(entry)
        notes = self._resume(entry, problems)
        if problems:
            short = self._overlays.room.shortage(entry, committing=True)
            raise CleanupFailed(
                f"{entry.vm_name} is not back on its own disks: {'; '.join([*problems, *notes])}",
                hint=f"make room: {short}; then {_HINT}" if short else _HINT,
            )
        self._come_to_rest(entry)
        return notes

    def _come_to_rest(self, entry: Entry) -> None:
        """What stands is the journal's last word of a capture."""
        overlays = self._overlays
        if entry.aim == "forward":
            standing = (*map(self._at_rest, entry.disks), *entry.standing)
        elif entry.aim == "home" and entry.standing:
            everything = entry.folding([disk.target for disk in entry.standing])
            self.run(overlays.note(everything))
            return
        else:
            standing = entry.standing
        if standing:
            overlays.note(_rest(entry, standing))
            overlays.trace("standing-journaled")
        else:
            overlays.journal.remove(entry.vm_uuid)
            overlays.trace("journal-removed")

    def _at_rest(self, disk: JournalDisk) -> JournalDisk:
        """Without an identity where it can't be looked at: then it is never believed."""
        try:
            chain = self._overlays.images.chain(Path(disk.overlay), "qcow2")
            found = checkpoints.identity(checkpoints.Image(disk.target, chain))
        except DrvmError:
            found = ""
        return replace(disk, phase="standing", identity=found)

    def next_step(self, entry: Entry, disk: JournalDisk) -> str:
        """What ``run`` would do next for one disk, for people; changes nothing."""
        if entry.aim != "forward":
            back = self._next_step(entry, disk)
            action, reason = back.action.value, back.reason
        elif any(below.target == disk.target for below in entry.standing):
            forward = self._fold.next_step(entry, disk.target)
            action, reason = forward.action.value, forward.reason
        else:
            action, reason = "let the overlay stand", ""
        return f"{action} ({reason})" if reason else action

    def is_foreign(self, entry: Entry, disk: JournalDisk) -> bool:
        """Whether ``run`` would leave the disk alone."""
        return self._next_step(entry, disk).action is Action.FOREIGN

    # -- one disk -----------------------------------------------------------------------------
    def _all(
        self,
        entry: Entry,
        targets: Iterable[str],
        advance: Advance,
        problems: list[str],
    ) -> Entry:
        for target in targets:
            try:
                entry = self._until_done(entry, target, advance)
            except DrvmError as problem:
                problems.append(f"{target}: {problem.message}")
                entry = self._overlays.journal.read(entry.vm_uuid) or entry
        return entry

    def _until_done(self, entry: Entry, target: str, advance: Advance) -> Entry:
        limit_s = self._overlays.limits.unreachable_s
        lost_since_s: float | None = None
        failures = 0
        for _ in range(_MAX_STEPS):
            try:
                entry, done = advance(entry, target)
                if done:
                    return entry
                lost_since_s = None
            except HostUnreachable:
                now_s = self._overlays.clock.monotonic_s()
                lost_since_s = now_s if lost_since_s is None else lost_since_s
                if now_s - lost_since_s > limit_s:
                    raise
                entry = self._again(entry, limit_s / _MAX_STEPS * 2)
            except (HostError, UnknownVm):
                failures += 1
                if failures == _MAX_FAILURES:
                    raise
                entry = self._again(entry, _RETRY_S)
        raise HostError(f"{target} does not come to rest")

    def _again(self, entry: Entry, pause_s: float) -> Entry:
        """After a failed step: how far it came stands in the journal."""
        self._overlays.clock.sleep(pause_s)
        return self._overlays.journal.read(entry.vm_uuid) or entry

    def _next_step(self, entry: Entry, disk: JournalDisk) -> truths.Step:
        truth = self._overlays.truth(entry, disk.target)
        overlay, base = Path(disk.overlay), Path(disk.base)
        named = truths.names(truth, overlay) or truths.names(truth, base)
        return truths.next_step(
            disk,
            truth,
            overlay_exists=overlay.exists(),
            base_used_elsewhere=not named and self._overlays.named_by_others(entry, base),
        )

    def _advance(self, entry: Entry, target: str) -> tuple[Entry, bool]:
        """One step for one disk. Its overlay goes at once, not with those of the other disks: they
        may need the room."""
        overlays = self._overlays
        disk = next(disk for disk in entry.disks if disk.target == target)
        step = self._next_step(entry, disk)
        match step.action:
            case Action.DONE:
                if Path(disk.overlay).exists():
                    overlays.remove(entry, disk)
                return entry, True
            case Action.FOREIGN:
                raise CleanupFailed(step.reason)
            case Action.COMMIT:
                entry = overlays.note(entry.in_phase("committing", target))
                overlays.trace(f"commit-journaled-{target}")
                overlays.domain(entry).commit_start(
                    target, bandwidth_mib_s=entry.commit_bandwidth_mib_s
                )
                overlays.trace(f"commit-started-{target}")
                entry = self._pivot(entry, disk)
            case Action.PIVOT:
                entry = self._pivot(entry, disk)
            case Action.MERGE:
                entry = overlays.note(entry.in_phase("merging", target))
                overlays.trace(f"merge-journaled-{target}")
                overlays.images.commit_offline(Path(disk.overlay), Path(disk.base))
                entry = overlays.note(entry.in_phase("merged", target))
                overlays.trace(f"merged-{target}")
                if not self._lower_definition(entry, disk):
                    overlays.remove(entry, disk)
            case Action.REDEFINE:
                self._lower_definition(entry, disk)
        return entry, False

    def _pivot(self, entry: Entry, disk: JournalDisk) -> Entry:
        overlays, target = self._overlays, disk.target
        if not overlays.wait_for_commit(entry, target):
            if self._next_step(entry, disk).action is Action.COMMIT:
                raise HostError("its commit ended without effect; is there room for it?")
            return entry
        overlays.trace(f"commit-ready-{target}")
        entry = overlays.note(entry.in_phase("pivoting", target))
        overlays.domain(entry).block_job_pivot(target)
        overlays.trace(f"pivoted-{target}")
        return entry

    def _lower_definition(self, entry: Entry, disk: JournalDisk) -> bool:
        """``False`` where there is no definition that names the overlay."""
        return self._overlays.redefine(
            entry, disk.target, lambda text: on_own_images(text, (disk,))
        )

    # -- the end ------------------------------------------------------------------------------
    def _resume(self, entry: Entry, problems: list[str]) -> tuple[str, ...]:
        """A guest that QEMU paused because an overlay or scratch file could not grow goes on, as
        soon as it does not stand on that any more."""
        if not entry.was_running:
            return ()
        try:
            domain = self._overlays.host.find_domain(entry.vm_uuid)
            stopped = domain.stopped_by_disks() if domain is not None else frozenset()
            stopping = [target for target in entry.growing if target in stopped]
            words = f"the guest was paused, as {', '.join(stopping)} had no room"
            if domain is None or not stopping:
                return ()
            if any(entry.growing[target].exists() for target in stopping):
                problems.append(words)
                return ()
            domain.resume()
        except DrvmError as problem:
            problems.append(f"it may be paused, and does not go on: {problem.message}")
            return ()
        self._overlays.trace("resumed")
        return (f"{words}; it goes on",)

    def _thaw(self, entry: Entry) -> list[str]:
        """The last resort, behind the watchdog."""
        overlays = self._overlays
        for _ in range(_THAW_TRIES):
            try:
                domain = overlays.host.find_domain(entry.vm_uuid)
                if domain is None or not domain.filesystems_frozen():
                    return []
                domain.thaw()
                overlays.trace("thawed")
            except HostError:
                overlays.clock.sleep(_RETRY_S)
        return ["its file systems are frozen, and its agent does not thaw them"]


def _rest(entry: Entry, standing: tuple[JournalDisk, ...]) -> Entry:
    return replace(
        entry, disks=(), standing=standing, frozen=False, aim="back", pull=None, memory=""
    )
