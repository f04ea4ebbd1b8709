"""``python -m tests.killed_command STEP ARGUMENTS...``: drvm's command, killed at a step."""

from __future__ import annotations

import os
import signal
import sys
from unittest import mock

from drvm.cli.invocation import Invocation
from drvm.cli.main import main


def killed(step: str, *arguments: str) -> int:
    def trace(_invocation: Invocation, reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(Invocation, "trace", trace):
        return main(arguments)


if __name__ == "__main__":
    sys.exit(killed(*sys.argv[1:]))
