"""Holding the leases of machines while they are backed up: see ``drvm/repository/leases.py``."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

from drvm.core.clock import Clock, rfc3339
from drvm.core.errors import Locked, RepositoryError, StoreError
from drvm.core.progress import Progress, Trace, no_trace
from drvm.core.text import printable
from drvm.repository.leases import RENEW_S, Lease, Leases
from drvm.wiring.assembly import Wiring

log = logging.getLogger("drvm.leases")


@contextlib.contextmanager
def leased(
    wiring: Wiring, vm_uuids: Sequence[str], progress: Progress, trace: Trace = no_trace
) -> Iterator[Progress]:
    """What works meanwhile tells the progress that this gives, which renews the leases.

    Raises ``Locked`` where another drvm had one of them before; a store that has no leases to give
    keeps nobody from anything.
    """
    held = _Held(wiring.repository().leases, wiring.clock, wiring.writer, vm_uuids, progress)
    try:
        other = held.take()
        trace("leases-taken")
        if other is not None:
            raise Locked(
                f"{printable(other.host, 100)} backs it up since {printable(other.begun, 40)}",
                hint="its point serves as well; drvm points shows it when it is done",
            )
        yield held
    finally:
        held.end()


class _Held:
    """Fulfils ``Progress``."""

    def __init__(
        self, leases: Leases, clock: Clock, writer: str, vm_uuids: Sequence[str], inner: Progress
    ) -> None:
        self._leases = leases
        self._clock = clock
        self._lease = Lease(writer, rfc3339(clock.now()))
        self._vm_uuids = tuple(vm_uuids)
        self._inner = inner
        self._names: list[str] = []
        self._lock = threading.Lock()
        self._renew_at_s = clock.monotonic_s() + RENEW_S

    def take(self) -> Lease | None:
        """Whoever goes before."""
        try:
            for vm_uuid in self._vm_uuids:
                self._names.append(self._leases.take(vm_uuid, self._lease))
            found = (self._leases.before(name, self._lease.host) for name in self._names)
            return next((other for other in found if other is not None), None)
        except (StoreError, RepositoryError) as error:
            log.info("no leases: %s", error.message)
            return None

    def end(self) -> None:
        for name in self._names:
            self._leases.end(name)

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self._inner.stage(title, total_bytes)
        self._renew()

    def advance(self, done_bytes: int) -> None:
        self._inner.advance(done_bytes)
        self._renew()

    def _renew(self) -> None:
        """By whichever thread comes first; the others go on."""
        if self._clock.monotonic_s() < self._renew_at_s or not self._lock.acquire(blocking=False):
            return
        try:
            if self._clock.monotonic_s() < self._renew_at_s:
                return
            self._renew_at_s = self._clock.monotonic_s() + RENEW_S
            before = self._names
            self._names = []
            for vm_uuid in self._vm_uuids:
                with contextlib.suppress(StoreError, RepositoryError):
                    self._names.append(self._leases.take(vm_uuid, self._lease))
            for name in before:
                self._leases.end(name)
        finally:
            self._lock.release()
