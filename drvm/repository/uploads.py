"""Uploading finished packs while the next ones fill: bounded in number, first error wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from drvm.core.errors import DamageFound, ObjectMissing, OutcomeUnknown
from drvm.core.threads import Threads
from drvm.repository.layout import pack_object
from drvm.repository.pack import SealedPack
from drvm.store.base import Store


class Uploads:
    """At most ``in_flight`` packs wait in memory; ``put`` blocks beyond that, and so the source
    is read no faster than the store takes it. Leaving the context waits for what is under way.
    """

    def __init__(self, store: Store, *, threads: int = 2, in_flight: int = 2) -> None:
        self._store = store
        self._pool = Threads(threads, "upload")
        self._room = threading.Semaphore(in_flight)
        self._pending: list[Future[None]] = []
        self.stored_bytes = 0

    def put(self, pack: SealedPack, done: Callable[[], None] = lambda: None) -> None:
        """Raises what an earlier upload raised, and so does every call after that. ``done`` is
        called, by another thread, when the pack's data is not looked at any more."""
        self._room.acquire()
        try:
            self._reap()
            future = self._pool.submit(self._upload, pack)
        except BaseException:
            self._room.release()
            raise

        def ended(_: Future[None]) -> None:
            done()
            self._room.release()

        future.add_done_callback(ended)
        self._pending.append(future)
        self.stored_bytes += len(pack.data)

    def finish(self) -> None:
        """Everything is durably stored when this returns."""
        for future in self._pending:
            future.result()
        self._pending = []

    def close(self) -> None:
        self._pool.end()

    def _reap(self) -> None:
        """Forget the uploads that ended well. One that failed is kept: it is never forgotten."""
        waiting = []
        for future in self._pending:
            if not future.done():
                waiting.append(future)
            else:
                future.result()
        self._pending = waiting

    def _upload(self, pack: SealedPack) -> None:
        name = pack_object(pack.name)
        try:
            self._store.put(name, pack.data)
        except OutcomeUnknown as unknown:
            # never sent again under the same name: a duplicate that arrives late could bring
            # back a pack that was collected meanwhile
            try:
                arrived = self._store.get(name)
            except ObjectMissing:
                raise unknown from None
            if arrived != pack.data:
                raise DamageFound(f"{name} did not arrive as it was sent") from None
