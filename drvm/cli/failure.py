"""Errors -> exit codes and words: one line for what went wrong, one for what to do next.

Codes: 0 done, 1 failed, 2 usage, 3 done with warnings, 4 damage found or drill failed,
10 no repository, 11 locked, 12 wrong key, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from dataclasses import dataclass
from typing import TextIO

import click

from drvm.cli.output import Flags, Output
from drvm.core.errors import (
    ConfigError,
    DamageFound,
    DrvmError,
    Interrupted,
    PreflightFailed,
)
from drvm.core.text import printable

FAILED = 1
USAGE = 2


@dataclass(frozen=True, slots=True)
class Failure:
    """What is told of an error."""

    message: str
    exit_code: int
    hint: str = ""
    problems: tuple[str, ...] = ()


def explain(error: BaseException, flags: Flags) -> Failure:
    """Never raises. A bug's traceback goes to a file of its own, or is the hint with ``-v``."""
    if isinstance(error, ConfigError | PreflightFailed):
        return Failure(error.message, error.exit_code, error.hint, error.problems)
    if isinstance(error, DrvmError):
        return Failure(error.message, error.exit_code, error.hint or _usual_hint(error))
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return explain(Interrupted("interrupted"), flags)
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "drvm"
        message = error.format_message()
        return Failure(message[:1].lower() + message[1:].rstrip("."), USAGE, f"{command} --help")
    if isinstance(error, click.ClickException):
        return Failure(error.format_message(), FAILED)
    if isinstance(error, OSError) and error.strerror and not flags.verbosity:
        where = f": {error.filename}" if error.filename is not None else ""
        return Failure(f"{error.strerror.lower()}{where}", FAILED, "-v shows where it happened")
    return _bug(error, flags)


def _usual_hint(error: DrvmError) -> str:
    """For errors that say what is wrong but not what to do."""
    if isinstance(error, DamageFound):
        return "points that don't need it can still be restored: drvm points lists them"
    return ""


def tell(failure: Failure, output: Output, stderr: TextIO) -> None:
    """Words go to stderr always; with ``--json`` also a document, unless there is one already."""
    lines = [f"drvm: error: {failure.message}"]
    lines += [f"  {problem}" for problem in failure.problems]
    lines += [f"hint: {failure.hint}"] if failure.hint else []
    if output.log_format == "json":
        logging.getLogger("drvm").error("%s", "\n".join(lines).removeprefix("drvm: error: "))
        lines = []
    for line in lines:
        stderr.write(printable(line, len(line), lines=True) + "\n")
    if output.json and not output.document_written:
        output.document(
            {
                "error": {
                    "message": failure.message,
                    "hint": failure.hint,
                    "exit_code": failure.exit_code,
                    "problems": list(failure.problems),
                }
            }
        )


def _bug(error: BaseException, flags: Flags) -> Failure:
    trace = "".join(traceback.format_exception(error))
    message = f"this is a bug in drvm: {type(error).__name__}: {str(error)[:200]}"
    if flags.verbosity:
        return Failure(message, FAILED, f"please report it\n{trace}")
    try:
        descriptor, path = tempfile.mkstemp(prefix="drvm-bug-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(trace)
    except OSError:
        return Failure(message, FAILED, "run it again with -v and report what it says")
    return Failure(message, FAILED, f"please report it; the traceback is in {path}")
