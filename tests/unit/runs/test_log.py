"""The record of runs: several processes, deaths, damage and full disks, and never an error."""

from __future__ import annotations

import dataclasses
import datetime as dt
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvm.runs import database, log
from drvm.runs.log import RunLog
from drvm.runs.model import Run, State
from drvm.runs.owner import is_alive, this_process
from tests.fakes.clock import FakeClock

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def runs(tmp_path: Path, clock: FakeClock) -> Iterator[RunLog]:
    with RunLog(tmp_path / "state" / "runs.db", clock) as opened:
        yield opened


def made(clock: FakeClock, name: str = "r1", vm_uuid: str = "u1", job: str = "backup a") -> Run:
    return Run(name, job, "backup", "web1", vm_uuid, "qemu:///system", clock.now(), clock.now())


def ended(run: Run, clock: FakeClock, state: State = "done") -> Run:
    return dataclasses.replace(run, ended=clock.now(), state=state, attempt=2, message="x")


def test_a_run_is_running_until_it_is_finished(runs: RunLog, clock: FakeClock) -> None:
    run = made(clock)
    runs.begin(run)
    assert runs.running() == (run,) and runs.recent(5) == () and runs.latest() == ()
    runs.progress(run.id, "reading", 5, 10)
    assert runs.running()[0].stage == "reading" and runs.running()[0].total_bytes == 10
    clock.sleep(60)
    over = ended(run, clock)
    runs.finish(over)
    assert runs.running() == () and runs.recent(5) == (over,) and runs.latest() == (over,)


