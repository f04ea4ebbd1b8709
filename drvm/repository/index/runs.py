"""The runs of hooks of one repository on this machine: immutable files, merged in levels.

A directory holds ``<32 hex>.run`` files, each written whole, synced and renamed. What is there is
what counts: there is no list that could be wrong. A run names the runs that it was merged from;
those are no longer looked at, and removed. So any number of processes may add runs at once, only
one merges at a time (a lock), readers keep their files open, and after a crash everything that is
whole is used and everything else is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from drvm.core.files import sync_directory
from drvm.repository.index.filerun import FILE_NAME_BYTES, FileRun, Pages, name_of, write_run
from drvm.repository.index.hooks import Merged

_SUFFIX, _PARTIAL = ".run", ".partial"
_TRIES = 5


class RunFiles:
    """Runs in a directory, which is made when the first one is written.

    Raises ``OSError`` where it can't be written.
    """

    def __init__(self, directory: Path, repository_id: bytes) -> None:
        self._directory = directory
        self._repository_id = repository_id
        self._pages = Pages()

    def load(self, known: Sequence[FileRun] = ()) -> list[FileRun]:
        """All that count, youngest first; of those in ``known`` the same objects. Files that are
        torn or of another repository are removed: their packs are then unknown, as those of files
        that can't be opened are."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile by another process
                return self._load({run.file: run for run in known})
        return list(known)

    def write(self, merged: Merged, sequence: int, sources: Sequence[bytes] = ()) -> FileRun:
        """Make a run; when it stands, ``sources`` are gone. A crash leaves either or both, and
        perhaps a partial file that the next merge removes. Also raises ``OSError`` where the file
        is not what was written, and ``ValueError`` where a source is damaged."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = secrets.token_bytes(FILE_NAME_BYTES)
        partial = self._directory / f"{name.hex()}{_PARTIAL}"
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # says that its writer lives
            write_run(descriptor, partial, self._repository_id, merged, sequence, sources)
            partial.rename(self._path(name))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        sync_directory(self._directory)
        try:
            made = self._open(self._path(name))
        except ValueError as error:
            self.remove(name)
            raise OSError(f"what was just written is damaged: {error}") from error
        for source in sources:
            self._path(source).unlink(missing_ok=True)
        return made

    @contextlib.contextmanager
    def merging(self) -> Iterator[bool]:
        """Whether this process may merge, until the context ends."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self._remove_partials()
            yield True
        finally:
            os.close(descriptor)

    def has(self, name: bytes) -> bool:
        return self._path(name).is_file()

    def remove(self, name: bytes) -> None:
        """A file that turned out to be damaged."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def clear(self) -> None:
        for path in self._directory.glob(f"*{_SUFFIX}"):
            path.unlink(missing_ok=True)

    def size_bytes(self) -> int:
        sizes = 0
        for path in self._directory.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                sizes += path.stat().st_size
        return sizes

    # -- inside -------------------------------------------------------------------------------
    def _open(self, path: Path) -> FileRun:
        return FileRun(path, self._repository_id, self._pages)

    def _path(self, name: bytes) -> Path:
        return self._directory / f"{name.hex()}{_SUFFIX}"

    def _load(self, have: dict[bytes, FileRun]) -> list[FileRun]:
        runs: dict[bytes, FileRun] = {}
        for path in self._directory.glob(f"*{_SUFFIX}"):
            try:
                name = name_of(path)
                runs[name] = have[name] if name in have else self._open(path)
            except ValueError:
                with contextlib.suppress(OSError):
                    path.unlink()
            except FileNotFoundError:
                raise
            except OSError:
                continue
        merged = frozenset().union(*(run.sources for run in runs.values()))
        for name in merged & runs.keys():
            del runs[name]
            self._path(name).unlink(missing_ok=True)
        return sorted(runs.values(), key=lambda run: run.sequence, reverse=True)

    def _remove_partials(self) -> None:
        """Those whose writer died."""
        for path in self._directory.glob(f"*{_PARTIAL}"):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)
