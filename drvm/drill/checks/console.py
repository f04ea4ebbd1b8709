"""Some text stands on the guest's serial console.

The drill gives the first serial port of its machine a log file (``drvm/drill/console.py``), which
libvirt's virtlogd writes and keeps small. What is on it is the guest's: control sequences are taken
out, and only the end is looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from drvm.config.checks import TimeLimit
from drvm.config.fields import Pattern
from drvm.core.errors import AgentError
from drvm.core.text import printable
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need
from drvm.drill.checks.matching import search

TAIL_BYTES = 256 * 1024
"""Of the console's text, as much is looked at."""
_SHOWN_CHARS = 400
_SHOWN_PATTERN_CHARS = 100
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # control sequences: colours, cursor
    r"|[\]PX^_][^\x07\x1b]{0,1024}(?:\x07|\x1b\\)"  # strings: titles of windows
    r"|[ -/]{1,8}[0-~]|[0-~])"  # character sets; all others
)
"""ECMA-48, 5.2 to 5.6, and what xterm ends by BEL."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class ConsoleCheck:
    """Implements ``Check``. ``expect``: a regular expression searched for in the last 256 KiB;
    ``^`` and ``$`` match at every line."""

    expect: Pattern
    timeout_s: TimeLimit = 60.0

    def __post_init__(self) -> None:
        if re.search(self.expect, "", re.MULTILINE):
            raise ValueError("expect matches a console that nothing was written to")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"console"})

    @property
    def name(self) -> str:
        return f"console {self.expect}"

    @property
    def proves(self) -> str:
        return (
            "the guest wrote what was expected to its serial console: a text that matches "
            + printable(self.expect, _SHOWN_PATTERN_CHARS)
        )

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        """What does not match yet is no answer: the firmware writes too."""
        if guest.console is None:
            return Attempt(False, False, "the machine has no serial console", final=True)
        text = plain(tail(guest.console))
        try:
            found = search(self.expect, text)
        except AgentError as problem:
            return Attempt(False, False, problem.message)
        if found is not None:
            return Attempt(True, True, found)
        end = text.rstrip()[-_SHOWN_CHARS:]
        words = f"; it ends with\n{end}" if end else ": nothing was written"
        return Attempt(False, False, f"nothing on the console matches {self.expect}{words}")


def tail(log: Path) -> bytes:
    """The end of a log that virtlogd puts aside as ``.0`` when it is full. Empty where there is
    none yet."""
    newest = _end_of(log, TAIL_BYTES)
    if len(newest) < TAIL_BYTES:
        newest = _end_of(Path(f"{log}.0"), TAIL_BYTES - len(newest)) + newest
    return newest


def plain(data: bytes) -> str:
    """As text: lines as they stood, without escape sequences and control characters."""
    text = _ESCAPES.sub("", data.decode(errors="replace"))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", text)


def _end_of(path: Path, length: int) -> bytes:
    """Empty for what is no file: nobody but libvirt writes there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            stream.seek(max(0, os.fstat(descriptor).st_size - length))
            return stream.read(length)
    return b""
