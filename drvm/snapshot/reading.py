"""What holds for every read of a capture: its pace, and whether it may still be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drvm.core.pace import Pace


def _always() -> None:
    """For captures that nobody gives up early."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``pace``: shared by the readers of all disks. ``still_frozen`` is asked after every read,
    and raises ``CaptureError`` where what was read may not be given away."""

    pace: Pace
    still_frozen: Callable[[], None] = _always
