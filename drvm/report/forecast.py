"""How the repository grows: a straight line through what was measured, and how far to trust it.

The slope is the median of the slopes between all pairs of samples (Theil and Sen): a big restore
test or a collection now and then does not bend it. The range is that of the middle 80 % of those
slopes. It is looked no further ahead than there is a past, and not at all where that is short.
"""

from __future__ import annotations

import datetime as dt
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from drvm.report.input import StorageSample

MIN_SAMPLES = 8
MIN_SPAN = dt.timedelta(days=14)
MAX_SPAN = dt.timedelta(days=90)
MAX_SAMPLES = 120
"""Of the samples in ``MAX_SPAN``, evenly chosen: the pairs are their square."""

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """``bytes_per_day`` may be negative. ``low_bytes`` to ``high_bytes``: see above; ``based_on``:
    how many samples, since ``since``."""

    until: dt.datetime
    expected_bytes: int
    low_bytes: int
    high_bytes: int
    bytes_per_day: float
    based_on: int
    since: dt.datetime


def forecast(samples: Sequence[StorageSample]) -> Forecast | None:
    """``samples``: the oldest first. ``None`` where they are too few or too young."""
    if not samples:
        return None
    last = samples[-1]
    used = [sample for sample in samples if last.taken - sample.taken <= MAX_SPAN]
    step = -(-len(used) // MAX_SAMPLES)
    used = used[::-1][::step][::-1]
    span = last.taken - used[0].taken
    if len(used) < MIN_SAMPLES or span < MIN_SPAN:
        return None
    slopes = sorted(
        (later.stored_bytes - earlier.stored_bytes) / days
        for earlier, later in itertools.combinations(used, 2)
        if (days := (later.taken - earlier.taken).total_seconds() / _DAY_S) > 0
    )
    slope = statistics.median(slopes)
    low, high = slopes[len(slopes) // 10], slopes[-1 - len(slopes) // 10]
    ahead = span.total_seconds() / _DAY_S

    def then(bytes_per_day: float) -> int:
        return max(0, round(last.stored_bytes + bytes_per_day * ahead))

    return Forecast(
        until=last.taken + span,
        expected_bytes=then(slope),
        low_bytes=then(low),
        high_bytes=then(high),
        bytes_per_day=slope,
        based_on=len(used),
        since=used[0].taken,
    )
