"""libvirt's event loop, which answers the other side's "are you there?" and asks it ourselves.

Without one, a call to a host that vanished waits for ever: TCP alone does not notice a peer that
says nothing, nor one that is stopped (``virConnectSetKeepAlive``).
"""

from __future__ import annotations

import os
import threading

import libvirt

_NEVER_MS = -1
_lock = threading.Lock()
_runs_in = 0


def run_event_loop() -> None:
    """From now on, in a thread of its own; once in a process. To be called before the connections
    are opened that it is for. A fork waits until the loop holds none of libvirt's locks: the
    child's copies of them would stay held for ever."""
    global _runs_in
    with _lock:
        if _runs_in == os.getpid():
            return
        libvirt.virEventRegisterDefaultImpl()
        _Loop().start()
        _runs_in = os.getpid()


class _Loop:
    """The thread that turns the loop, and stands aside while the process forks."""

    def __init__(self) -> None:
        self._next_turn = threading.Lock()
        self._turning = threading.Lock()
        self._alarm = libvirt.virEventAddTimeout(_NEVER_MS, self._rang, None)

    def start(self) -> None:
        os.register_at_fork(
            before=self._stop, after_in_parent=self._go_on, after_in_child=self._go_on
        )
        threading.Thread(target=self._turn, name="libvirt-events", daemon=True).start()

    def _turn(self) -> None:
        """Until it fails: then connections are as they would be without it."""
        while True:
            with self._next_turn:
                pass  # who waits to stop us comes first
            with self._turning:
                try:
                    libvirt.virEventRunDefaultImpl()
                except libvirt.libvirtError:
                    return

    def _stop(self) -> None:
        self._next_turn.acquire()
        libvirt.virEventUpdateTimeout(self._alarm, 0)
        self._turning.acquire()

    def _go_on(self) -> None:
        self._turning.release()
        self._next_turn.release()

    def _rang(self, _timer: int, _: object) -> None:
        libvirt.virEventUpdateTimeout(self._alarm, _NEVER_MS)
