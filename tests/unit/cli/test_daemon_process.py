"""The daemon as a process: signals reach it, and a wrong config changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from drvm.core.clock import SystemClock
from drvm.lab.guest import wait_for_text
from drvm.runs.log import RUNS_FILE
from tests.commands import run_command

LIMIT_S = 60.0
CONFIG = """
repository: {{url: "file://{0}/store", password_file: {0}/passphrase}}
hosts: [{{uri: "test:///default"}}]
state_dir: {0}/state
cache_dir: {0}/cache
policies: [{{name: nightly, vms: [web1], schedule: "0 3 1 1 *"}}]
"""


def test_sighup_reads_a_valid_config_refuses_a_wrong_one_and_sigterm_ends_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "passphrase").write_text("a passphrase for tests only")
    (tmp_path / "passphrase").chmod(0o600)
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    good = CONFIG.format(tmp_path)
    config.write_text(good)
    env = {"DRVM_CONFIG": str(config), "PATH": os.environ["PATH"]}
    assert run_command(["init"], env).code == 0
    with log.open("wb") as stream:
        daemon = subprocess.Popen([sys.executable, "-m", "drvm", "daemon"], env=env, stderr=stream)
    try:
        # the first look at the fleet proves that several threads have opened the repository
        assert wait_for_text(log, "no policy protects test", LIMIT_S, SystemClock())
        second = run_command(["daemon"], env)
        assert second.code != 0 and "runs already" in second.err
        config.write_text(good + "nonsense: 1\nmore: 2\n")
        daemon.send_signal(signal.SIGHUP)
        assert wait_for_text(log, "more: unknown key", LIMIT_S, SystemClock()), log.read_text()
        assert "nonsense: unknown key" in log.read_text()
        changed = good.replace("web1", "test").replace("/state", "/elsewhere")
        config.write_text(f"{changed}daemon: {{dashboard: {{token_file: {tmp_path}/token}}}}")
        for told in ("daemon.dashboard keeps its old value", "backup nightly: test: started"):
            daemon.send_signal(signal.SIGHUP)  # twice: the second one knows it, too
            assert wait_for_text(log, told, LIMIT_S, SystemClock()), log.read_text()
        status = run_command(["status", "--json"], env).document
    finally:
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(30)
    assert code == 0, log.read_text()
    assert log.read_text().count("stays as it was") == 1
    assert "state_dir keeps its old value until the daemon is started again" in log.read_text()
    assert (tmp_path / "elsewhere" / RUNS_FILE).exists(), "there drvm status looks from now on"
    assert not (tmp_path / "elsewhere" / "journal").exists(), "what runs has its own in the first"
    told = status["daemon"]
    assert told["running"] and told["since"] < told["config_read"]
    assert told["restart_for"] == ["state_dir", "daemon.dashboard"]
    assert "daemon restart" in [concern["key"] for concern in status["concerns"]]


def test_guests_are_put_back_before_the_repository_is_asked_which_may_be_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "passphrase").write_text("a passphrase for tests only")
    (tmp_path / "passphrase").chmod(0o600)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(tmp_path).replace("test:///default", "qemu+unix:///nowhere"))
    result = run_command(["daemon"], {"DRVM_CONFIG": str(config), "PATH": os.environ["PATH"]})
    assert result.code != 0
    first, last = result.err.splitlines()[0], result.err.splitlines()[-1]
    assert "leftovers could not be looked for" in first, result.err
    assert "there is no directory" in last, result.err
