from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core import redact
from drvm.core.redact import keep_secret
from drvm.core.threads import Pool, Threads, in_context, mapped
from drvm.daemon.logs import ForPeople, JsonLines, LogFormat, about, is_journal, start_logging
from tests.commands import run_command

log = logging.getLogger("drvm.test")


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    logger = logging.getLogger("drvm")
    before = logger.handlers, logger.propagate, logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


def logged(log_format: LogFormat = "json") -> io.StringIO:
    stream = io.StringIO()
    start_logging(stream, log_format, {})
    return stream


def documents(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_says_when_what_and_by_whom() -> None:
    stream = logged()
    log.warning("%s: slow", "web1")
    (document,) = documents(stream)
    assert document.pop("ts").endswith("Z")
    assert document == {"level": "warning", "logger": "drvm.test", "message": "web1: slow"}


def test_what_a_run_logs_names_it_also_from_the_threads_that_it_begins() -> None:
    stream = logged()
    with about(job="backup nightly", run="r1", vm="web1"):
        log.info("here")
        threads = Threads(1, "test")
        threads.submit(log.info, "a pool").result()
        threads.end()
        with Pool(1) as pool:
            list(pool.map(log.info, ["mapped by a pool"]))
        list(mapped(log.info, ["mapped"]))
        thread = threading.Thread(target=in_context(log.info), args=("a thread",))
        thread.start()
        thread.join()
    log.info("after")
    *within, after = documents(stream)
    assert len(within) == 5
    for document in within:
        assert (document["job"], document["run"], document["vm"]) == (
            "backup nightly",
            "r1",
            "web1",
        )
    assert "run" not in after


def test_two_runs_at_once_are_told_apart() -> None:
    stream = logged()
    met = threading.Barrier(2)

    def run(name: str) -> None:
        with about(job="backup", run=name):
            met.wait(5)
            log.info("%s", name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("r1", "r2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(document["run"] == document["message"] for document in documents(stream))


@pytest.mark.parametrize("log_format", ["people", "json"])
def test_a_secret_stands_in_no_log_not_even_in_a_traceback(
    log_format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redact, "_known", {})
    keep_secret("hunter2hunter2")
    stream = logged(log_format)
    try:
        raise ValueError("401 for hunter2hunter2")
    except ValueError:
        log.exception("login with %r", "hunter2hunter2")
    with about(job="hunter2hunter2", run="hunter2hunter2", vm="hunter2hunter2"):
        log.error("more")
    text = stream.getvalue()
    assert "hunter2" not in text and "ValueError" in text and "[secret]" in text


def test_a_traceback_is_a_field_of_the_one_line() -> None:
    stream = logged()
    try:
        raise ValueError("oh")
    except ValueError:
        log.exception("bug")
    (document,) = documents(stream)
    assert document["message"] == "bug"
    assert document["exception"].splitlines()[-1] == "ValueError: oh"


@given(st.text())
def test_no_text_breaks_a_line_or_reaches_a_terminal_raw(text: str) -> None:
    record = logging.LogRecord("drvm", logging.INFO, "", 0, "%s", (text,), None)
    line = JsonLines().format(record)
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["level"] == "info"
    for line in ForPeople().format(record).split("\n"):
        assert line.isprintable() or not any(ord(char) < 32 for char in line)


def test_the_journal_gets_the_priority_of_each_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        start_logging(stream, "people", environ)
        log.error("two\nlines")
        start_logging(stream, "json", environ)
        log.info("x")
        log.debug("not shown")
    lines = path.read_text().splitlines()
    assert lines[:2] == ["<3>drvm: ERROR: two", "<3>lines"]
    assert lines[2].startswith('<6>{"ts": ')
    assert len(lines) == 3


def test_another_stream_than_the_journals_gets_no_priorities(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        assert not is_journal(stream, {"JOURNAL_STREAM": "1:2"})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


@pytest.mark.parametrize(
    ("arguments", "env", "is_json"),
    [
        (["config", "validate"], {}, False),
        (["--log-format", "json", "config", "validate"], {}, True),
        (["config", "validate", "--log-format", "json"], {}, True),
        (["config", "validate"], {"DRVM_LOG_FORMAT": "json"}, True),
        (["config", "validate"], {"DRVM_LOG_FORMAT": "nonsense"}, False),
        (["--log-format", "people", "config", "validate"], {"DRVM_LOG_FORMAT": "json"}, False),
    ],
)
def test_an_error_is_told_as_the_log_format_says(
    arguments: list[str], env: dict[str, str], is_json: bool, tmp_path: Path
) -> None:
    result = run_command([*arguments, "--config", str(tmp_path / "absent")], env)
    assert result.code == 2
    assert result.err.startswith("{") == is_json
    if is_json:
        assert "absent" in json.loads(result.err)["message"]


def test_a_daemon_without_a_terminal_logs_json(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"repository: {{url: 'file://{tmp_path}/none'}}\nstate_dir: {tmp_path}\n")
    env = {"DRVM_PASSWORD": "a long passphrase", "DRVM_CONFIG": str(config)}
    result = run_command(["daemon"], env)
    assert result.code == 1
    assert json.loads(result.err.splitlines()[-1])["level"] == "error"
    result = run_command(["daemon", "--log-format", "people"], env)
    assert result.err.splitlines()[-2].startswith("drvm: error: ")


def test_what_the_environment_holds_in_secret_stands_in_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redact, "_known", {})
    secret = "planted-secret-of-aws"
    absent = tmp_path / secret
    result = run_command(
        ["--log-format", "json", "--config", str(absent), "points"],
        {"AWS_SECRET_ACCESS_KEY": secret},
    )
    assert result.code == 2
    assert secret not in result.err and "[secret]" in result.err
