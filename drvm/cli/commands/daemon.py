"""``drvm daemon``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from drvm.cli.invocation import Invocation, require_config
from drvm.cli.jobs import doing_of
from drvm.cli.opening import opened
from drvm.config.settings import Settings
from drvm.core.errors import DrvmError, UsageError
from drvm.daemon.duties import Duties
from drvm.daemon.loop import Service, Setup
from drvm.daemon.systemd import Systemd
from drvm.runs.log import RUNS_FILE, RunLog
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import finish_leftovers

log = logging.getLogger("drvm.daemon")


@click.command("daemon")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Run the policies of the config by their schedules, until SIGTERM or Ctrl-C.

    At the start, guests that a killed backup left half-way are put back, and what is owed since the
    last run is done. On SIGHUP the config is read anew; one that is not valid changes nothing. On
    SIGTERM the daemon ends within 30 s: a running backup is given up, its guest put back, and what
    was uploaded is found again by the next one. Logs go to stderr: for people on a terminal, else a
    JSON object in each line.

    \b
    Example:
      drvm --config /etc/drvm/config.yaml daemon
    """
    require_config(invocation)
    invocation.log_unattended()
    settings = invocation.settings()
    with opened(invocation) as wiring:
        wiring.repository()  # a wrong key or URL ends the daemon now, not at three in the morning
        _recover(wiring)
    late = _Daemon(invocation, settings).run()
    if late:
        logging.shutdown()
        os._exit(1)  # an ordinary exit would wait for their threads


class _Daemon:
    """The service, and the duties of the config in force."""

    def __init__(self, invocation: Invocation, settings: Settings) -> None:
        self._invocation = invocation
        self._settings = settings
        self._duties = _duties(invocation, settings)
        self._past: list[Duties] = []

    def run(self) -> tuple[str, ...]:
        invocation = self._invocation
        runs = Path(self._settings.state_dir) / RUNS_FILE
        log.info("%d jobs; stop with SIGTERM", len(self._duties.scheduled))
        with RunLog(runs, invocation.clock) as history:
            service = Service(
                self._setup(),
                history,
                invocation.clock,
                Systemd(invocation.environ, invocation.clock),
                self._reload,
            )
            late = service.run()
        for duties in (*self._past, self._duties):
            duties.close()
        return late

    def _setup(self) -> Setup:
        return Setup(self._duties.plan, self._duties.chores())

    def _reload(self) -> Setup:
        """Raises for a config that is not valid; then nothing has changed."""
        require_config(self._invocation)
        settings = self._invocation.settings()
        duties = _duties(self._invocation, settings)
        for name in ("state_dir", "daemon.dashboard"):
            if _value(settings, name) != _value(self._settings, name):
                log.warning("%s changes only when the daemon is started again", name)
        self._past = [self._duties]  # its source may be being asked
        self._duties, self._settings = duties, settings
        return self._setup()


def _value(settings: Settings, name: str) -> object:
    found: object = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _duties(invocation: Invocation, settings: Settings) -> Duties:
    """Raises ``UsageError`` where nothing has a schedule."""
    duties = Duties(settings, doing_of(invocation, settings), invocation.clock)
    if not duties.scheduled:
        duties.close()
        raise UsageError(
            "no policy or copy of the config has a schedule",
            hint='add schedule: "0 3 * * *" to a policy',
        )
    return duties


def _recover(wiring: Wiring) -> None:
    """A host that does not answer, or a machine that can't be put back, keeps nobody waiting."""
    for uri in wiring.settings.host_uris:
        try:
            for done in finish_leftovers(wiring, [wiring.host(uri)]):
                level = logging.INFO if done.ok else logging.ERROR
                log.log(level, "%s: %s", done.name, done.detail)
        except DrvmError as error:
            log.error("%s: leftovers could not be looked for: %s", uri, error.message)
