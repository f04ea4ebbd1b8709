from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import cast

import pytest

from drvm.cli.commands import daemon
from drvm.core.errors import WrongKey
from drvm.runs.log import RUNS_FILE
from drvm.wiring.assembly import Wiring
from tests.unit.cli.test_status import Appliance


def test_a_daemon_whose_store_is_away_begins_all_the_same_and_says_so(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path)
    record = tmp_path / "state" / RUNS_FILE

    def end() -> None:
        for _ in range(600):
            if record.exists():
                break
            time.sleep(0.05)
        time.sleep(1.0)  # signals are its own then
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    result = appliance.drvm(
        "daemon",
        DRVM_REPOSITORY="s3://bucket/x",
        AWS_ENDPOINT_URL="http://127.0.0.1:1",
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        AWS_REGION="x",
    )
    ending.join()
    assert result.code == 0, result.err
    messages = [json.loads(line)["message"] for line in result.err.splitlines()]
    assert messages[0].startswith("the repository can't be looked at yet: ")
    assert "stopping" in messages


class Opened(contextlib.AbstractContextManager["Opened"]):
    """A wiring whose store never answers, or does by an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.ended = threading.Event()

    def another(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def passphrase(self) -> bytes:
        return b""

    def repository(self) -> None:
        if self.error is not None:
            raise self.error
        self.ended.wait(60)


def test_a_store_that_takes_requests_and_never_answers_does_not_hold_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "FIRST_LOOK_S", 0.05)
    silent = Opened()
    daemon._try_repository(cast(Wiring, silent))
    silent.ended.set()
    assert "can't be looked at yet: no answer within 0.05 s" in caplog.text


def test_a_wrong_key_ends_the_daemon_at_its_start() -> None:
    with pytest.raises(WrongKey):
        daemon._try_repository(cast(Wiring, Opened(WrongKey("no"))))
