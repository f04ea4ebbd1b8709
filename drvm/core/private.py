"""Files that hold a secret: only their owner may read them, and nothing of them is ever shown."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from drvm.core.errors import UsageError
from drvm.core.redact import keep_secret


def read_private(
    path: Path,
    what: str,
    max_bytes: int,
    warn: Callable[[str], None] = lambda _: None,
    *,
    hint: str,
    closed_to: int = 0o007,
) -> bytes:
    """The first ``max_bytes`` of a file, or of a pipe such as the shell's ``<(...)``. ``what`` and
    ``hint`` are for messages, ``warn`` is told who else may read it. Raises ``UsageError`` where it
    can't be read, or users can to whom it must be closed."""
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & closed_to:
                who = "every user" if status.st_mode & 0o007 else "a group"
                raise UsageError(f"{who} of this machine can read {what}", hint=f"chmod 600 {path}")
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o070:
                warn(f"the group {status.st_gid} can read or write {what}")
            if stat.S_ISREG(status.st_mode) and status.st_uid not in (0, os.geteuid()):
                warn(f"{what} belongs to another user ({status.st_uid})")
            return stream.read(max_bytes)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UsageError(
            f"can't read {what}: {(reason or 'not a path').lower()}", hint=hint
        ) from None


def read_private_lines(path: Path, what: str, *, hint: str, max_bytes: int = 65536) -> list[str]:
    """Its lines without blanks, comments (``#``) and empty ones, none of them ever logged: each is
    taken for a secret. At least one. Raises ``UsageError``."""
    data = read_private(path, what, max_bytes + 1, hint=hint, closed_to=0o077)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise UsageError(f"{what} holds other characters than ASCII", hint=hint) from None
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    for line in found:
        keep_secret(line)
    if not found or len(data) > max_bytes:
        wrong = "is empty" if not found else f"is larger than {max_bytes} bytes"
        raise UsageError(f"{what} {wrong}", hint=hint)
    return found
