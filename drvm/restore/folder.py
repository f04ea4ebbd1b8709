"""Files in a folder of the operator's, made together or not at all."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from pathlib import Path

from drvm.core.errors import RestoreError
from drvm.restore.targets.partial import give_name, held, partial_name


def make_folder(directory: Path, undo: ExitStack) -> None:
    """Only its owner can read one that is made. Those that are made go again by ``undo``."""
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RestoreError(
            f"the folder {directory} can't be made: {error.strerror}",
            hint="name another by --output",
        ) from None
    for path in reversed(missing):
        undo.callback(_remove_empty, path)


def write_new(path: Path, data: bytes) -> None:
    """Only its owner can read it; durable when it returns. Raises ``RestoreError`` where there is
    such a file. A crash leaves a partial file."""
    partial = partial_name(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, 0o600), "wb") as stream, held(partial):
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            give_name(partial, path)
    finally:
        remove(partial)


def _remove_empty(directory: Path) -> None:
    """What somebody else put into it meanwhile stays."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
