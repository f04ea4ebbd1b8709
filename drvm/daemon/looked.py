"""What the daemon leaves of itself in the record of runs, for ``drvm status``."""

from __future__ import annotations

import datetime as dt
from typing import Protocol

import msgspec

from drvm.runs.owner import this_process

LOOKED = "watch"
"""The fact that is ``Looked``."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """``started``: of the process. ``config_read``: when the config in force was, where that was
    later. ``restart_for``: keys of the config that have other values since, and change only when
    the daemon is started again."""

    started: dt.datetime
    config_read: dt.datetime | None = None
    restart_for: tuple[str, ...] = ()


class Looked(Life, frozen=True, kw_only=True):
    """What ``drvm status`` learns of the daemon. ``owner``: its process, as in the record."""

    owner: str
    looked: dt.datetime
    problem: str = ""


class Facts(Protocol):
    def set_fact(self, key: str, value: str | None) -> None: ...


def note_look(record: Facts, life: Life, now: dt.datetime, problem: str = "") -> None:
    fields = msgspec.structs.asdict(life)
    looked = Looked(**fields, owner=this_process(), looked=now, problem=problem)
    record.set_fact(LOOKED, msgspec.json.encode(looked).decode())


def read_looked(text: str | None) -> Looked | None:
    """``None`` for what nobody wrote, or another drvm."""
    try:
        return msgspec.json.decode(text, type=Looked) if text is not None else None
    except (msgspec.MsgspecError, ValueError):
        return None
