"""libvirt's event loop, which answers the other side's "are you there?" and asks it ourselves.

Without one, a call to a host that vanished waits for ever: TCP alone does not notice a peer that
says nothing, nor one that is stopped (``virConnectSetKeepAlive``).
"""

from __future__ import annotations

import os
import threading

import libvirt

_lock = threading.Lock()
_runs_in = 0


def run_event_loop() -> None:
    """From now on, in a thread of its own; once in a process. To be called before the connections
    are opened that it is for."""
    global _runs_in
    with _lock:
        if _runs_in == os.getpid():
            return
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_turn, name="libvirt-events", daemon=True).start()
        _runs_in = os.getpid()


def _turn() -> None:
    """Until it fails: then connections are as they would be without it."""
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            return
