"""Stores that misbehave, and stores that remember, around a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from drvm.core.errors import OutcomeUnknown
from drvm.store.base import ObjectInfo
from drvm.store.memory import MemoryStore


class FaultyStore(MemoryStore):
    """``calls`` lists every call as "verb name"; ``before`` is asked first, and may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.before: Callable[[str, str], None] = lambda verb, name: None
        self.lose_reply: Callable[[str, str], bool] = lambda verb, name: False

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._note("get", name)
        return super().get(name, offset=offset, length=length)

    def get_tail(self, name: str, length: int) -> bytes:
        self._note("tail", name)
        return super().get_tail(name, length)

    def head(self, name: str) -> ObjectInfo:
        self._note("head", name)
        return super().head(name)

    def put(self, name: str, data: bytes) -> None:
        self._note("put", name)
        super().put(name, data)
        self._answer("put", name)

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._note("create", name)
        super().put_if_absent(name, data)
        self._answer("create", name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._note("list", prefix)
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self._note("delete", name)
        super().delete(name)

    def _note(self, verb: str, name: str) -> None:
        self.calls.append(f"{verb} {name}")
        self.before(verb, name)

    def _answer(self, verb: str, name: str) -> None:
        if self.lose_reply(verb, name):
            raise OutcomeUnknown(f"the answer to {verb} {name} was lost")


def within(seconds: float, work: Callable[[], object]) -> None:
    """Fail, instead of hanging for ever, where ``work`` does not end."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"not done after {seconds} s"
    if failure:
        raise failure[0]
