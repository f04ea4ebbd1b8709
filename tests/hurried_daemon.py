"""``python -m tests.hurried_daemon ARGUMENTS``: drvm, with a cron that fires every two seconds."""

from __future__ import annotations

import datetime as dt
import sys

from drvm.cli.main import main
from drvm.daemon import service


class Hurried(service.CronsimTrigger):
    def get_next_fire_time(
        self, previous_fire_time: dt.datetime | None, now: dt.datetime
    ) -> dt.datetime:
        super().get_next_fire_time(previous_fire_time, now)
        return (previous_fire_time or now) + dt.timedelta(seconds=2)


if __name__ == "__main__":
    service.CronsimTrigger = Hurried  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
