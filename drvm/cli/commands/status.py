"""``drvm status``."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import click

from drvm.cli.invocation import DONE, DONE_WITH_WARNINGS, Invocation
from drvm.cli.opening import opened
from drvm.cli.status_view import fields, lines
from drvm.config.settings import Settings
from drvm.core.errors import DrvmError, StoreUnreachable, UsageError
from drvm.core.units import parse_seconds
from drvm.daemon.status import Record, judge, read_record
from drvm.report.input import ReportInput
from drvm.runs.log import RUNS_FILE, RunLog
from drvm.runs.model import Run
from drvm.wiring.reporting import gather_report

CRITICAL = 4
_EXITS = {"ok": DONE, "warning": DONE_WITH_WARNINGS, "critical": CRITICAL}


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 1 <= seconds <= 3600:
        raise click.BadParameter("must be between 1s and 1h")
    return seconds


@click.command("status")
@click.option(
    "--timeout",
    "limit_s",
    metavar="DURATION",
    default="60s",
    show_default=True,
    callback=_seconds,
    help="How long the repository and the hosts may take to answer.",
)
@click.pass_obj
def command(invocation: Invocation, limit_s: float) -> int:
    """Say how all of it is: what is wrong and what to do, what runs, what comes next.

    For people and for monitoring systems: the first line says it all, and the exit code is 0 where
    all is well, 3 for warnings, 4 for what is critical; a repository or a host that is away is
    that, too. It looks for itself, whether or not a daemon runs here.

    \b
    Examples:
      drvm status
      drvm status --json | jq -r '.concerns[] | select(.severity == "critical") | .text'
    """
    settings = invocation.settings()
    record = _record(invocation, settings)
    look = _Look(invocation, record.latest)
    in_time = look.ended_within(limit_s)
    problem = look.error
    if not in_time:
        problem = StoreUnreachable(
            f"the repository and the hosts did not answer within {limit_s:g} s",
            hint="drvm doctor says which; --timeout gives them more time",
        )
    status = judge(settings, record, look.report, problem, invocation.clock.now())
    if invocation.output.json:
        invocation.output.document(fields(status, _EXITS[status.verdict]))
    for line in lines(status):
        invocation.output.line(line)
    if not in_time:
        _leave(_EXITS[status.verdict])
    return _EXITS[status.verdict]


def _record(invocation: Invocation, settings: Settings) -> Record:
    path = Path(settings.state_dir) / RUNS_FILE
    try:
        if not path.exists():  # nothing is made by looking
            return Record()
    except OSError as error:
        return Record(problem=f"{path} can't be used: {error.strerror}")
    with RunLog(path, invocation.clock) as log:
        return read_record(log, settings)


class _Look:
    """In a thread of its own, which nobody waits for longer than is meant: libraries below have
    limits of their own, some of them long."""

    def __init__(self, invocation: Invocation, runs: tuple[Run, ...]) -> None:
        self.report: ReportInput | None = None
        self.error: DrvmError | None = None
        self._bug: BaseException | None = None
        self._invocation = invocation
        self._runs = runs
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def ended_within(self, limit_s: float) -> bool:
        """Raises what is no matter of the repository: a wrong request, a bug."""
        self._thread.join(limit_s)
        if self._bug is not None:
            raise self._bug
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with opened(self._invocation) as wiring:
                self.report = gather_report(wiring, self._runs)
        except UsageError as error:
            self._bug = error
        except DrvmError as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._bug = error


def _leave(code: int) -> None:
    """An ordinary exit would wait for the threads of the look."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
