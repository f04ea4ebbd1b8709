"""The kinds of checks there are. A new kind is a file here, a line below and a model of the same
fields in the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drvm.core.errors import UsageError
from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.base import Check
from drvm.drill.checks.command import CommandCheck
from drvm.drill.checks.console import ConsoleCheck
from drvm.drill.checks.file import FileCheck
from drvm.drill.checks.http import HttpCheck
from drvm.drill.checks.malware import MalwareCheck
from drvm.drill.checks.script import ScriptCheck
from drvm.drill.checks.tcp import TcpCheck

KINDS: Mapping[str, Callable[..., Check]] = {
    "agent": AgentCheck,
    "command": CommandCheck,
    "console": ConsoleCheck,
    "file": FileCheck,
    "http": HttpCheck,
    "malware": MalwareCheck,
    "script": ScriptCheck,
    "tcp": TcpCheck,
}


def make_check(kind: str, values: Mapping[str, Any]) -> Check:
    """``values`` are the fields of the check's dataclass. Raises ``UsageError``."""
    if kind not in KINDS:
        raise UsageError(
            f"there is no check of the kind {kind!r}", hint=f"there are: {', '.join(KINDS)}"
        )
    try:
        return KINDS[kind](**values)
    except TypeError as problem:
        raise UsageError(f"the check {kind} can't be made like this: {problem}") from None
