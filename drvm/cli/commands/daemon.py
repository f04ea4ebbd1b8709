"""``drvm daemon``."""

from __future__ import annotations

import contextlib
import logging

import click

from drvm.cli.invocation import Invocation, require_config
from drvm.cli.opening import opened
from drvm.config.elsewhere import elsewhere
from drvm.config.settings import Settings
from drvm.core.errors import DrvmError, Interrupted, UsageError
from drvm.daemon.policies import OpenWiring, copy_jobs, jobs, room_watch
from drvm.daemon.service import Service
from drvm.wiring.assembly import Wiring
from drvm.wiring.jobs import finish_leftovers

log = logging.getLogger("drvm.daemon")


@click.command("daemon")
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Run the policies of the config by their schedules, until SIGTERM or Ctrl-C.

    At the start, guests that a killed backup left half-way are put back. On SIGTERM a running
    backup is given up, its guest put back, and what was uploaded is found again by the next one.
    Logs go to stderr: for people on a terminal, else a JSON object in each line.

    \b
    Example:
      drvm --config /etc/drvm/config.yaml daemon
    """
    require_config(invocation)
    settings = invocation.settings()
    invocation.log_unattended()
    with opened(invocation) as wiring:
        wiring.repository()  # a wrong key or URL ends the daemon now, not at three in the morning
        _recover(wiring)
    open_wiring = _opener(invocation, settings)
    copies = {
        copy.name: _opener(invocation, elsewhere(settings, copy.name, invocation.environ))
        for copy in settings.copies
        if copy.schedule is not None
    }
    planned = [*jobs(settings, open_wiring), *copy_jobs(settings, open_wiring, copies)]
    if not planned:
        raise UsageError(
            "no policy or copy of the config has a schedule",
            hint='add schedule: "0 3 * * *" to a policy',
        )
    log.info("%d jobs; stop with SIGTERM", len(planned))
    with contextlib.suppress(Interrupted, KeyboardInterrupt):  # being told to stop is no failure
        watched = [*planned, room_watch(open_wiring)]
        Service(watched, max_parallel=settings.daemon.max_parallel).run()


def _opener(invocation: Invocation, settings: Settings) -> OpenWiring:
    """The passphrase is asked for now."""
    passphrase = invocation.password(settings)

    def open_wiring() -> Wiring:
        return Wiring(
            settings,
            clock=invocation.clock,
            processes=invocation.processes,
            passphrase=lambda: passphrase,
        )

    return open_wiring


def _recover(wiring: Wiring) -> None:
    try:
        for done in finish_leftovers(wiring):
            log.log(logging.INFO if done.ok else logging.ERROR, "%s: %s", done.name, done.detail)
    except DrvmError as error:
        log.error("leftovers could not be looked for: %s", error.message)
