"""What a service tells systemd: sd_notify(3), through the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from drvm.core.clock import Clock
from drvm.core.text import printable

SEND_TIMEOUT_S = 1.0
MAX_STATUS_CHARS = 500


class Systemd:
    """Nothing where there is no systemd. It never raises, and never waits for long."""

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        self._clock = clock
        name = environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ is an abstract one, without a file: unix(7).
        self._address = f"\0{name[1:]}" if name[:1] == "@" else name if name[:1] == "/" else None
        self._watchdog_s = _watchdog_s(environ)
        self._told_s: float | None = None
        self._status = ""

    @property
    def watchdog_s(self) -> float | None:
        """How often it wants to hear of us: half of what it waits for; ``None``: it does not."""
        return self._watchdog_s

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """``ready`` ends it. The moment tells systemd which request this answers."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.monotonic_s() * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; only changes are sent."""
        line = printable(text, MAX_STATUS_CHARS).replace("\n", " ")
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def alive(self) -> None:
        """Called by the loop whose life it is about, as often as it likes."""
        now_s = self._clock.monotonic_s()
        due = self._told_s is None or now_s - self._told_s >= (self._watchdog_s or 0.0) / 2
        if self._watchdog_s is not None and due:
            self._told_s = now_s
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link,
        ):
            link.settimeout(SEND_TIMEOUT_S)
            link.sendto("\n".join(lines).encode(), self._address)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdecimal() or not int(text[:18]) > 0:
        return None
    if pid and pid != str(os.getpid()):  # meant for another one: sd_watchdog_enabled(3)
        return None
    return int(text[:18]) / 1e6 / 2
