"""One run of a job: what was due, what became of it. Moments are aware."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

Kind = Literal["backup", "drill", "prune", "gc", "check", "copy", "locks"]
State = Literal["running", "done", "warned", "failed", "stopped", "lost"]
"""``warned``: done, with something to look at. ``stopped``: the daemon ended meanwhile,
or somebody else was at work on it; it counts as if it had never begun.
``lost``: its process died, as the next one found."""


@dataclass(frozen=True, slots=True)
class Run:
    """``job``: stable over restarts, such as ``backup nightly``. ``vm``, ``vm_uuid``: what it is
    about, ``""`` for jobs about the repository. ``due``: the moment of its schedule; ``None``
    where somebody asked for it. ``result``: the id of a point or drill, also of one that failed;
    ``damage`` for a check that found some. ``attempt`` counts from 1.
    """

    id: str
    job: str
    kind: Kind
    vm: str
    vm_uuid: str
    host: str
    due: dt.datetime | None
    started: dt.datetime
    ended: dt.datetime | None = None
    state: State = "running"
    attempt: int = 1
    message: str = ""
    hint: str = ""
    result: str = ""
    stored_bytes: int = 0
    stage: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
