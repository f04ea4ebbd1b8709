"""What is told, and the ways to tell it."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal, Protocol

import msgspec

Event = Literal["raised", "reminder", "over"]
Severity = Literal["critical", "warning"]

MAX_TEXT_CHARS = 1000


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another alarm of the same event and kind, told in the same message."""

    key: str
    severity: Severity
    vm: str
    text: str
    since: dt.datetime


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One alarm that began, lasts, or is over, and ``others`` that did so at the same moment.
    Moments are aware; all texts are one safe line.

    ``id``: of this message; the same one may arrive twice, never another under it. ``key``: of the
    alarm, the same when it is raised, repeated and withdrawn. ``kind``: failure, rpo, drill,
    damage. ``host``: which drvm tells it. ``since``: when the trouble began, as far as is known.
    """

    id: str
    event: Event
    kind: str
    severity: Severity
    key: str
    vm: str
    text: str
    hint: str
    since: dt.datetime
    at: dt.datetime
    host: str
    others: tuple[Part, ...] = ()

    def title(self) -> str:
        """One line that says it all: a subject, or what a phone shows."""
        return f"drvm {self.host}: {self._words()}: {self.text}"

    def _words(self) -> str:
        """``RESOLVED`` alone: beside a severity it would read as one at a glance."""
        severity = self.severity.upper()
        return {"raised": severity, "reminder": f"STILL {severity}", "over": "RESOLVED"}[self.event]

    def body(self) -> str:
        """Lines for people."""
        lines = [f"{self._words()}: {self.text}", ""]
        lines += [f"What to do: {self.hint}", ""] if self.hint and self.event != "over" else []
        named = [
            ("kind", self.kind),
            ("machine", self.vm),
            ("since", f"{self.since:%Y-%m-%d %H:%M:%S} UTC"),
            ("told by", f"drvm on {self.host}, {self.at:%Y-%m-%d %H:%M:%S} UTC"),
            ("message", self.id),
        ]
        if self.others:
            lines += ["and:", *(f"  {part.text}" for part in self.others), ""]
        lines += [f"{name + ':':9} {value}" for name, value in named if value]
        return "\n".join(lines) + "\n"

    def fields(self) -> dict[str, Any]:
        """The JSON of a webhook: stable names. ``text`` is what chats show that take such JSON;
        ``problem`` is the alarm's own text."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        fields["problem"] = fields["text"]
        return fields | {"text": self.title(), "source": "drvm", "format": 0}


class Way(Protocol):
    """``send`` returns when the other side took the message, within a minute or so. Raises
    ``NotifyFailed``, and ``UsageError`` for files that are not as they must be; no error of it
    holds a secret."""

    @property
    def name(self) -> str: ...

    def send(self, message: Message) -> None: ...
