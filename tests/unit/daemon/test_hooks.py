"""Programs around a backup: what they are told, what their failure means, and what ends them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from drvm.config.policies import HooksConfig
from drvm.core.clock import SystemClock
from drvm.core.errors import CaptureError, Interrupted, ProcessFailed
from drvm.core.process import SystemProcesses
from drvm.core.progress import NoProgress
from drvm.daemon.hooks import Hooks, Result, Subject
from drvm.daemon.task import Outcome

SUBJECT = Subject("backup nightly", "web1\n", "the uuid", "qemu:///system")
GOOD = Result(Outcome("0123456789abcdef", 5))
TELL = """
import os, sys
with open(sys.argv[1], "a") as stream:
    stream.write(sys.argv[2] + " " + repr(sorted(os.environ.items())) + chr(10))
"""


def tell(log: Path, word: str) -> tuple[str, ...]:
    return (sys.executable, "-c", TELL, str(log), word)


def hooks(
    before: list[tuple[str, ...]], after: list[tuple[str, ...]], timeout: float = 20
) -> Hooks:
    config = HooksConfig(before=tuple(before), after=tuple(after), timeout=f"{timeout:g}s")
    return Hooks(config, SystemProcesses())


def test_hooks_run_in_their_order_and_know_what_they_are_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRVM_PASSWORD", "secret")
    log = tmp_path / "log"
    made = hooks([tell(log, "one"), tell(log, "two")], [tell(log, "three")])

    def work() -> Result:
        log.write_text(log.read_text() + "work\n")
        return GOOD

    assert made.around(SUBJECT, NoProgress(), work) == GOOD
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["one", "two", "work", "three"]
    assert "secret" not in log.read_text()
    known = dict(eval(lines[0].partition(" ")[2]))
    after = dict(eval(lines[3].partition(" ")[2]))
    about = {name: text for name, text in known.items() if name.startswith("DRVM_")}
    assert about == {
        "DRVM_JOB": "backup nightly",
        "DRVM_VM": "web1\\x0a",
        "DRVM_VM_UUID": "the uuid",
        "DRVM_HOST": "qemu:///system",
    }
    assert (after["DRVM_OUTCOME"], after["DRVM_POINT"]) == ("done", "0123456789abcdef")
    assert after["DRVM_MESSAGE"] == ""


def test_where_a_hook_before_fails_there_is_no_backup_and_those_after_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    made = hooks([("false",), tell(log, "never")], [tell(log, "after")])
    result = made.around(SUBJECT, NoProgress(), lambda: pytest.fail("backed up"))
    assert isinstance(result.failure, ProcessFailed)
    assert "no backup" in result.failure.message and "false" in result.failure.message
    (line,) = log.read_text().splitlines()
    assert line.startswith("after") and "('DRVM_OUTCOME', 'failed')" in line


def test_a_failed_backup_is_told_to_those_after_and_stays_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def fails() -> Result:
        raise CaptureError("no agent")

    result = hooks([], [("false",), tell(log, "after")]).around(SUBJECT, NoProgress(), fails)
    with pytest.raises(CaptureError):
        result.told()
    assert "('DRVM_MESSAGE', 'no agent')" in log.read_text()


@pytest.mark.parametrize("program", ["false", "/etc/passwd"], ids=["fails", "can't be run"])
def test_a_good_point_stays_good_where_a_hook_after_it_fails(program: str) -> None:
    result = hooks([], [(program,)]).around(SUBJECT, NoProgress(), lambda: GOOD)
    outcome = result.told()
    assert outcome.result == GOOD.outcome.result and outcome.warned
    assert "a hook after the backup failed" in outcome.message


def test_a_hook_has_only_so_long_and_what_it_says_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = hooks([("sh", "-c", "echo hello; printf '\\033[31m' >&2")], [])
    with caplog.at_level(logging.INFO, logger="drvm.daemon"):
        made.before(SUBJECT, NoProgress())
    assert "sh: hello" in caplog.text and "\\x1b[31m" in caplog.text
    with pytest.raises(ProcessFailed, match=r"did not end within 0\.2 s"):
        hooks([("sleep", "60")], [], timeout=0.2).before(SUBJECT, NoProgress())


class Stopping(NoProgress):
    def advance(self, done_bytes: int) -> None:
        raise Interrupted("the daemon is stopping")


@pytest.mark.parametrize("script", ["sleep 60", "exec >&- 2>&-; sleep 60"])
def test_a_stop_ends_a_hook_at_once_and_those_after_are_told(tmp_path: Path, script: str) -> None:
    clock, log = SystemClock(), tmp_path / "log"
    begun_s = clock.monotonic_s()
    made = hooks([("sh", "-c", script)], [tell(log, "after")], timeout=60)
    result = made.around(SUBJECT, Stopping(), lambda: pytest.fail("backed up"))
    assert isinstance(result.failure, Interrupted)
    assert "('DRVM_OUTCOME', 'stopped')" in log.read_text()
    assert clock.monotonic_s() - begun_s < 30


def test_a_stop_leaves_a_hook_after_the_backup_a_short_time_and_the_point_stays_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drvm.daemon.hooks.STOPPED_TIMEOUT_S", 0.3)
    result = hooks([], [("sleep", "60")], timeout=60).after(SUBJECT, GOOD, Stopping())
    assert result.failure is None and result.outcome.result == GOOD.outcome.result
    assert "sleep was ended, as the daemon is stopping" in result.outcome.message
