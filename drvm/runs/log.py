"""What the daemons and ``drvm run`` of this host did and do: ``runs.db`` in the state directory.

Nothing relies on it for safety: which VM is owed a point says the repository. So no error of the
file ever reaches who uses it. Where it can't be had (full disk, damage, permissions) everything is
kept in memory instead, ``problem`` says why, and goes into the file once that is there again. A
damaged file is put aside as ``runs.db.aside``; that of a newer drvm, which may be at work beside
us, is left to it.

Several processes use it at once. A crash leaves runs that are ``running``: whoever looks next finds
that their process is gone, and calls them ``lost``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from drvm.core.clock import Clock, parse_rfc3339, rfc3339
from drvm.runs import database
from drvm.runs.model import Run
from drvm.runs.owner import is_alive, this_process

RUNS_FILE = "runs.db"

MAX_RUNS = 20_000
"""Finished ones; the last of each job and VM, and the last good one, stay whatever comes."""

KEEP_LATEST = dt.timedelta(days=400)
"""After this a job, or a VM, that ran no more is forgotten."""

MAX_TEXT_CHARS = 4000
TRY_AGAIN_S = 60.0
_TRIM_EVERY = 100
_COLUMNS = tuple(field.name for field in dataclasses.fields(Run))
_MOMENTS = ("due", "started", "ended")
_GOOD = ("done", "warned")
_INSERT = (
    "INSERT OR REPLACE INTO runs VALUES (:id, :owner, :job, :kind, :vm, :vm_uuid, :host, :due, "
    ":started, :ended, :state, :attempt, :message, :hint, :result, :stored_bytes, :stage, "
    ":done_bytes, :total_bytes)"
)
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class _Seeded:
    """The states of runs, and facts, that memory began with: the file has them."""

    runs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(db: sqlite3.Connection) -> _Seeded:
        runs = {row["id"]: row["state"] for row in db.execute("SELECT id, state FROM runs")}
        facts = {row["key"]: row["value"] for row in db.execute("SELECT key, value FROM facts")}
        return _Seeded(runs, facts)


class RunLog:
    """Any thread may call anything. Close it, or use it as a context manager."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._owner = this_process()
        self._lock = threading.Lock()
        self._file: database.Database | None = None
        self._memory: sqlite3.Connection | None = None
        self._seeded = _Seeded()
        self._try_again_s = -TRY_AGAIN_S
        self._finished = 0
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the file can't be used just now, or that an old one was put aside."""
        return self._problem

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What is in memory only goes into the file, if that can be had by now."""
        with self._lock:
            if self._memory is not None:
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._on_file(lambda _: None)
            self._let_go()
            if self._memory is not None:
                self._memory.close()
                self._memory = None
            self._try_again_s = -TRY_AGAIN_S

    def begin(self, run: Run) -> None:
        self._do(lambda db: _put(db, run, self._owner))

    def progress(self, run_id: str, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        """Whoever calls this sees to it that it is not called too often."""
        text = "UPDATE runs SET stage=?, done_bytes=?, total_bytes=? WHERE id=? AND state='running'"
        values = (stage[:MAX_TEXT_CHARS], done_bytes, total_bytes, run_id)
        self._do(lambda db: db.execute(text, values))

    def finish(self, run: Run) -> None:
        """``run`` as it is now: ended, and not ``running`` any more."""
        assert run.ended is not None and run.state != "running"
        trim = self._finished % _TRIM_EVERY == 0  # the first, too: drvm run may finish one only
        self._finished += 1

        def write(db: sqlite3.Connection) -> None:
            _put(db, run, self._owner)
            _note_latest(db, run)
            if trim:
                _trim(db, self._clock.now())

        self._do(write)

    def running(self) -> tuple[Run, ...]:
        """By their start. What a dead process left is called ``lost`` first."""
        return self._do(self._running)

    def latest(self) -> tuple[Run, ...]:
        """The run of each job and VM that ended last; one that was stopped does not hide that the
        one before it failed."""
        self.running()
        text = "SELECT r.* FROM latest l JOIN runs r ON r.id = l.ended_id ORDER BY l.key"
        return self._do(lambda db: _runs(db.execute(text)))

    def recent(self, limit: int, vm_uuid: str | None = None) -> tuple[Run, ...]:
        """Finished ones, the last begun first."""
        self.running()
        text = (
            "SELECT * FROM runs WHERE state != 'running' AND (?1 IS NULL OR vm_uuid = ?1) "
            "ORDER BY started DESC, id LIMIT ?2"
        )
        return self._do(lambda db: _runs(db.execute(text, (vm_uuid, min(limit, MAX_RUNS)))))

    def failures(self, after: dt.datetime, until: dt.datetime) -> Mapping[str, int]:
        """How many runs of each job failed, or were lost, and ended in ``(after, until]``."""
        text = (
            "SELECT job, count(*) FROM runs WHERE state IN ('failed', 'lost') "
            "AND ended > ? AND ended <= ? GROUP BY job"
        )
        values = (rfc3339(after), rfc3339(until))
        return self._do(lambda db: dict(db.execute(text, values).fetchall()))

    def last_good(self, job: str, vm_uuid: str = "") -> dt.datetime | None:
        """When the last run that was done (with warnings or not) began."""
        text = "SELECT good FROM latest WHERE key=?"
        row = self._do(lambda db: db.execute(text, (_key(job, vm_uuid),)).fetchone())
        return None if row is None else _moment(row[0])

    def fact(self, key: str) -> str | None:
        row = self._do(
            lambda db: db.execute("SELECT value FROM facts WHERE key=?", (key,)).fetchone()
        )
        return None if row is None else str(row[0])

    def facts(self, prefix: str = "") -> Mapping[str, str]:
        text = "SELECT key, value FROM facts WHERE substr(key, 1, ?) = ? ORDER BY key"
        rows = self._do(lambda db: db.execute(text, (len(prefix), prefix)).fetchall())
        return {row["key"]: row["value"] for row in rows}

    def set_fact(self, key: str, value: str | None) -> None:
        """``None`` forgets it."""
        if value is None:
            self._do(lambda db: db.execute("DELETE FROM facts WHERE key=?", (key,)))
        else:
            text = "INSERT OR REPLACE INTO facts (key, value) VALUES (?, ?)"
            self._do(lambda db: db.execute(text, (key, value)))

    def _running(self, db: sqlite3.Connection) -> tuple[Run, ...]:
        text = "SELECT * FROM runs WHERE state='running' ORDER BY started, id"
        rows = db.execute(text).fetchall()
        alive = {owner: is_alive(owner) for owner in {row["owner"] for row in rows}}
        found = []
        for row in rows:
            run = _run(row)
            if alive[row["owner"]]:
                found.append(run)
                continue
            lost = dataclasses.replace(
                run,
                state="lost",
                ended=self._clock.now(),
                message="drvm ended in the middle of it",
                hint="its log, or that of the kernel, says why; the next run puts the guest back",
            )
            _put(db, lost, row["owner"])
            _note_latest(db, lost)
        return tuple(found)

    def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """In one transaction: on the file, or on what is kept in memory instead."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._memory is None or now_s - self._try_again_s >= TRY_AGAIN_S:
                try:
                    return self._on_file_or_anew(work)
                except (sqlite3.Error, OSError) as error:
                    self._try_again_s = now_s
                    self._problem = f"{self._path} can't be used: {error}"
                    self._let_go()
            if self._memory is None:
                self._memory = _memory_of(self._path)
                self._seeded = _Seeded.of(self._memory)
            return database.transaction(self._memory, work)

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_file_or_anew(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return self._on_file(work)
        except sqlite3.DatabaseError as error:
            if not database.is_damage(error):
                raise
            self._let_go()
            aside = database.put_aside(self._path)
            result = self._on_file(work)
            self._problem = f"{self._path} was put aside as {aside.name}: {error}"
            return result

    def _on_file(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._file is not None and not self._file.still_there():
            self._let_go()
        if self._file is None:
            self._file = database.open_file(self._path)
            self._problem = None
        if self._memory is not None:
            kept, seeded = self._memory, self._seeded
            database.transaction(self._file.connection, lambda db: _copy(kept, seeded, db))
            self._memory.close()
            self._memory = None
        return database.transaction(self._file.connection, work)


def _memory_of(path: Path) -> sqlite3.Connection:
    memory = database.in_memory(path)
    try:
        _runs(memory.execute("SELECT * FROM runs"))
    except sqlite3.DatabaseError:  # nothing that was read may ever be an error
        memory.close()
        return database.in_memory(None)
    return memory


def _key(job: str, vm_uuid: str) -> str:
    return f"{job}\0{vm_uuid}"


def _put(db: sqlite3.Connection, run: Run, owner: str) -> None:
    values: dict[str, object] = {"owner": owner}
    for name in _COLUMNS:
        value = getattr(run, name)
        if isinstance(value, dt.datetime):
            value = rfc3339(value)
        if isinstance(value, str):  # names of files may be no UTF-8, and SQLite takes nothing else
            value = value[:MAX_TEXT_CHARS].encode("utf-8", "backslashreplace").decode()
        values[name] = value
    db.execute(_INSERT, values)


def _note_latest(db: sqlite3.Connection, run: Run) -> None:
    good = rfc3339(run.started) if run.state in _GOOD else None
    assert run.ended is not None
    db.execute(
        "INSERT INTO latest (key, ended_id, ended, good) VALUES (?1, ?2, ?3, ?4) "
        "ON CONFLICT (key) DO UPDATE SET ended_id=excluded.ended_id, ended=excluded.ended, "
        "good=coalesce(excluded.good, good) WHERE ?5 != 'stopped' OR NOT EXISTS "
        "(SELECT 1 FROM runs WHERE id=latest.ended_id AND state IN ('failed', 'lost'))",
        (_key(run.job, run.vm_uuid), run.id, rfc3339(run.ended), good, run.state),
    )


def _copy(kept: sqlite3.Connection, seeded: _Seeded, db: sqlite3.Connection) -> None:
    """What came while the file was away; what others wrote meanwhile stays."""
    now = _Seeded.of(kept)
    for row in kept.execute("SELECT * FROM runs ORDER BY ended, started").fetchall():
        run = _run(row)
        if seeded.runs.get(run.id) == run.state:
            continue
        _put(db, run, row["owner"])
        if run.ended is not None:
            _note_latest(db, run)
    for key, value in now.facts.items():
        if seeded.facts.get(key) != value:
            db.execute("INSERT OR REPLACE INTO facts (key, value) VALUES (?, ?)", (key, value))
    for key in seeded.facts.keys() - now.facts.keys():
        db.execute("DELETE FROM facts WHERE key=?", (key,))


def _trim(db: sqlite3.Connection, now: dt.datetime) -> None:
    db.execute("DELETE FROM latest WHERE ended < ?", (rfc3339(now - KEEP_LATEST),))
    db.execute(
        "DELETE FROM runs WHERE state != 'running' AND id NOT IN (SELECT ended_id FROM latest) "
        "AND id NOT IN (SELECT id FROM runs ORDER BY started DESC LIMIT ?)",
        (MAX_RUNS,),
    )


def _runs(rows: sqlite3.Cursor) -> tuple[Run, ...]:
    return tuple(_run(row) for row in rows.fetchall())


def _run(row: sqlite3.Row) -> Run:
    values = {name: row[name] for name in _COLUMNS}
    for name in _MOMENTS:
        values[name] = _moment(values[name])
    return Run(**values)


def _moment(text: object) -> dt.datetime | None:
    try:
        return None if text is None else parse_rfc3339(str(text))
    except ValueError as error:
        raise sqlite3.DatabaseError(f"a moment in it is none: {error}") from None
