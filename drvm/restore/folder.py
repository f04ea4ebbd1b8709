"""Files in a folder of the operator's, made together or not at all."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from pathlib import Path

from drvm.core.errors import RestoreError
from drvm.core.files import write_durably


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
    """Only its owner can read it. Raises ``RestoreError`` where there is such a file."""
    if os.path.lexists(path):
        raise RestoreError(f"{path} exists already")
    write_durably(path, data)


def _remove_empty(directory: Path) -> None:
    """What somebody else put into it meanwhile stays."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
