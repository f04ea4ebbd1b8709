"""``python -m tests.killed_backup DIRECTORY VM STEP``: a backup that is killed at a step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from drvm.core.progress import NoProgress
from drvm.wiring.jobs import BackupOptions, take_point
from tests.appliance import Appliance


def main(directory: str, vm: str, step: str) -> None:
    def trace(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with Appliance(Path(directory), os.environ).wiring() as wiring:
        take_point(wiring, vm, BackupOptions(), NoProgress(), trace)


if __name__ == "__main__":
    main(*sys.argv[1:])
