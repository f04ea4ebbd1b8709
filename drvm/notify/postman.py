"""The threads that tell: one for each way, so that none waits for another, and nothing for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from drvm.core.clock import Clock
from drvm.core.errors import DrvmError
from drvm.core.redact import redacted
from drvm.notify import outbox
from drvm.notify.http import Ping
from drvm.notify.model import Message, Way
from drvm.notify.outbox import Outbox

log = logging.getLogger("drvm.notify")

KEY = "notify."
"""Each way's outbox is the fact ``notify.NAME``."""

_LOOK_S = 5.0
_changing = threading.Lock()
"""Held from reading an outbox to writing it: when the config is read anew, those before may still
be telling something."""


class Facts(Protocol):
    """Texts by name, which outlive the process; no call of it ever raises."""

    def fact(self, key: str) -> str | None: ...

    def set_fact(self, key: str, value: str | None) -> None: ...


class Postman:
    """Takes messages at once and tells them in its own time: at least once, over restarts too.

    Killed between a message's arrival and its note of that, it tells it again, under its id.
    ``works`` is asked before each ping. Errors are logged, and stand in ``outboxes``.
    """

    def __init__(
        self,
        ways: Sequence[tuple[Way, Callable[[Message], bool]]],
        pings: Sequence[Ping],
        facts: Facts,
        clock: Clock,
        works: Callable[[], bool],
    ) -> None:
        self._couriers = [Courier(way, wanted, facts, clock) for way, wanted in ways]
        self._pingers = [Pinger(ping, facts, clock, works) for ping in pings]

    def start(self) -> None:
        for thread in (*self._couriers, *self._pingers):
            thread.start()

    def stop(self, patience_s: float = 3.0) -> None:
        """Soon: a request that is under way is left to end with the process."""
        for thread in (*self._couriers, *self._pingers):
            thread.stop()
        for thread in (*self._couriers, *self._pingers):
            thread.join(patience_s / max(1, len(self._couriers) + len(self._pingers)))

    def tell(self, messages: Iterable[Message]) -> None:
        """Returns when they are kept, to be told soon."""
        told = list(messages)
        for courier in self._couriers:
            courier.take(told)

    def outboxes(self) -> Mapping[str, Outbox]:
        """By the names of their ways, pings among them."""
        return {thread.name: thread.outbox for thread in (*self._couriers, *self._pingers)}


class _Telling:
    """A thread that looks every few seconds whether there is something to do."""

    def __init__(self, name: str, facts: Facts, clock: Clock) -> None:
        self.name = name
        self._facts = facts
        self._clock = clock
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._outbox = outbox.decode(facts.fact(KEY + name))

    @property
    def outbox(self) -> Outbox:
        return self._outbox

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"tell-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    def look(self) -> bool:
        """Do what is due; whether there may be more at once."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stopped:
            try:
                more = self.look()
            except Exception:
                log.exception("%s: this is a bug", self.name)
                more = False
            if not more:
                self._wake.wait(_LOOK_S)
                self._wake.clear()

    def _change(self, change: Callable[[Outbox], Outbox]) -> None:
        with _changing:
            self._outbox = change(outbox.decode(self._facts.fact(KEY + self.name)))
            self._facts.set_fact(KEY + self.name, outbox.encode(self._outbox))

    def _attempt(self, act: Callable[[], None], message: Message | None) -> None:
        before = self._outbox
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a way raises, the next ones are told
            text, refused = outbox.reason(error)
            if not isinstance(error, DrvmError):
                text = f"this is a bug: {type(error).__name__}: {text}"
            text, now = redacted(text), self._clock.now()
            self._change(lambda box: box.not_arrived(message, now, text, refused=refused))
            lost = self._outbox.lost > before.lost
            if lost or text != before.failure:  # not each of a hundred attempts
                end = "; it is given up" if lost else "; it is tried again"
                log.log(
                    logging.ERROR if lost else logging.WARNING, "%s: %s%s", self.name, text, end
                )
            return
        now = self._clock.now()
        self._change(lambda box: box.arrived(message, now))
        if before.failure:
            log.info("%s: works again", self.name)


class Courier(_Telling):
    """One way and its outbox; ``wanted``: what is told by it."""

    def __init__(
        self, way: Way, wanted: Callable[[Message], bool], facts: Facts, clock: Clock
    ) -> None:
        super().__init__(way.name, facts, clock)
        self._way = way
        self._wanted = wanted

    def take(self, messages: Sequence[Message]) -> None:
        mine = [message for message in messages if self._wanted(message)]
        if mine:
            self._change(lambda box: _with_all(box, mine))
            self._wake.set()

    def look(self) -> bool:
        with _changing:  # a look that began under an older config may put something in, too
            self._outbox = outbox.decode(self._facts.fact(KEY + self.name))
        message = self._outbox.due(self._clock.now())
        if message is None:
            return False
        self._attempt(lambda: self._way.send(message), message)
        return True


class Pinger(_Telling):
    """Pings while ``works`` says so; silence is its alarm."""

    def __init__(self, ping: Ping, facts: Facts, clock: Clock, works: Callable[[], bool]) -> None:
        super().__init__(ping.name, facts, clock)
        self._ping = ping
        self._works = works
        self._next_s = clock.monotonic_s()

    def look(self) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s >= self._next_s and self._works():
            self._next_s = now_s + self._ping.every_s
            self._attempt(self._ping.ping, None)
            if self._outbox.failure:
                self._next_s = now_s + min(self._ping.every_s, outbox.FIRST_PAUSE_S)
        return False


def _with_all(box: Outbox, messages: Sequence[Message]) -> Outbox:
    for message in messages:
        box = box.with_message(message)
    return box
