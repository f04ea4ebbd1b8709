"""What the daemon knows of machines and points, looked at anew once a minute at most.

Each host has a thread of its own that looks at it: one that does not answer, or takes long, keeps
nobody from knowing of the others, and its machines are told as unreachable.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import CLOCK_TOLERANCE, Clock
from drvm.core.errors import DrvmError, HostError, HostUnreachable
from drvm.host.model import Host
from drvm.host.reach import is_here
from drvm.wiring.assembly import Wiring
from drvm.wiring.fleet import Fleet, Look, Seen, look_at, point_policies, survey
from drvm.wiring.remembering import remembered_of
from drvm.wiring.whereabouts import remember

log = logging.getLogger("drvm.daemon")

EVERY_S = 55.0
"""The engine asks once a minute."""
PATIENCE_S = 5.0
"""A host that takes longer is away until its look ends."""


@dataclass(frozen=True, slots=True)
class View:
    """``drilled``: VM's UUID -> when its last drill was kept, by the store's time."""

    fleet: Fleet
    drilled: Mapping[str, dt.datetime]


class FleetWatch:
    """For one thread, and ``forget`` and ``close`` for any. Connections are kept; whatever fails
    is opened anew at the next look. ``tells``: VMs that no policy protects, and hosts that don't
    answer, are logged once."""

    def __init__(
        self,
        open_wiring: Callable[[], AbstractContextManager[Wiring]],
        clock: Clock,
        *,
        tells: bool = False,
    ) -> None:
        self._tells = tells
        self._open_wiring = open_wiring
        self._clock = clock
        self._hosts: ExitStack | None = None
        self._watches: list[_HostWatch] = []
        self._stored = ExitStack()
        self._wiring: Wiring | None = None
        self._view: View | None = None
        self._looked_s = 0.0
        self._told: tuple[str, ...] = ()
        self._looking = threading.Lock()
        self._closed = False

    def view(self) -> View:
        """Raises what the repository raises."""
        with self._looking:
            try:
                return self._viewed()
            finally:
                if self._closed:
                    self._let_go()

    def _viewed(self) -> View:
        now_s = self._clock.monotonic_s()
        view = self._view
        if view is None or now_s - self._looked_s >= EVERY_S:
            view = self._view = self._look()
            self._looked_s = now_s
            if self._tells:
                self._tell(view.fleet)
        return view

    def forget(self) -> None:
        """Somebody knows that the next look would see something else."""
        self._view = None

    def close(self) -> None:
        """A look that is under way closes what it has when it ends."""
        self._closed = True
        if self._looking.acquire(timeout=1.0):
            try:
                self._let_go()
            finally:
                self._looking.release()

    def _let_go(self) -> None:
        for watch in self._watches:
            watch.end()
        self._watches = []
        hosts, self._hosts, self._wiring = self._hosts, None, None
        if hosts is not None:
            hosts.close()
        self._stored.close()

    def _look(self) -> View:
        looked = self._look_at_hosts()
        try:
            if self._wiring is None:
                self._wiring = self._stored.enter_context(self._open_wiring())
            wiring = self._wiring
            repository = wiring.repository()
            points = repository.points(remembered=remembered_of(repository)).points
            now, known = self._clock.now(), wiring.whereabouts()
            vms = survey(looked, points, point_policies(wiring, looked), now, known)
            state_dir = Path(wiring.settings.state_dir)
            away, twins = bool(looked.away), looked.twins
            remember(state_dir, known.hosts, vms, away=away, twins=twins)
            return View(Fleet(vms, looked.away), repository.drills.times(now + CLOCK_TOLERANCE))
        except DrvmError:
            self._wiring = None
            self._stored.close()
            raise

    def _look_at_hosts(self) -> Look:
        if self._hosts is None:
            self._hosts = ExitStack()
            wiring = self._hosts.enter_context(self._open_wiring())
            policies = wiring.settings.policies
            for host in wiring.hosts():
                self._watches.append(_HostWatch(host, lambda host: look_at(host, policies)))
        for watch in self._watches:
            watch.ask()
        until_s = self._clock.monotonic_s() + PATIENCE_S
        seen: list[Seen] = []
        away: list[tuple[str, HostError]] = []
        for watch in self._watches:
            found = watch.answer(max(0.0, until_s - self._clock.monotonic_s()))
            if isinstance(found, HostError):
                away.append((watch.uri, found))
            else:
                seen += found
        return Look(tuple(seen), tuple(away))

    def _tell(self, fleet: Fleet) -> None:
        """What has changed, once."""
        bare = [vm.name for vm in fleet.vms if vm.host and not vm.policy and not vm.doubt]
        words = [f"no policy protects {name}" for name in bare]
        words += [f"{error.message}" for _, error in fleet.away]
        words += [f"{vm.name} is not backed up: {vm.held}" for vm in fleet.vms if vm.held]
        others = {vm.host for vm in fleet.vms if vm.host and vm.policy and not is_here(vm.host)}
        words += [f"the VMs of {uri} are backed up by drvm there only" for uri in sorted(others)]
        for line in words:
            if line not in self._told:
                log.warning("%s", line)
        self._told = tuple(words)


class _HostWatch:
    """One host, and the thread that looks at it. A look that hangs is waited for by nobody but
    this thread, which ends with the process."""

    def __init__(self, host: Host, look: Callable[[Host], tuple[Seen, ...]]) -> None:
        self.uri = host.uri
        self._host = host
        self._look = look
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._found: tuple[Seen, ...] | HostError = ()
        threading.Thread(target=self._run, name=f"look {host.uri}", daemon=True).start()

    def ask(self) -> None:
        """Nothing while an earlier look lasts."""
        if self._idle.is_set():
            self._idle.clear()
            self._asked.put(True)

    def answer(self, timeout_s: float) -> tuple[Seen, ...] | HostError:
        if not self._idle.wait(timeout_s):
            return HostUnreachable(f"{self.uri} does not answer in time", hint="drvm doctor")
        return self._found

    def end(self) -> None:
        self._asked.put(False)

    def _run(self) -> None:
        while self._asked.get():
            try:
                self._found = self._look(self._host)
            except HostError as error:
                self._found = error
            except Exception as error:
                log.exception("%s: this is a bug", self.uri)
                self._found = HostError(f"looking at {self.uri} failed: {type(error).__name__}")
            finally:
                self._idle.set()
        with contextlib.suppress(HostError):
            self._host.close()
