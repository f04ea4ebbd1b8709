from __future__ import annotations

import datetime as dt

from drvm.notify.model import Event, Message

NOW = dt.datetime(2026, 11, 23, 4, 0, tzinfo=dt.UTC)


def make_message(event: Event = "raised", *, kind: str = "rpo", **fields: object) -> Message:
    usual = {
        "id": "a1b2",
        "event": event,
        "kind": kind,
        "severity": "critical",
        "key": "rpo:web1",
        "vm": "web1",
        "text": "web1: the last good point is 3 d old",
        "hint": "drvm backup web1",
        "since": NOW - dt.timedelta(days=2),
        "at": NOW,
        "host": "kvm1",
    }
    return Message(**(usual | fields))  # type: ignore[arg-type]
