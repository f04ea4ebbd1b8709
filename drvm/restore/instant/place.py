"""Where the server of a booted machine runs: a directory for each, gone with the host's boot.

::

    /run/drvm-boot/<uuid of the machine>/server/    drvm's own: the server, its log, its lock
                                        /nbd        QEMU connects here; see host.nbd_front
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from drvm.core.clock import Clock
from drvm.core.ids import is_uuid
from drvm.core.process import Processes
from drvm.host.nbd_front import NbdFront
from drvm.restore.served.server import Service
from drvm.restore.served.supervised import end_server, find_server, start_server

_PASSABLE = 0o711
"""QEMU's user may go through to the socket, whose path it is given, and list nothing."""


def parent() -> Path:
    user = os.geteuid()
    return (Path("/run") if user == 0 else Path("/run/user") / str(user)) / "drvm-boot"


@dataclass(frozen=True, slots=True)
class Place:
    vm_uuid: str

    @property
    def directory(self) -> Path:
        if not is_uuid(self.vm_uuid):
            raise ValueError(f"{self.vm_uuid!r} is no UUID")
        return parent() / self.vm_uuid

    @property
    def front(self) -> NbdFront:
        return NbdFront(self.directory / "nbd")

    @property
    def server_directory(self) -> Path:
        return self.directory / "server"

    def is_served(self) -> bool:
        """Whether a server is kept running here. It answers by itself as soon as it can."""
        return find_server(self.server_directory) is not None

    def is_fronted(self) -> bool:
        return self.front.runs()

    def serve(self, processes: Processes, clock: Clock, service: Service) -> None:
        """Start the server unless it runs. It outlives us. Raises ``RestoreError``."""
        self._make()
        if not self.is_served():
            start_server(processes, clock, service, self.server_directory)

    def put_front(
        self, processes: Processes, clock: Clock, service: Service, user: tuple[int, int] | None
    ) -> None:
        """Start what QEMU connects to unless it runs; the server must. ``user``: QEMU's. Raises
        ``HostError``."""
        if not self.is_fronted():
            server = self.server_directory / "socket"
            self.front.start(processes, clock, server, service.disks, user)

    def unserve(self, clock: Clock) -> None:
        """No server runs here when it returns; what QEMU connects to stays."""
        if self.server_directory.exists():
            end_server(self.server_directory, clock)

    def clear(self, clock: Clock) -> None:
        """Nothing runs here, and nothing is left, when it returns."""
        self.front.stop()
        self.unserve(clock)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make(self) -> None:
        for directory in (parent(), self.directory):
            directory.mkdir(mode=_PASSABLE, exist_ok=True)
            directory.chmod(_PASSABLE)
        self.server_directory.mkdir(mode=0o700, exist_ok=True)


def places() -> list[str]:
    """The UUIDs of machines that have one."""
    return sorted(path.name for path in parent().glob("*") if is_uuid(path.name))
