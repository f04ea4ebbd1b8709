"""Calls that may take long, each on a thread of its own that nobody waits for when it all ends.

A host or a store that does not answer would otherwise keep the daemon from ending in its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from drvm.core.errors import DrvmError

MAX_AT_ONCE = 48

_T = TypeVar("_T")


class Aside:
    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(MAX_AT_ONCE)

    async def __call__(self, call: Callable[..., _T], *args: Any) -> _T:
        """What ``call`` returns or raises. Raises ``DrvmError`` where too many last."""
        if not self._room.acquire(blocking=False):
            raise DrvmError("too much is being looked up already", hint="try again in a moment")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def run() -> None:
            result, failed = None, None
            try:
                result = call(*args)
            except Exception as error:  # noqa: BLE001 - raised in whoever waits
                failed = error
            finally:
                self._room.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result, failed)

        threading.Thread(target=run, name="dashboard request", daemon=True).start()
        return await future
