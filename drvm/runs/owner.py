"""Which process a run belongs to, so that the next one can tell whether that still lives."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def this_process() -> str:
    """Its number, its start and the boot it lives in: never another's, whatever comes."""
    return _named(os.getpid()) or f"{os.getpid()} unknown"


def is_alive(owner: str) -> bool:
    """Also said of what can't be told any more, where ``/proc`` can't be read."""
    number = owner.split(" ", 1)[0]
    if not number.isascii() or not number.isdecimal():
        return False
    try:
        named = _named(int(number))
    except OSError:
        return True
    return named == owner if named is not None else False


def _named(pid: int) -> str | None:
    """``None``: there is no such process. Raises ``OSError`` where nobody can tell."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the name in parentheses may hold anything; the 22nd field is the start.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else f"{pid} {int(fields[19])} {boot}"
