"""Server-sent events: what runs now, as it is to stand in the page, and that the page has changed.

Each stream looks once a second at what all streams share, sends what is different, and ends when
its session does. Nothing is queued: a client that reads slowly gets only the latest.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from drvm.core.errors import DrvmError
from drvm.web.aside import Aside

MAX_STREAMS = 16
MAX_STREAMS_OF_ONE = 4
"""Of a session: a browser opens six connections to a server, and pages need some of them."""

EVERY_S = 1.0
ALIVE_S = 15.0
RETRY_MS = 3000


@dataclass(frozen=True, slots=True)
class Look:
    """``running``: HTML of what runs. ``version``: changes when the rest of the page does."""

    running: str
    version: str


class Live:
    """``look`` is asked by VM's UUID, ``""`` for all; ``monotonic_s`` is the clock's."""

    def __init__(self, look: Callable[[str], Look], monotonic_s: Callable[[], float]) -> None:
        self._look = look
        self._aside = Aside()
        self._monotonic_s = monotonic_s
        self._seen: dict[str, tuple[float, Look]] = {}
        self._lock = threading.Lock()
        self._open: list[str] = []
        self._ended = False

    def end(self) -> None:
        """All streams, within a second."""
        self._ended = True

    def enter(self, session_id: str) -> bool:
        """Whether there is room for one more; then ``leave`` gives it back."""
        room = (
            not self._ended
            and len(self._open) < MAX_STREAMS
            and self._open.count(session_id) < MAX_STREAMS_OF_ONE
        )
        if room:
            self._open.append(session_id)
        return room

    def leave(self, session_id: str) -> None:
        self._open.remove(session_id)

    async def stream(self, vm_uuid: str, is_valid: Callable[[], bool]) -> AsyncIterator[str]:
        yield f"retry: {RETRY_MS}\n\n"
        sent, said_s = Look("", ""), self._monotonic_s()
        while not self._ended and is_valid():
            try:
                look = await self._aside(self._shared, vm_uuid)
            except DrvmError:  # what is shown stays
                look = sent
            changed = ""
            if look.running != sent.running:
                changed += event("running", look.running)
            if look.version != sent.version:
                changed += event("page", look.version)
            if not changed and self._monotonic_s() - said_s > ALIVE_S:
                changed = ": still here\n\n"
            if changed:
                said_s = self._monotonic_s()
                yield changed
            sent = look
            await asyncio.sleep(EVERY_S)

    def _shared(self, vm_uuid: str) -> Look:
        """What another stream has just seen, else a look of one's own."""
        with self._lock:
            now_s = self._monotonic_s()
            at_s, look = self._seen.get(vm_uuid, (-EVERY_S, None))
            if look is None or now_s - at_s >= EVERY_S / 2:
                look = self._look(vm_uuid)
                if len(self._seen) > MAX_STREAMS:
                    self._seen.clear()
                self._seen[vm_uuid] = now_s, look
            return look


def event(name: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {name}\n{lines}\n"
