"""Ending a pull backup, from wherever a capture was left: its job, its scratch files, its socket.

A job of drvm's is known by the names of its scratch files and of its socket, which are those of
one point. No other job is ever ended.
"""

from __future__ import annotations

from pathlib import Path

from drvm.core.errors import CleanupFailed, HostError, HostUnreachable, UnknownVm
from drvm.core.files import remove_durably
from drvm.host.images import in_use
from drvm.host.model import DomainState
from drvm.snapshot.journal import Entry, PullFiles
from drvm.snapshot.overlays import Overlays
from drvm.snapshot.pullxml import own_files

_POLL_S = 0.1
_SLOW_POLL_S = 1.0
_END_S = 90.0
"""A guest that shuts down while a backup runs is known to be off only after 30 s (libvirt 9.0)."""


class PullEnd:
    """``overlays`` knows the host, the clock and how long a libvirtd is waited for."""

    def __init__(self, overlays: Overlays) -> None:
        self._overlays = overlays
        self._aborted = False

    def run(self, entry: Entry, files: PullFiles) -> None:
        """Returns when no job of drvm's is under way on the machine and ``files`` are gone. May be
        called again after a crash. Raises ``CleanupFailed`` and ``OSError``."""
        overlays = self._overlays
        made = [files]
        start_s = overlays.clock.monotonic_s()
        while not self._over(entry, made):
            waited_s = overlays.clock.monotonic_s() - start_s
            if waited_s > max(_END_S, overlays.limits.unreachable_s):
                raise CleanupFailed(f"its backup job has not ended after {waited_s:.0f} s")
            overlays.clock.sleep(_POLL_S if waited_s < _SLOW_POLL_S else _SLOW_POLL_S)
        overlays.trace("backup-ended")
        for each in made:
            self._remove(each)
        overlays.trace("scratch-removed")

    def _over(self, entry: Entry, made: list[PullFiles]) -> bool:
        """Whether no job of ours is left and no file of ours is open. ``made`` gains what a job
        of an earlier capture, whose journal was lost, made."""
        try:
            if not self._job_over(entry, made):
                return False
        except HostUnreachable:
            self._aborted = False  # nobody knows what became of the call
            return False
        except (HostError, UnknownVm):
            return False
        scratches = (Path(path) for files in made for path in files.scratches.values())
        return not any(path.exists() and in_use(path) for path in scratches)

    def _job_over(self, entry: Entry, made: list[PullFiles]) -> bool:
        domain = self._overlays.host.find_domain(entry.vm_uuid)
        if domain is None or domain.state() is DomainState.SHUTOFF:
            return True
        if domain.domain_job() != "backup":
            return True
        text = domain.backup_xml()
        if text is None:
            return False  # a call that began it, whose client is dead, is still under way
        files = own_files(text)
        if files is None:
            return True
        if files not in made:
            made.append(files)
        if not self._aborted:
            domain.abort_domain_job()
            self._aborted = True
            self._overlays.trace("backup-aborted")
        return False

    def _remove(self, files: PullFiles) -> None:
        for path in files.scratches.values():
            if Path(path).exists():
                remove_durably(Path(path))
        Path(files.socket).unlink(missing_ok=True)
