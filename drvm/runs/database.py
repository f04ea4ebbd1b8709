"""The file itself: SQLite in WAL mode, root's alone; put aside where it can't be ours."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

VERSION = 1
"""Of the tables. A newer one may only add, at the end: what an older drvm left is upgraded where it
lies, and an older drvm leaves a newer file alone."""
READ_S = 1.0
BUSY_S = 5.0
"""How long another process's write is waited for: no transaction calls anything."""

_TABLES = {
    name: {text.split()[0]: text for text in columns.split(", ")}
    for name, columns in {
        "runs": "id TEXT PRIMARY KEY, owner TEXT NOT NULL, job TEXT NOT NULL, kind TEXT NOT NULL, "
        "vm TEXT NOT NULL, vm_uuid TEXT NOT NULL, host TEXT NOT NULL, due TEXT, "
        "started TEXT NOT NULL, ended TEXT, state TEXT NOT NULL, attempt INTEGER NOT NULL, "
        "message TEXT NOT NULL, hint TEXT NOT NULL, result TEXT NOT NULL, "
        "stored_bytes INTEGER NOT NULL, stage TEXT NOT NULL, done_bytes INTEGER NOT NULL, "
        "total_bytes INTEGER",
        "latest": "key TEXT PRIMARY KEY, ended_id TEXT NOT NULL, ended TEXT NOT NULL, good TEXT",
        "facts": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    }.items()
}
"""By their names, the columns by theirs."""

_INDEXES = (
    "runs_by_start ON runs (started)",
    "runs_of_vm ON runs (vm_uuid, started)",
    "runs_running ON runs (state) WHERE state = 'running'",
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Database:
    """``inode``: of the file that was opened, which somebody may take away meanwhile."""

    connection: sqlite3.Connection
    path: Path
    inode: int

    def still_there(self) -> bool:
        try:
            return self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()


def put_aside(path: Path) -> Path:
    """A damaged file, or one that is no drvm's, with what SQLite keeps beside it. The one that was
    put aside before goes. Raises ``OSError``."""
    aside = path.with_name(f"{path.name}.aside")
    for suffix in ("-wal", "-shm", ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))
        else:
            aside.with_name(aside.name + suffix).unlink(missing_ok=True)
    return aside


def is_damage(error: Exception) -> bool:
    """Of the file's bytes; full disks, locks, permissions and files of a newer drvm are other
    errors of SQLite's."""
    return type(error) is sqlite3.DatabaseError


def open_file(path: Path) -> Database:
    """Raises ``sqlite3.Error`` and ``OSError`` where there can be none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        inode = os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    try:
        _version(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        transaction(connection, _prepare)
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return Database(connection, path, inode)


def in_memory(path: Path | None) -> sqlite3.Connection:
    """With what the file at ``path`` says, as far as it can be read, and as it is to be if its disk
    is full or read-only: the last runs of all jobs, those that run, and all facts."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    transaction(connection, _prepare)
    if path is not None:
        with contextlib.suppress(sqlite3.Error, OSError):
            transaction(connection, lambda db: _read_from(path, db))
    return connection


_WANTED = {
    "latest": "",
    "facts": "",
    "runs": " WHERE state='running' OR id IN (SELECT ended_id FROM latest)",
}


def _read_from(path: Path, db: sqlite3.Connection) -> None:
    url = f"file:{quote(str(path))}?mode=ro"
    with contextlib.closing(sqlite3.connect(url, uri=True, timeout=READ_S)) as file:
        for table, rows in _WANTED.items():
            columns = _TABLES[table]  # by their names: a newer drvm may have more
            places = ", ".join("?" * len(columns))
            read = file.execute(f"SELECT {', '.join(columns)} FROM {table}{rows}")  # noqa: S608
            db.executemany(f"INSERT INTO {table} VALUES ({places})", read)  # noqa: S608


def transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]) -> _T:
    """Raises ``sqlite3.NotSupportedError`` too: a newer drvm may come at any time."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        _version(connection)
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return result


def _version(connection: sqlite3.Connection) -> int:
    """0: a new file. Raises ``sqlite3.NotSupportedError``."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.NotSupportedError(
            f"a newer drvm has written it (version {version}, this one knows {VERSION}): restart "
            "or update this one"
        )
    return version


def _check(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))


def _prepare(connection: sqlite3.Connection) -> None:
    is_older = 0 < _version(connection) < VERSION
    for table, columns in _TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(columns.values())})")
        names = _names(connection, table)
        for column in list(columns.values())[len(names) :] if is_older else ():
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
            names = _names(connection, table)
        if names != list(columns):
            raise sqlite3.DatabaseError(f"its table {table} is not drvm's")
    for index in _INDEXES:
        connection.execute(f"CREATE INDEX IF NOT EXISTS {index}")
    connection.execute(f"PRAGMA user_version={VERSION}")


def _names(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row["name"] for row in connection.execute(f"PRAGMA table_info({table})")]
