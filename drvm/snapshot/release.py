"""The end of a capture, early where its guest is threatened."""

from __future__ import annotations

import threading
from dataclasses import replace

from drvm.core.errors import HostError
from drvm.snapshot.journal import Entry
from drvm.snapshot.parts import Parts


class Release:
    """Putting the guest back, once, by whoever comes first: the end of the capture, or whoever
    watches over it. The other one waits."""

    def __init__(self, parts: Parts, entry: Entry) -> None:
        self._parts = parts
        self._entry = entry
        self._lock = threading.Lock()
        self._done = False

    def run(self) -> tuple[str, ...]:
        """See ``PutBack.run``. May be called again, also after an error."""
        return self._run()

    def early(self) -> tuple[str, ...]:
        """Before the capture has ended, and whatever limit its commit was to keep."""
        self._parts.trace("given-up")
        return self._run(urgent=True)

    def trouble(self) -> str:
        """What threatens the guest now: room gets short, or it stands still already."""
        short = self._parts.room().shortage(self._entry)
        if short or not self._entry.was_running:
            return short
        try:
            domain = self._parts.host.find_domain(self._entry.vm_uuid)
            stopped = domain.stopped_by_disks() if domain is not None else frozenset()
        except HostError:
            return ""  # a libvirtd that is away tells nothing of the guest
        stopped &= self._entry.growing.keys()
        return f"QEMU could not write to {', '.join(sorted(stopped))}" if stopped else ""

    def _run(self, *, urgent: bool = False) -> tuple[str, ...]:
        with self._lock:
            if self._done:
                return ()
            entry = self._parts.journal.read(self._entry.vm_uuid) or self._entry
            if urgent:
                entry = replace(entry, commit_bandwidth_mib_s=0)
            notes = self._parts.put_back().run(entry)
            self._done = True
            return notes
