"""The guest agent's language: what is sent, and what is believed of the answers.

The agent runs inside the guest: every answer is hostile input. Source: QEMU's
``docs/interop/qemu-ga-ref``.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from drvm.core.clock import Clock
from drvm.core.errors import AgentError
from drvm.host.model import GuestCommandResult

MAX_REPLY_CHARS = 4 * 1024 * 1024
_MAX_STREAM_BYTES = 64 * 1024
_POLL_S = 0.1


class Send(Protocol):
    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any: ...


def request(command: str, arguments: Mapping[str, Any] | None) -> str:
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})


def reply(text: object) -> Any:
    """The ``return`` member of a reply. Raises ``AgentError`` for anything else."""
    if not isinstance(text, str) or len(text) > MAX_REPLY_CHARS:
        raise AgentError("the guest agent's reply is too long or missing")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise AgentError("the guest agent's reply is not JSON") from None
    if not isinstance(document, dict) or "return" not in document:
        raise AgentError("the guest agent's reply has no return value")
    return document["return"]


def run(
    send: Send, argv: Sequence[str], stdin: bytes, timeout_s: float, clock: Clock
) -> GuestCommandResult:
    """``guest-exec`` and wait for its end, asking a few times a second."""
    deadline_s = clock.monotonic_s() + timeout_s
    arguments: dict[str, Any] = {
        "path": argv[0],
        "arg": list(argv[1:]),
        "capture-output": True,
    }
    if stdin:
        arguments["input-data"] = base64.b64encode(stdin).decode()
    pid = _member(send("guest-exec", arguments), "pid", int)
    while True:
        status = send("guest-exec-status", {"pid": pid})
        if _member(status, "exited", bool):
            return GuestCommandResult(
                exit_code=_exit_code(status),
                stdout=_stream(status, "out-data"),
                stderr=_stream(status, "err-data"),
            )
        if clock.monotonic_s() >= deadline_s:
            raise AgentError(f"{argv[0]} did not end in the guest within {timeout_s:g} s")
        clock.sleep(_POLL_S)


def _member(document: Any, name: str, kind: type) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if type(value) is not kind:
        raise AgentError(f"the guest agent's reply has no {name}")
    return value


def _exit_code(status: Mapping[str, Any]) -> int:
    """As a shell says it: 128 + the signal where one ended the command."""
    if "signal" in status:
        return 128 + _small(status, "signal")
    return _small(status, "exitcode")


def _small(status: Mapping[str, Any], name: str) -> int:
    """Windows has exit codes of 32 bits."""
    value = int(_member(status, name, int))
    if value.bit_length() > 32:
        raise AgentError(f"the guest agent's {name} is no number that a command ends with")
    return value


def _stream(status: Mapping[str, Any], name: str) -> bytes:
    if name not in status:
        return b""
    try:
        return base64.b64decode(_member(status, name, str))[:_MAX_STREAM_BYTES]
    except (binascii.Error, ValueError):
        raise AgentError(f"the guest agent's {name} is not base64") from None
