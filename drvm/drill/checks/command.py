"""A command in the guest ends as expected."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from drvm.config.checks import Command, ExitCode, TimeLimit
from drvm.config.fields import Pattern
from drvm.core.errors import AgentError
from drvm.core.text import printable
from drvm.drill.checks.base import Attempt, GuestUnderTest, Need
from drvm.drill.checks.matching import search
from drvm.drill.checks.said import shown
from drvm.host.model import GuestCommandResult

_SHOWN_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class CommandCheck:
    """Implements ``Check``. ``run``: the program and its arguments, without a shell.
    ``expect_output``: a regular expression searched for in what it writes to stdout; ``^`` and
    ``$`` match at every line. The command is run again until it does as expected."""

    run: Command
    expect_exit: ExitCode = 0
    expect_output: Pattern | None = None
    timeout_s: TimeLimit = 30.0

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    @property
    def name(self) -> str:
        return f"command {shlex.join(self.run)}"

    @property
    def proves(self) -> str:
        command = printable(shlex.join(self.run), _SHOWN_NAME_CHARS)
        output = " and printed what was expected" if self.expect_output is not None else ""
        return f"in the guest {command} ended with exit code {self.expect_exit}{output}"

    def attempt(self, guest: GuestUnderTest) -> Attempt:
        try:
            guest.domain.agent_ping()
        except AgentError as problem:
            return Attempt(False, False, problem.message)
        try:
            result = guest.domain.guest_run(self.run, timeout_s=self.timeout_s)
            wrong = self._wrong(result)
        except AgentError as problem:
            return Attempt(False, True, problem.message)
        return Attempt(
            not wrong,
            True,
            "\n".join([*wrong, *shown(result.exit_code, result.stdout, result.stderr)]),
        )

    def _wrong(self, result: GuestCommandResult) -> list[str]:
        if result.exit_code != self.expect_exit:
            return [f"exit code {result.exit_code} instead of {self.expect_exit}"]
        output = result.stdout.decode(errors="replace")
        if self.expect_output is not None and search(self.expect_output, output) is None:
            return [f"the output does not match {self.expect_output}"]
        return []
