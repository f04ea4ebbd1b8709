"""``python -m tests.hurried_daemon ARGUMENTS``: drvm, with a cron that fires every two seconds."""

from __future__ import annotations

import datetime as dt
import sys

from drvm.cli.main import main
from drvm.daemon import loop
from drvm.schedule import cron

PERIOD_S = 2


def next_fire(_expression: str, _time_zone: str, after: dt.datetime) -> dt.datetime:
    return dt.datetime.fromtimestamp((after.timestamp() // PERIOD_S + 1) * PERIOD_S, dt.UTC)


def last_fire(_expression: str, _time_zone: str, until: dt.datetime) -> dt.datetime | None:
    return dt.datetime.fromtimestamp(until.timestamp() // PERIOD_S * PERIOD_S, dt.UTC)


if __name__ == "__main__":
    cron.next_fire, cron.last_fire = next_fire, last_fire
    loop.LOOK_EVERY_S = 0.5
    sys.exit(main(sys.argv[1:]))
