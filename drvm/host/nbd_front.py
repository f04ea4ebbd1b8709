"""What stands between a machine and an NBD server that may come and go.

libvirt 9.0 has no ``<reconnect>`` for NBD disks, and QEMU gives a server up for good that has gone
away. So QEMU is given a server that stays: ``qemu-storage-daemon``, which keeps nothing, asks the
real one for each piece, and connects to it again by itself (``reconnect-delay``). A real server
that is started anew within that time goes unnoticed in the guest; later the guest's requests fail,
and succeed again when it is back. ``docs/adr/037-instant-recovery.md``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from drvm.core.clock import Clock
from drvm.core.detached import end_running, running
from drvm.core.errors import HostError
from drvm.core.process import Processes
from drvm.host.nbd import NbdReader

RECONNECT_S = 60
"""Guests give up requests of their own after 30 s (SCSI) or never (virtio)."""
_START_S = 15.0
_POLL_S = 0.02
_MAX_SOCKET_CHARS = 107
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class NbdFront:
    """``socket``: what QEMU connects to; its directory exists, QEMU's user can reach it, and its
    path is this front's alone. The process is found by that path, whoever started it."""

    socket: Path

    def start(
        self,
        processes: Processes,
        clock: Clock,
        server: Path,
        exports: Iterable[str],
        owner: tuple[int, int] | None,
    ) -> None:
        """Serve the ``exports`` of the ``server`` under their names, read-only, until ``stop``,
        also when we are gone. ``owner`` (uid, gid) may connect. Raises ``HostError``, having left
        nothing that runs."""
        if len(str(self.socket)) > _MAX_SOCKET_CHARS:
            raise ValueError(f"{self.socket} is too long for a socket")
        names = sorted(exports)
        self.stop()
        child = processes.spawn(self._argv(server, names), log=self._log, detach=True)
        deadline_s = clock.monotonic_s() + _START_S
        try:
            while not self._answers(names):
                if child.returncode() is not None:
                    words = self._log.read_bytes()[-500:].decode(errors="replace").strip()
                    raise HostError(f"qemu-storage-daemon does not serve: {words}")
                if clock.monotonic_s() >= deadline_s:
                    raise HostError("qemu-storage-daemon does not answer")
                clock.sleep(_POLL_S)
            if owner is not None:
                os.chown(self.socket, *owner)
        except BaseException:
            child.stop()
            raise
        child.leave()

    def runs(self) -> bool:
        return bool(running(self._mark))

    def reads(self, export: str) -> bool:
        """Whether the server gives what is read at this moment. A front whose server was away for
        more than ``RECONNECT_S`` finds it again up to 16 s after it is back: until then all fails
        at once."""
        with contextlib.suppress(HostError):
            reader = NbdReader(self.socket, export)
            try:
                reader.read_into(0, memoryview(bytearray(_SECTOR_BYTES)))
            finally:
                reader.close()
            return True
        return False

    def stop(self) -> None:
        """It has ended when this returns. May be called again."""
        end_running(self._mark)
        for path in (self.socket, self._pid_file):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{quote(export)}?socket={quote(str(self.socket))}"

    @property
    def _pid_file(self) -> Path:
        return self.socket.with_name(f"{self.socket.name}.pid")

    @property
    def _log(self) -> Path:
        return self.socket.with_name(f"{self.socket.name}.log")

    @property
    def _mark(self) -> str:
        return str(self._pid_file)

    def _argv(self, server: Path, exports: list[str]) -> list[str]:
        argv = ["qemu-storage-daemon", "--pidfile", self._mark]
        argv += ["--nbd-server", f"addr.type=unix,addr.path={self.socket}"]
        for number, name in enumerate(exports):
            node = f"disk{number}"
            client = {
                "driver": "nbd",
                "node-name": node,
                "read-only": True,
                "server": {"type": "unix", "path": str(server)},
                "export": name,
                "reconnect-delay": RECONNECT_S,
            }
            export = {"type": "nbd", "id": node, "node-name": node, "name": name}
            argv += ["--blockdev", json.dumps(client)]
            argv += ["--export", json.dumps({**export, "writable": False})]
        return argv

    def _answers(self, exports: list[str]) -> bool:
        if not self.socket.exists():
            return False
        with contextlib.suppress(HostError):
            NbdReader(self.socket, exports[-1]).close()
            return True
        return False
