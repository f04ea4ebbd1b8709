"""A server is started anew until it is told to end, whatever goes wrong with a start."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from drvm.core.errors import ProcessFailed, RestoreError
from drvm.restore.served import server
from drvm.restore.served.server import keep_running


class Dead:
    """A server that has ended."""

    def wait(self, timeout_s: float) -> bool:
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        return None


@pytest.mark.parametrize(
    "problem",
    [RestoreError("it did not start"), ProcessFailed("not installed"), OSError(12, "no memory")],
)
def test_a_start_that_fails_is_tried_again(problem, monkeypatch):
    monkeypatch.setattr(server, "_PAUSES_S", (0.0,))
    end, tries = threading.Event(), []

    def start(_: threading.Event) -> Any:
        tries.append(1)
        if len(tries) == 3:
            end.set()
        raise problem

    keep_running(start, Dead(), end)
    assert len(tries) == 3