def test_the_last_good_run_outlives_those_that_fail_and_history(
    runs: RunLog, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_RUNS", 10)
    began = clock.now()
    runs.finish(ended(made(clock, "good"), clock, "warned"))
    for number in range(250):
        clock.sleep(60)
        runs.finish(ended(made(clock, f"bad{number}"), clock, "failed"))
        runs.finish(ended(made(clock, f"other{number}", "u2"), clock))
    assert runs.last_good("backup a", "u1") == began
    assert runs.last_good("backup a", "u3") is None
    assert len(runs.recent(1000)) <= 10 + 2 * log._TRIM_EVERY
    assert {run.id for run in runs.latest()} == {"bad249", "other249"}
    assert {run.vm_uuid for run in runs.recent(1000, "u2")} == {"u2"}


def test_history_stays_bounded_by_processes_that_finish_one_run_each(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_RUNS", 10)
    for number in range(30):
        clock.sleep(60)
        with RunLog(tmp_path / "runs.db", clock) as runs:  # as drvm run does it, by a timer
            runs.finish(ended(made(clock, f"r{number}"), clock))
            assert len(runs.recent(1000)) <= 12


def test_a_stopped_run_does_not_hide_that_the_one_before_failed(
    runs: RunLog, clock: FakeClock
) -> None:
    for name, state in (("r1", "done"), ("r2", "stopped"), ("r3", "failed"), ("r4", "stopped")):
        clock.sleep(60)
        runs.finish(ended(made(clock, name), clock, state))  # type: ignore[arg-type]
        if name == "r2":
            assert [run.id for run in runs.latest()] == ["r2"]
    assert [run.id for run in runs.latest()] == ["r3"]
    runs.finish(ended(made(clock, "r5"), clock))
    assert [run.id for run in runs.latest()] == ["r5"]


def test_texts_that_are_no_utf8_are_kept_as_well(runs: RunLog, clock: FakeClock) -> None:
    run = dataclasses.replace(ended(made(clock), clock, "failed"), message="no \udcff.qcow2")
    runs.finish(run)
    assert runs.latest()[0].message == "no \\udcff.qcow2"


def test_facts_are_kept_and_forgotten(runs: RunLog) -> None:
    runs.set_fact("alarm rpo u1", "raised")
    runs.set_fact("ping", "ok")
    assert runs.facts("alarm ") == {"alarm rpo u1": "raised"} and runs.fact("ping") == "ok"
    runs.set_fact("alarm rpo u1", None)
    assert runs.facts("alarm ") == {} and runs.fact("alarm rpo u1") is None


def test_the_file_is_its_owners_alone(runs: RunLog, clock: FakeClock, tmp_path: Path) -> None:
    runs.begin(made(clock))
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


_DIES = """
import datetime as dt, os, sys
from pathlib import Path
from drvm.core.clock import SystemClock
from drvm.runs.log import RunLog
from drvm.runs.model import Run
now = SystemClock().now()
runs = RunLog(Path(sys.argv[1]), SystemClock())
runs.begin(Run("dead", "backup a", "backup", "web1", "u1", "", now, now))
os._exit(9)
"""


def test_a_run_whose_process_is_gone_is_lost_and_those_of_others_are_not(
    runs: RunLog, clock: FakeClock, tmp_path: Path
) -> None:
    mine = made(clock, "mine", "u2")
    runs.begin(mine)
    path = tmp_path / "state" / "runs.db"
    assert subprocess.run([sys.executable, "-c", _DIES, str(path)], check=False).returncode == 9
    assert runs.running() == (mine,)
    (lost,) = runs.latest()
    assert lost.id == "dead" and lost.state == "lost" and lost.ended is not None
    assert runs.last_good("backup a", "u1") is None


def test_a_number_that_another_process_has_got_is_not_the_old_one() -> None:
    pid, start, boot = this_process().split()
    assert is_alive(f"{pid} {start} {boot}")
    assert not is_alive(f"{pid} {int(start) + 1} {boot}")
    assert not is_alive(f"{pid} {start} another-boot")
    assert not is_alive("../1 2 3") and not is_alive("")


def test_what_one_process_writes_another_sees(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "runs.db"
    with RunLog(path, clock) as one, RunLog(path, clock) as other:
        one.finish(ended(made(clock), clock))
        assert [run.id for run in other.recent(5)] == ["r1"]


@pytest.mark.parametrize("damage", ["text", "foreign", "torn", "moment"])
def test_a_file_that_is_not_ours_is_put_aside(
    damage: str, tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "runs.db"
    if damage == "text":
        path.write_bytes(b"no database at all" * 1000)
    elif damage == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE runs (id TEXT)")
        db.close()
    else:
        with RunLog(path, clock) as runs:
            for number in range(200):
                runs.finish(ended(made(clock, f"r{number}"), clock))
        with sqlite3.connect(path) as db:
            if damage == "moment":
                db.execute("UPDATE runs SET started='yesterday'")
        db.close()
        if damage == "torn":
            data = path.read_bytes()
            path.write_bytes(data[:4096] + bytes(len(data) // 2) + data[len(data) // 2 + 4096 :])
    with RunLog(path, clock) as runs:
        runs.recent(5)
        run = made(clock, "new")
        runs.begin(run)
        assert runs.running() == (run,) and runs.recent(5) == ()
        assert "put aside" in (runs.problem or "")
    assert path.with_name("runs.db.aside").exists()
    with RunLog(path, clock) as runs:
        assert runs.running() == (run,) and runs.problem is None


def upgrade(path: Path) -> None:
    """As a newer drvm does."""
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE runs ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'")
        db.execute(f"PRAGMA user_version={database.VERSION + 1}")
    db.close()


def content(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT id, state, mood FROM runs ORDER BY id").fetchall()
    db.close()
    return found


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_the_file_of_a_newer_drvm_is_left_to_it_and_memory_serves(
    when: str, tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "runs.db"
    with RunLog(path, clock) as runs:
        runs.finish(ended(made(clock), clock, "failed"))
        runs.set_fact("alarms", "1")
        if when == "while it is open":
            upgrade(path)
        runs.close()
        if when == "before it is opened":
            upgrade(path)
    with RunLog(path, clock) as runs:
        for _ in range(2):
            runs.begin(made(clock, "r2", "u2"))
            runs.finish(ended(made(clock, "r3", "u3"), clock))
            assert [run.id for run in runs.latest()] == ["r1", "r3"]
            assert [run.id for run in runs.running()] == ["r2"]
            assert runs.fact("alarms") == "1", "what it says is known as far as it can be read"
            assert "a newer drvm" in (runs.problem or "")
            clock.sleep(log.TRY_AGAIN_S)
    assert content(path) == [("r1", "failed", "calm")]
    assert not path.with_name("runs.db.aside").exists()


def test_a_newer_drvm_that_comes_while_it_is_open_stops_nothing(
    tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "runs.db"
    with RunLog(path, clock) as runs:
        runs.begin(made(clock))
        upgrade(path)
        runs.finish(ended(made(clock), clock))
        assert runs.running() == () and runs.latest()[0].state == "done"
        assert "a newer drvm" in (runs.problem or "")
    assert content(path) == [("r1", "running", "calm")]


def test_an_older_file_is_upgraded_with_all_that_is_in_it(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.db"
    with RunLog(path, clock) as runs:
        runs.finish(ended(made(clock), clock))
    columns = database._TABLES["runs"] | {"mood": "mood TEXT NOT NULL DEFAULT 'calm'"}
    monkeypatch.setattr(database, "_TABLES", database._TABLES | {"runs": columns})
    monkeypatch.setattr(database, "VERSION", database.VERSION + 1)
    for _ in range(2):
        database.open_file(path).close()
    assert content(path) == [("r1", "done", "calm")]


def test_while_the_file_cannot_be_had_memory_serves_and_is_written_later(
    tmp_path: Path, clock: FakeClock
) -> None:
    place = tmp_path / "state"
    place.write_text("a file where the directory is to be")
    with RunLog(place / "runs.db", clock) as runs:
        runs.finish(ended(made(clock), clock))
        runs.set_fact("a", "1")
        assert [run.id for run in runs.recent(5)] == ["r1"] and runs.problem
        place.unlink()
        assert [run.id for run in runs.latest()] == ["r1"] and runs.problem  # not yet again
        clock.sleep(log.TRY_AGAIN_S)
        runs.begin(made(clock, "r2", "u2"))
        assert runs.problem is None
    with RunLog(place / "runs.db", clock) as runs:
        assert [run.id for run in runs.latest()] == ["r1"] and runs.fact("a") == "1"
        assert [run.id for run in runs.running()] == ["r2"]


def test_a_full_disk_in_the_middle_of_a_run_is_no_error(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = database.transaction

    def full(connection: sqlite3.Connection, work: object) -> object:
        if connection.execute("PRAGMA database_list").fetchone()[2]:
            raise sqlite3.OperationalError("database or disk is full")
        return real(connection, work)  # type: ignore[arg-type]

    with RunLog(tmp_path / "runs.db", clock) as runs:
        run = made(clock)
        runs.begin(run)
        with monkeypatch.context() as patch:
            patch.setattr(database, "transaction", full)
            runs.progress(run.id, "reading", 1, 2)
            runs.finish(ended(run, clock))
            assert "full" in (runs.problem or "")
        clock.sleep(log.TRY_AGAIN_S)
        assert runs.running() == () and runs.recent(5)[0].state == "done"
        assert runs.problem is None


def test_what_is_kept_in_memory_goes_into_the_file_at_the_end_where_there_is_room_again(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = database.transaction

    def full(connection: sqlite3.Connection, work: object) -> object:
        if connection.execute("PRAGMA database_list").fetchone()[2]:
            raise sqlite3.OperationalError("database or disk is full")
        return real(connection, work)  # type: ignore[arg-type]

    path = tmp_path / "runs.db"
    with RunLog(path, clock) as runs:
        runs.set_fact("alarms", "1")
        with monkeypatch.context() as patch:
            patch.setattr(database, "transaction", full)
            runs.finish(ended(made(clock), clock))
            runs.set_fact("alarms", "2")
    with RunLog(path, clock) as runs:
        assert [run.id for run in runs.latest()] == ["r1"] and runs.fact("alarms") == "2"
    with RunLog(path, clock) as runs, monkeypatch.context() as patch:
        patch.setattr(database, "transaction", full)
        runs.set_fact("alarms", "3")
        runs.close()  # still full: no error
    with RunLog(path, clock) as runs:
        assert runs.fact("alarms") == "2"


def test_while_nothing_can_be_written_what_the_file_says_is_known(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = database.transaction

    def full(connection: sqlite3.Connection, work: object) -> object:
        if connection.execute("PRAGMA database_list").fetchone()[2]:
            raise sqlite3.OperationalError("database or disk is full")
        return real(connection, work)  # type: ignore[arg-type]

    path = tmp_path / "runs.db"
    with RunLog(path, clock) as runs, RunLog(path, clock) as other:
        runs.finish(ended(made(clock, "r1"), clock))
        runs.finish(ended(made(clock, "r2", job="drill a"), clock, "failed"))
        for key in ("alarms", "outbox", "seen"):
            runs.set_fact(key, "1")
        with monkeypatch.context() as patch:
            patch.setattr(database, "transaction", full)
            runs.set_fact("outbox", "2")
            runs.set_fact("seen", None)
            assert [run.id for run in runs.latest()] == ["r1", "r2"]
            assert runs.last_good("backup a", "u1") is not None
            assert runs.facts() == {"alarms": "1", "outbox": "2"}
        clock.sleep(log.TRY_AGAIN_S)
        other.set_fact("alarms", "3")
        other.finish(ended(made(clock, "r3", job="drill a"), clock))
        assert runs.facts() == {"alarms": "3", "outbox": "2"} and runs.problem is None
        assert [run.id for run in runs.latest()] == ["r1", "r3"]


def test_a_file_that_somebody_deletes_is_made_anew(
    runs: RunLog, clock: FakeClock, tmp_path: Path
) -> None:
    runs.finish(ended(made(clock), clock))
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    runs.finish(ended(made(clock, "r2"), clock))
    assert [run.id for run in runs.recent(5)] == ["r2"] and runs.problem is None


def test_threads_share_one_log(runs: RunLog, clock: FakeClock) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            run = made(clock, f"{number}-{turn}", f"u{number}")
            runs.begin(run)
            runs.finish(ended(run, clock))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs.recent(1000)) == 160 and runs.running() == ()
