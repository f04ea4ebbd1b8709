"""What a command gets: one value with everything it may use, passed by ``click.pass_obj``."""

from __future__ import annotations

import dataclasses
import getpass
import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from drvm.cli.output import Flags, Output
from drvm.cli.progress import show_progress
from drvm.core.clock import Clock
from drvm.core.errors import ConfigError, Interrupted, UsageError
from drvm.core.process import Processes
from drvm.core.progress import Progress
from drvm.core.text import printable
from drvm.daemon.logs import start_logging

if TYPE_CHECKING:
    from drvm.config.load import Rule
    from drvm.config.model import Config
    from drvm.config.settings import Overrides, Settings

log = logging.getLogger("drvm.steps")

DONE = 0
DONE_WITH_WARNINGS = 3
"""Exit codes that commands return; all others come from errors."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """Settings are read when they are asked for: ``drvm --help`` needs no config."""

    output: Output
    stderr: TextIO
    flags: Flags
    clock: Clock
    processes: Processes
    environ: Mapping[str, str]
    colour: bool
    named_config: Path | None = None
    ignore_config: bool = False

    def config_path(self) -> Path | None:
        """``None`` where there is no config at all."""
        from drvm.config.load import find_config

        return find_config(self.named_config, self.environ)

    def without_config(self) -> Invocation:
        """The same, for a command that goes on where the named config does not exist yet."""
        return dataclasses.replace(self, ignore_config=True)

    def config(self) -> Config | None:
        """Raises ``ConfigError`` with every mistake."""
        from drvm.config.load import load_config

        path = None if self.ignore_config else self.config_path()
        return None if path is None else load_config(path, config_rules(), check_kinds)

    def settings(self, overrides: Overrides | None = None) -> Settings:
        from drvm.config.settings import NO_OVERRIDES, resolve

        return resolve(self.config(), self.environ, overrides or NO_OVERRIDES)

    def progress(self) -> AbstractContextManager[Progress]:
        return show_progress(self.stderr, self.flags, colour=self.colour)

    def trace(self, step: str) -> None:
        """The steps of a job that have become true: told with ``-v``."""
        log.info("%s", step)

    def log_unattended(self) -> None:
        """For what runs by itself: unless somebody chose otherwise, logs are for people on a
        terminal and JSON elsewhere; and what is done is told without ``-v``."""
        if self.flags.log_format is None and not self.stderr.isatty():
            self.flags.log_format = "json"
            start_logging(self.stderr, "json", self.environ)
        if not self.flags.quiet:
            logging.getLogger("drvm").setLevel(min(logging.INFO, logging.getLogger("drvm").level))

    def warn(self, text: str) -> None:
        """For people, on stderr, also with ``--json``; nothing with ``-q``."""
        if self.flags.log_format == "json":
            logging.getLogger("drvm").warning("%s", text)
        elif not self.flags.quiet:
            self.stderr.write(f"drvm: warning: {printable(text, 1000)}\n")

    def password(self, settings: Settings, *, confirm: bool = False) -> bytes:
        """From where the settings say, else from the terminal. ``confirm``: it is to be a new one,
        so the terminal asks twice, and a weak one is warned of.

        Raises ``UsageError`` where there is nobody to ask.
        """
        from drvm.config.password import read_password

        if settings.password is None:
            return self._typed("passphrase of the repository", confirm=confirm)
        given = read_password(settings.password, self.processes, self.environ, self.warn)
        return self._judged(given) if confirm else given

    def new_password(self, file: Path | None) -> bytes:
        """Another one than the settings name: from a file, else from the terminal, asked twice."""
        from drvm.config.password import read_password
        from drvm.config.settings import PasswordFile

        if file is None:
            return self._typed("new passphrase", confirm=True)
        source = PasswordFile(file)
        return self._judged(read_password(source, self.processes, self.environ, self.warn))

    def _typed(self, what: str, *, confirm: bool) -> bytes:
        from drvm.config.password import check_password

        if not self.has_terminal:
            raise UsageError(
                "no passphrase is given and there is no terminal to ask",
                hint="--new-password-file FILE names a new one"
                if what.startswith("new")
                else "set password_file in the config, DRVM_PASSWORD_FILE or DRVM_PASSWORD_COMMAND",
            )
        first = check_password(self._ask(f"{what}: "), "the terminal")
        if confirm and self._ask("once more: ") != first:
            raise UsageError("the two passphrases differ")
        return self._judged(first) if confirm else first

    def _judged(self, new: bytes) -> bytes:
        from drvm.config.password import weakness

        if problem := weakness(new):
            self.warn(f"the new passphrase is weak: {problem}")
        return new

    @property
    def has_terminal(self) -> bool:
        return sys.stdin.isatty() and self.stderr.isatty()

    def confirm(self, question: str, *, yes: bool) -> None:
        """Go on only with ``--yes`` or a ``y`` typed. Raises ``UsageError`` or ``Interrupted``."""
        if yes:
            return
        if not self.has_terminal:
            raise UsageError("this needs a yes and there is no terminal to ask", hint="add --yes")
        self.stderr.write(f"{question} [y/N] ")
        self.stderr.flush()
        if sys.stdin.readline(100).strip().lower() not in ("y", "yes"):
            raise Interrupted("nothing was done")

    def _ask(self, prompt: str) -> bytes:
        try:
            return getpass.getpass(prompt, self.stderr).encode()
        except (EOFError, UnicodeEncodeError):
            raise UsageError("no passphrase was typed") from None


def config_rules() -> Mapping[str, Rule]:
    """The rules that the config room takes from the schedule room, its neighbour."""
    from drvm.schedule.cron import expression_problem, time_zone_problem
    from drvm.schedule.windows import window_problem, windows_problem

    return {
        "schedule": expression_problem,
        "time_zone": time_zone_problem,
        "window": window_problem,
        "windows": windows_problem,
    }


def check_kinds() -> Mapping[str, type]:
    """The kinds of checks that the config room takes from that of drills."""
    from drvm.drill.checks.registry import KINDS

    return KINDS


def require_config(invocation: Invocation) -> tuple[Path, Config]:
    """The config and its path; raises ``ConfigError`` where there is none."""
    path, config = invocation.config_path(), invocation.config()
    if path is None or config is None:
        raise ConfigError(
            "there is no config file", hint="drvm config generate > /etc/drvm/config.yaml"
        )
    return path, config
