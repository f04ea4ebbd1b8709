from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from drvm.runs.log import RUNS_FILE
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
