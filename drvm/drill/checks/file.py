"""A file exists in the guest, with the content it must have.

Read through the agent's own file commands, so the guest needs neither a shell nor sha256sum; what
it says is hostile, so pieces and sum are bounded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Any

from drvm.config.checks import GuestPath, Sha256, TimeLimit
from drvm.core.clock import Clock, SystemClock
from drvm.core.errors import AgentError
from drvm.core.text import printable
from drvm.core.units import MIB, format_bytes
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need

MAX_BYTES = 1024 * MIB
"""A larger file is for sha256sum in the guest, by a command."""
_PIECE_BYTES = MIB
_AGENT_S = 10
_MAX_EMPTY = 3
_SHOWN_PATH_CHARS = 200


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Implements ``Check``. ``path``: in the guest; ``sha256``: of its content, in hexadecimal;
    ``None``: it need only exist and be readable. ``timeout_s`` also limits the reading."""

    path: GuestPath
    sha256: Sha256 | None = None
    timeout_s: TimeLimit = 60.0
    clock: Clock = field(default_factory=SystemClock, compare=False, repr=False)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    @property
    def name(self) -> str:
        return f"file {self.path}"

    @property
    def proves(self) -> str:
        path = printable(self.path, _SHOWN_PATH_CHARS)
        content = "" if self.sha256 is None else " with exactly the expected content (SHA-256)"
        return f"the guest has the file {path}{content}"

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        try:
            guest.domain.agent_ping()
        except AgentError as problem:
            return Attempt(False, False, problem.message)
        try:
            return self._looked_at(guest)
        except AgentError as problem:
            return Attempt(False, True, problem.message)

    def _looked_at(self, guest: GuestUnderTest) -> Attempt:
        def ask(command: str, **arguments: Any) -> Any:
            return guest.domain.agent_command(command, arguments, timeout_s=_AGENT_S)

        handle = ask("guest-file-open", path=self.path, mode="r")
        if type(handle) is not int:
            raise AgentError("the guest agent's handle of a file is no number")
        try:
            if self.sha256 is None:
                ask("guest-file-read", handle=handle, count=1)  # a directory can be opened, too
                return Attempt(True, True, "the file is there")
            found, length = self._sum(ask, handle)
        finally:
            ask("guest-file-close", handle=handle)
        if found != self.sha256.lower():
            return Attempt(False, True, f"its SHA-256 is {found} ({format_bytes(length)})")
        return Attempt(True, True, f"{format_bytes(length)} as expected")

    def _sum(self, ask: Any, handle: int) -> tuple[str, int]:
        deadline_s = self.clock.monotonic_s() + self.timeout_s
        digest, length, empty = hashlib.sha256(), 0, 0
        while True:
            data, ended = _piece(ask("guest-file-read", handle=handle, count=_PIECE_BYTES))
            digest.update(data)
            length += len(data)
            empty = 0 if data else empty + 1
            if ended:
                return digest.hexdigest(), length
            if length > MAX_BYTES or empty >= _MAX_EMPTY:
                raise AgentError(
                    f"the file does not end after {format_bytes(length)}: sum such files up in "
                    "the guest, by a command"
                )
            if self.clock.monotonic_s() >= deadline_s:
                raise AgentError(f"{format_bytes(length)} were read within {self.timeout_s:g} s")


def _piece(answer: Any) -> tuple[bytes, bool]:
    text = answer.get("buf-b64") if isinstance(answer, dict) else None
    ended = answer.get("eof") if isinstance(answer, dict) else None
    if not isinstance(text, str) or type(ended) is not bool:
        raise AgentError("the guest agent's piece of a file is not understood")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise AgentError("the guest agent's piece of a file is not base64") from None
    if len(data) > _PIECE_BYTES:
        raise AgentError("the guest agent's piece of a file is longer than asked for")
    return data, ended
