"""What the engine is given to decide about: who is to be done what, when, and how.

A source builds tasks anew from config and fleet each time it is asked, so that new machines join
and each task knows how far the repository is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from drvm.core.errors import DrvmError
from drvm.core.progress import Progress
from drvm.runs.model import Kind
from drvm.schedule.timing import NO_RETRY, Retry, Timing

Key = tuple[str, str]
"""Of a task: its job and machine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a run that did what it was to do; one that did not raises, and is tried again. ``result``:
    the id of a point or drill. ``warned``: with something to look at, which ``message`` and
    ``hint`` tell. ``failure``: what it found, where that is one: another try would find the same.
    It has a ``result``, too."""

    result: str = ""
    stored_bytes: int = 0
    warned: bool = False
    failure: DrvmError | None = None
    message: str = ""
    hint: str = ""


Work = Callable[[Progress], Outcome]
"""May raise any ``DrvmError``; it must end soon once its progress raises ``Interrupted``."""


@dataclass(frozen=True, slots=True)
class Task:
    """``job`` and ``vm_uuid`` (``""`` for what is about the repository, a group's own name for a
    group) name it, also over restarts.

    ``last_good``: what the repository says: when the last good point was taken, the last drill
    begun; ``None``: never, or only the record of runs knows. ``touches``: the UUIDs of all machines
    that its run works on; it waits while another one does. ``uses``: keys of limits. ``order``:
    lower ones begin first.
    """

    job: str
    kind: Kind
    timing: Timing
    run: Work
    vm: str = ""
    vm_uuid: str = ""
    host: str = ""
    touches: frozenset[str] = frozenset()
    uses: tuple[str, ...] = ()
    order: int = 0
    retry: Retry = NO_RETRY
    last_good: dt.datetime | None = None

    @property
    def key(self) -> Key:
        return (self.job, self.vm_uuid)


@dataclass(frozen=True, slots=True)
class Plan:
    """``limits``: how many runs at once may use a key; keys without one have none."""

    tasks: Sequence[Task]
    limits: Mapping[str, int] = field(default_factory=dict)


Source = Callable[[], Plan]
"""May take long and may fail with a ``DrvmError``: then what it said before holds on."""

ANSWERED = "daemon answered"
"""The fact that says when the source last told what there is to do."""


@dataclass(frozen=True, slots=True)
class Chore:
    """What is done every so often beside all runs, and is in no record: alarms, metrics, room."""

    name: str
    every_s: float
    run: Callable[[Progress], None]
