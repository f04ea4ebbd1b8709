"""``python -m tests.fast_daemon ARGUMENTS``: drvm in fast motion. ``*/20 * * * *`` fires each 20
seconds, and what is done each minute is done each two seconds; nothing else is different."""

from __future__ import annotations

import datetime as dt
import faulthandler
import logging
import re
import signal
import sys

from drvm.cli.commands import daemon
from drvm.cli.main import main
from drvm.daemon import loop, tasks_fleet, watch
from drvm.daemon.alarms import Rules
from drvm.notify import outbox, postman
from drvm.schedule import cron
from drvm.schedule.timing import Retry
from drvm.wiring import timetable

RULES = Rules(quiet_s=6.0, longest_quiet_s=24.0, repeat_s=3600.0, remember_s=60.0)


def _period_s(expression: str) -> int:
    every = re.match(r"\*/(\d+) ", expression)
    return int(every[1]) if every is not None else 3600


def next_fire(expression: str, _time_zone: str, after: dt.datetime) -> dt.datetime:
    period_s = _period_s(expression)
    return dt.datetime.fromtimestamp((after.timestamp() // period_s + 1) * period_s, dt.UTC)


def last_fire(expression: str, _time_zone: str, until: dt.datetime) -> dt.datetime | None:
    period_s = _period_s(expression)
    return dt.datetime.fromtimestamp(until.timestamp() // period_s * period_s, dt.UTC)


def hurry() -> None:
    cron.next_fire, cron.last_fire = next_fire, last_fire
    loop.LOOK_EVERY_S, loop.ASK_EVERY_S = 0.5, 2.0
    tasks_fleet.EVERY_S = 1.0
    timetable.UPKEEP_RETRY = Retry(times=3, after_s=5.0)
    daemon.WATCH_EVERY_S = 2.0
    watch.AWAY_AFTER = dt.timedelta(seconds=6)
    watch.Rules = lambda: RULES  # type: ignore[misc,assignment]
    outbox.FIRST_PAUSE_S, outbox.LONGEST_PAUSE_S = 1.0, 4.0
    postman._LOOK_S = 0.5


if __name__ == "__main__":
    hurry()
    faulthandler.register(signal.SIGUSR1)  # where it hangs
    logging.getLogger("drvm").setLevel(logging.INFO)
    sys.exit(main(sys.argv[1:]))
