"""Our side of the thaw watchdog, the process that thaws a guest when we can't any more.

Its own side is ``thawing``. No freeze without it: where it does not get ready, nothing is frozen.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import drvm
from drvm.core.errors import ProcessFailed
from drvm.core.process import Child, Processes

_READY_LIMIT_S = 15.0
_ANSWER_LIMIT_S = 5.0
_END_LIMIT_S = 5.0


class Watch(Protocol):
    """What a freeze needs of its watchdog."""

    def get_ready(self) -> None:
        """Waits until it could thaw, and no watchdog of an earlier capture does so any more. Raises
        ``ProcessFailed`` where that does not come."""
        ...

    def freezing(self) -> None:
        """From when this returns the guest will be thawed, whatever becomes of us: when the limit
        is up, or when we are dead. Raises ``ProcessFailed``; then nothing may be frozen."""
        ...

    def thawed(self) -> None:
        """The guest has been seen thawed: nothing is left to do, the watchdog ends."""
        ...


class Watchdog:
    """Implements ``Watch`` by a process. Starting takes it about 0.1 s, during which we go on."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ready = False
        self._needed = False

    def get_ready(self) -> None:
        if not self._ready:
            self._expect("ready", _READY_LIMIT_S)
            self._ready = True

    def freezing(self) -> None:
        self.get_ready()
        self._needed = True
        self._child.tell("freezing")
        self._expect("watching", _ANSWER_LIMIT_S)

    def thawed(self) -> None:
        if not self._needed:
            return
        self._needed = False
        with contextlib.suppress(ProcessFailed):  # dead already, and not needed any more
            self._child.tell("thawed")
        self.end()

    def end(self) -> None:
        """It has ended when this returns, but for one that still has to thaw: that goes on by
        itself. May be called again."""
        self._child.leave()
        if not self._needed and not self._child.wait(_END_LIMIT_S):
            self._child.stop(0)

    def _expect(self, word: str, limit_s: float) -> None:
        try:
            heard = self._child.hear(limit_s)
        except ProcessFailed as problem:
            raise ProcessFailed(f"the thaw watchdog does not work: {problem.message}") from None
        if heard == "busy":
            raise ProcessFailed("the watchdog of an earlier capture is still thawing the guest")
        if heard != word:
            raise ProcessFailed("the thaw watchdog does not work: it says what is not understood")


@contextlib.contextmanager
def watchdog(processes: Processes, uri: str, vm_uuid: str, limit_s: float) -> Iterator[Watchdog]:
    """A watchdog for one freeze of one machine, started but not yet ready. Begin it early.

    Leaving the context ends it and confirms that, whether anything was frozen or not; only where
    the guest may still be frozen does it go on, and thaws."""
    argv = [sys.executable, "-P", "-m", "drvm.snapshot.thawing"]
    env = {"PYTHONPATH": str(Path(drvm.__file__).parents[1])}
    child = processes.spawn(argv, env=env, detach=True, talk=True)
    dog = Watchdog(child)
    try:
        with contextlib.suppress(ProcessFailed):  # said by get_ready
            child.tell(json.dumps({"uri": uri, "vm_uuid": vm_uuid, "limit_s": limit_s}))
        yield dog
    finally:
        dog.end()
