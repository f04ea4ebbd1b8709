"""Whether a VM's last good point is young enough."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from drvm.core.clock import CLOCK_TOLERANCE


class RpoState(enum.Enum):
    MET = "met"
    MISSED = "missed"
    NEVER = "never"
    """There is no good point at all."""
    NO_TARGET = "no-target"
    """There is a good point, and no policy says how old it may be."""
    UNKNOWN = "unknown"
    """The last good point lies in the future: some clock is wrong."""


@dataclass(frozen=True, slots=True)
class Rpo:
    """``age_seconds``: what would be lost if the VM died now; ``None`` where nobody can tell."""

    state: RpoState
    age_seconds: float | None
    target_seconds: float | None


def rpo_state(last_good: dt.datetime | None, target_seconds: float | None, now: dt.datetime) -> Rpo:
    """``last_good``: when the latest good point was taken. All moments are aware."""
    if last_good is None:
        return Rpo(RpoState.NEVER, None, target_seconds)
    age = now - last_good
    if age < -CLOCK_TOLERANCE:
        return Rpo(RpoState.UNKNOWN, None, target_seconds)
    age_seconds = max(0.0, age.total_seconds())
    if target_seconds is None:
        return Rpo(RpoState.NO_TARGET, age_seconds, None)
    state = RpoState.MET if age_seconds <= target_seconds else RpoState.MISSED
    return Rpo(state, age_seconds, target_seconds)
