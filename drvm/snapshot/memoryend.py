"""Ending a capture with memory, from wherever it was left: its snapshot, its file."""

from __future__ import annotations

import contextlib
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError, HostError
from drvm.core.files import remove_durably
from drvm.host.images import in_use
from drvm.host.model import Domain
from drvm.snapshot.journal import Entry
from drvm.snapshot.overlays import Overlays

_ABORT_S = 60.0
_POLL_S = 0.1


def end_snapshot(domain: Domain, entry: Entry, clock: Clock) -> None:
    """The snapshot that writes the memory is not under way any more. Only a file of that name
    shows that it is ours; another one is waited for. Raises ``HostError``."""
    end_s = clock.monotonic_s() + _ABORT_S
    while domain.domain_job() == "snapshot":
        if clock.monotonic_s() > end_s:
            raise HostError("libvirtd still takes a snapshot with its memory")
        if Path(entry.memory).exists():
            with contextlib.suppress(HostError):  # it may have ended just now
                domain.abort_domain_job()
        clock.sleep(_POLL_S)


class MemoryEnd:
    """The end of a capture with memory, from wherever it was left."""

    def __init__(self, overlays: Overlays) -> None:
        self._overlays = overlays

    def begin(self, entry: Entry) -> list[str]:
        """Before the disks are looked at. Returns what went wrong."""
        if all(disk.phase not in ("planned", "requested") for disk in entry.disks):
            return []  # it was taken
        try:
            domain = self._overlays.host.find_domain(entry.vm_uuid)
            if domain is not None:
                end_snapshot(domain, entry, self._overlays.clock)
        except DrvmError as problem:
            return [problem.message]
        return []

    def finish(self, entry: Entry) -> list[str]:
        """When the machine is back on its disks: the file goes."""
        path = Path(entry.memory)
        try:
            if path.exists() and in_use(path):
                return [f"{path} is still open"]
            if path.exists():
                remove_durably(path)
        except OSError as problem:
            return [f"{path} can't be removed: {problem.strerror}"]
        self._overlays.trace("memory-removed")
        return []
