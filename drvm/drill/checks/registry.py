"""The kinds of checks there are, by the key that the config has for them. A new kind is a file here
and a line below: its dataclass also says what the config takes."""

from __future__ import annotations

from collections.abc import Mapping

from drvm.drill.checks.agent import AgentCheck
from drvm.drill.checks.command import CommandCheck
from drvm.drill.checks.console import ConsoleCheck
from drvm.drill.checks.file import FileCheck
from drvm.drill.checks.http import HttpCheck
from drvm.drill.checks.malware import MalwareCheck
from drvm.drill.checks.script import ScriptCheck
from drvm.drill.checks.tcp import TcpCheck

KINDS: Mapping[str, type] = {
    "agent": AgentCheck,
    "command": CommandCheck,
    "console": ConsoleCheck,
    "file": FileCheck,
    "http": HttpCheck,
    "malware": MalwareCheck,
    "script": ScriptCheck,
    "tcp": TcpCheck,
}
